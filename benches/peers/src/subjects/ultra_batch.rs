//! `ultra-batch`: a channel of one request, and a worker that awaits the
//! executor. Its delay starts again with every request.

use ultra_batch::{BatchExecutor, Executor};

use crate::load::Load;
use crate::subject::{Subject, add_one, fail};

pub(crate) struct AddOne;

impl Executor for AddOne {
    type Value = u64;
    type Result = u64;
    type Error = String;

    async fn execute(&self, jobs: Vec<u64>) -> Result<Vec<u64>, String> {
        Ok(add_one(jobs))
    }
}

#[derive(Clone)]
pub(crate) struct UltraBatch(BatchExecutor<AddOne>);

pub(crate) fn start(load: &Load) -> UltraBatch {
    let executor = BatchExecutor::build(AddOne)
        .eager_batch_size(Some(load.case.batch))
        .delay_duration(load.interval)
        .finish();
    UltraBatch(executor)
}

impl Subject for UltraBatch {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        let result = self.0.execute(job).await;
        let result = result.map_or_else(fail, Some)?;
        result.or_else(|| fail("no result"))
    }
}
