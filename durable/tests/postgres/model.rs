//! The store answers as the model does.

use std::sync::Arc;
use std::time::Duration;

use microbatch_durable::{PostgresStore, Store, Verdict};
use microbatch_postgres::Server;

use crate::server::{open, server};
use crate::shared_model::{HOUR, Model, Step, Subject, compare, on_disk, within_limit};

struct OnServer {
    store: PostgresStore,
    server: Arc<Server>,
    queue: String,
    dedup_window: Duration,
}

impl OnServer {
    async fn open(server: Arc<Server>, queue: String, dedup_window: Duration) -> Self {
        let builder = PostgresStore::builder().queue(&queue);
        let builder = builder.dedup_window(dedup_window).lease_time(HOUR);
        let store = open(&server, "model", builder).await;
        Self {
            store,
            server,
            queue,
            dedup_window,
        }
    }
}

impl Subject for OnServer {
    type Store = PostgresStore;
    const ENDS_LEASES: bool = false;

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    async fn crash(self, orderly: bool) -> Self {
        if orderly {
            self.store.close().await;
        }
        drop(self.store);
        Self::open(self.server, self.queue, self.dedup_window).await
    }

    fn advance(&self, _: Duration) -> Duration {
        Duration::ZERO
    }
}

/// Jobs that one call makes due have no order among them: of each call, one alone.
fn one_retry_a_call(mut steps: Vec<Step>) -> Vec<Step> {
    for step in &mut steps {
        let Step::Settle(verdicts) = step else {
            continue;
        };
        let is_retry =
            |verdict: &Verdict| matches!(verdict, Verdict::Retry { after, .. } if after.is_zero());
        let retries = verdicts.iter_mut().filter(|(_, verdict)| is_retry(verdict));
        for (_, verdict) in retries.skip(1) {
            *verdict = Verdict::Release;
        }
    }
    steps
}

#[test]
fn model() {
    let Some(server) = server() else {
        return;
    };
    let case = std::sync::atomic::AtomicU32::new(0);
    on_disk(|steps, dedup_window| {
        let case = case.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let server = Arc::clone(&server);
        within_limit(
            one_retry_a_call(steps),
            false,
            async move |steps, reached| {
                let subject = OnServer::open(server, format!("case-{case}"), dedup_window).await;
                let model = Model::new(Some(HOUR), dedup_window);
                compare(subject, model, steps, reached).await;
            },
        );
    });
}
