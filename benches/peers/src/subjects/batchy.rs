//! `batchy`: bounded queue, one worker that awaits the processor.

use batchy::{Batcher, BatcherConfig};

use crate::load::Load;
use crate::subject::{Subject, add_one, fail};

#[derive(Clone)]
pub(crate) struct Batchy(Batcher<u64, u64, String>);

pub(crate) fn start(load: &Load) -> Batchy {
    let config = BatcherConfig {
        max_batch: load.case.batch,
        queue_size: load.case.queue,
        max_wait_ms: load.interval.as_millis() as u64,
    };
    Batchy(Batcher::new(config, |jobs| async { Ok(add_one(jobs)) }))
}

impl Subject for Batchy {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        self.0.run(job).await.map_or_else(fail, Some)
    }
}
