//! This crate.

use microbatch::{CancellationToken, MicroBatch};

use crate::load::Load;
use crate::subject::{Subject, add_one, fail};

#[derive(Clone)]
pub(crate) struct Own(MicroBatch<u64, u64>);

pub(crate) fn start(load: &Load, idle: bool) -> Own {
    let built = MicroBatch::builder(|jobs| async move { Ok::<_, String>(add_one(jobs)) })
        .max_batch_size(load.case.batch)
        .queue_capacity(load.case.queue)
        .interval(load.interval)
        .flush_when_idle(idle)
        .build_running(CancellationToken::new());
    Own(built.expect("no zeros"))
}

impl Subject for Own {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        self.0.submit(job).await.map_or_else(fail, Some)
    }

    fn future(&self, job: u64) -> impl Future<Output = Option<u64>> + Send {
        let handle = self.0.submit(job);
        async { handle.await.map_or_else(fail, Some) }
    }
}
