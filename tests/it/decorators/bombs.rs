//! Users' code that panics under a decorator: in the drop, clone, hash or
//! comparison of a job, in the drop or clone of a result, in an error, a
//! predicate or a backoff. At most the batch at hand fails, no caller is told
//! that what was processed has failed, and nothing aborts.

#[cfg(feature = "retry")]
mod retry_items;

use std::hash::{Hash, Hasher};
use std::thread;
use std::time::Duration;

use microbatch::{BatchProcessorExt, Elapsed, JobError, MicroBatch};

use super::{batcher, cause};
use crate::support::{Explosive, soon};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Nowhere,
    Clone,
    Drop,
    /// Clones are harmless and have harmless clones.
    #[cfg_attr(not(feature = "retry"), allow(dead_code))]
    DropOfOriginal,
    /// The original is harmless.
    DropOfClone,
    Hash,
    Eq,
}

/// A job or result that panics there.
#[derive(Debug)]
struct Bomb(u32, At);

fn harmless(number: u32) -> Bomb {
    Bomb(number, At::Nowhere)
}

impl Clone for Bomb {
    fn clone(&self) -> Self {
        assert!(self.1 != At::Clone, "clone");
        Self(
            self.0,
            match self.1 {
                At::DropOfOriginal => At::Nowhere,
                At::DropOfClone => At::Drop,
                at => at,
            },
        )
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        let explodes = matches!(self.1, At::Drop | At::DropOfOriginal);
        assert!(!explodes || thread::panicking(), "drop");
    }
}

impl Hash for Bomb {
    fn hash<H: Hasher>(&self, state: &mut H) {
        assert!(self.1 != At::Hash, "hash");
        self.0.hash(state);
    }
}

impl PartialEq for Bomb {
    fn eq(&self, other: &Self) -> bool {
        assert!(self.1 != At::Eq && other.1 != At::Eq, "comparison");
        self.0 == other.0
    }
}

impl Eq for Bomb {}

/// Returns the numbers, and lets go of the jobs without dropping them: what they
/// do then would be the processor's own panic.
async fn numbers(jobs: Vec<Bomb>) -> Result<Vec<u32>, String> {
    let numbers = jobs.iter().map(|job| job.0).collect();
    jobs.into_iter().for_each(std::mem::forget);
    Ok(numbers)
}

/// An error that panics when it is dropped, or when it is boxed.
#[derive(Debug)]
enum Touchy {
    Drop,
    Into,
    /// Harmless; says which jobs are in the batch.
    Jobs(Vec<u32>),
}

impl Drop for Touchy {
    fn drop(&mut self) {
        // Also while another panic is under way, which aborts.
        assert!(!matches!(self, Self::Drop), "drop of the error");
    }
}

impl From<Touchy> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: Touchy) -> Self {
        assert!(!matches!(error, Touchy::Into), "conversion");
        format!("{error:?}").into()
    }
}

/// Submits a batch and awaits its answers.
async fn all<J: Send + 'static, R: Send + 'static>(
    batcher: &MicroBatch<J, R>,
    jobs: impl IntoIterator<Item = J>,
) -> Vec<Result<R, JobError>> {
    soon(batcher.submit_all(jobs)).await
}

/// The results of a batch that succeeds.
async fn good<J: Send + 'static, R: Send + 'static>(
    batcher: &MicroBatch<J, R>,
    jobs: impl IntoIterator<Item = J>,
) -> Vec<R> {
    let results = all(batcher, jobs).await.into_iter();
    results.map(|result| result.expect("succeeds")).collect()
}

/// Fails unless every job of the batch has this panic as its result.
async fn blown<J: Send + 'static, R: Send + 'static>(
    batcher: &MicroBatch<J, R>,
    jobs: impl IntoIterator<Item = J>,
    panic: &str,
) {
    for result in all(batcher, jobs).await {
        let error = result.err().expect("the batch fails");
        assert!(
            matches!(&error, JobError::Panicked(message) if **message == *panic),
            "{error:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn results_stand_whatever_the_drop_of_the_future_does() {
    let explosive = |jobs: Vec<u32>| Explosive(Some(jobs));
    let forever = Duration::MAX;
    assert_eq!(
        good(&batcher(2, explosive.timeout(forever)), [1, 2]).await,
        [1, 2]
    );
    assert_eq!(
        good(&batcher(2, explosive.coalesce()), [1, 2]).await,
        [1, 2]
    );
    for result in good(&batcher(2, explosive.bisect()), [1, 2]).await {
        result.expect("succeeds");
    }
    #[cfg(feature = "retry")]
    {
        let retried = explosive.retry(std::iter::empty());
        assert_eq!(good(&batcher(2, retried), [1, 2]).await, [1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_panics_when_dropped_at_its_timeout_has_run_out_of_time() {
    let sleepy = |jobs: Vec<Bomb>| async move {
        if jobs[0].1 == At::Drop {
            std::future::pending::<()>().await;
        }
        numbers(jobs).await
    };
    let batcher = batcher(2, sleepy.timeout(Duration::from_secs(1)));
    for result in all(&batcher, [Bomb(1, At::Drop), harmless(2)]).await {
        let Err(JobError::Failed(cause)) = result else {
            panic!("{result:?}");
        };
        assert!(cause.is::<Elapsed>());
    }
    assert_eq!(good(&batcher, [harmless(1), harmless(2)]).await, [1, 2]);
}

/// All eight got the panic, although the first four had been processed.
#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_cloned_is_left_out_of_the_search() {
    // Fails while there are more than four, so that halves are cloned as well.
    let few = |jobs: Vec<Bomb>| async move {
        match jobs.len() > 4 {
            true => Err("too many".to_owned()),
            false => numbers(jobs).await,
        }
    };
    let batcher = batcher(8, few.bisect());
    for poison in [
        vec![0],
        vec![7],
        vec![2, 5],
        vec![0, 1, 2, 3],
        (0..7).collect(),
    ] {
        let at = |job| match poison.contains(&job) {
            true => At::Clone,
            false => At::Nowhere,
        };
        let results = good(&batcher, (0..8).map(|job| Bomb(job, at(job)))).await;
        for (job, result) in (0..).zip(results) {
            match result {
                Ok(number) => assert!(number == job && !poison.contains(&job)),
                Err(JobError::Panicked(message)) => {
                    assert!(*message == *"clone" && poison.contains(&job));
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    let results = good(&batcher, (0..8).map(|job| Bomb(job, At::Clone))).await;
    let blown = |result: &Result<u32, _>| matches!(result, Err(JobError::Panicked(_)));
    assert!(results.iter().all(blown), "{results:?}");
}

/// The first half of a batch is processed when the clone of a job in the second
/// panics, which can be cloned once and no more.
#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_late_fails_its_job_alone() {
    #[derive(Debug)]
    struct Once(u32, bool);
    impl Clone for Once {
        fn clone(&self) -> Self {
            assert!(self.0 != 6 || !self.1, "clone of a clone");
            Self(self.0, true)
        }
    }
    let small = |jobs: Vec<Once>| async move {
        match jobs.len() > 4 {
            true => Err("too many"),
            false => Ok(jobs.iter().map(|job| job.0).collect()),
        }
    };
    let batcher = batcher(8, small.bisect());
    let results = good(&batcher, (0..8).map(|job| Once(job, false))).await;
    for (job, result) in (0..).zip(results) {
        assert_eq!(result.ok(), (job != 6).then_some(job));
    }
}

#[tokio::test(start_paused = true)]
async fn the_drop_of_kept_jobs_fails_no_search() {
    let batcher = batcher(4, numbers.bisect());
    let jobs = (0..4).map(|job| Bomb(job, At::DropOfClone));
    let results = good(&batcher, jobs).await.into_iter();
    assert!(results.map(Result::unwrap).eq(0..4));
}

#[tokio::test(start_paused = true)]
async fn results_of_a_wrong_number_may_panic_when_bisect_drops_them() {
    let double = |jobs: Vec<u32>| async move {
        let at = |job| match jobs.len() {
            1 => harmless(job),
            _ => Bomb(job, At::Drop),
        };
        let mut results: Vec<_> = jobs.iter().map(|job| at(*job)).collect();
        if jobs.len() > 1 {
            results.push(at(9));
        }
        Ok::<_, String>(results)
    };
    let results = good(&batcher(4, double.bisect()), 0..4).await.into_iter();
    assert!(results.map(|result| result.expect("alone").0).eq(0..4));
}

#[tokio::test(start_paused = true)]
async fn results_may_panic_when_a_search_ends_early() {
    // Has the results of the first half, and hangs with the second.
    let half = |jobs: Vec<u32>| async move {
        match jobs[..] {
            [0, 1] => Ok(jobs.iter().map(|job| Bomb(*job, At::Drop)).collect()),
            [2, 3] => std::future::pending().await,
            _ => Err("too many"),
        }
    };
    let batcher = batcher(4, half.bisect().timeout(Duration::from_secs(1)));
    for result in all(&batcher, 0..4).await {
        let error = result.expect_err("too slow");
        assert_eq!(cause(&error), "the batch took longer than 1s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_predicate_that_panics_fails_its_part_of_the_search() {
    let poison = |jobs: Vec<u32>| async move {
        match jobs.contains(&3) {
            true => Err(Touchy::Jobs(jobs)),
            false => Ok(jobs),
        }
    };
    let splits = |error: &Touchy| {
        assert!(
            !matches!(error, Touchy::Jobs(jobs) if *jobs == [2, 3]),
            "predicate"
        );
        true
    };
    let batcher = batcher(4, poison.bisect().when(splits));
    let results = good(&batcher, 0..4).await;
    assert!(matches!(results[..2], [Ok(0), Ok(1)]));
    for result in &results[2..] {
        assert!(matches!(result, Err(JobError::Panicked(message)) if **message == *"predicate"));
    }
    // The error is dropped after its predicate has panicked, and panics as well.
    let fails = |_: Vec<u32>| async { Err::<Vec<u32>, _>(Touchy::Drop) };
    let panics = |_: &Touchy| -> bool { panic!("predicate") };
    let batcher = super::batcher(2, fails.bisect().when(panics));
    for result in good(&batcher, [1, 2]).await {
        assert!(matches!(result, Err(JobError::Panicked(message)) if *message == *"predicate"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_boxed_fails_its_part_of_the_search() {
    let poison = |jobs: Vec<u32>| async move {
        match jobs.contains(&3) {
            true => Err(Touchy::Into),
            false => Ok(jobs),
        }
    };
    let results = good(&batcher(4, poison.bisect()), 0..4).await;
    assert!(matches!(results[..3], [Ok(0), Ok(1), Ok(2)]));
    assert!(matches!(&results[3], Err(JobError::Panicked(message)) if **message == *"conversion"));
    // Elsewhere it fails its batch.
    blown(
        &batcher(2, poison.timeout(Duration::MAX)),
        [3, 4],
        "conversion",
    )
    .await;
    blown(&batcher(2, poison.coalesce()), [3, 4], "conversion").await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_under_decorators_stays_one_and_drops_what_they_keep() {
    let panics = |jobs: Vec<Bomb>| async move {
        jobs.into_iter().for_each(std::mem::forget);
        panic!("processor") as Result<Vec<u32>, String>
    };
    let jobs = || (0..4).map(|job| Bomb(job, At::DropOfClone));
    let batcher = batcher(4, panics.coalesce().timeout(Duration::MAX).bisect());
    for result in good(&batcher, jobs()).await {
        assert!(matches!(result, Err(JobError::Panicked(message)) if *message == *"processor"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_hashed_or_compared_equals_no_other() {
    let batcher = batcher(4, numbers.coalesce());
    for at in [At::Hash, At::Eq] {
        let jobs = [harmless(1), Bomb(1, at), harmless(1), Bomb(2, at)];
        assert_eq!(good(&batcher, jobs).await, [1, 1, 1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_drop_of_equal_jobs_fails_no_other() {
    let batcher = batcher(4, numbers.coalesce());
    let jobs = (0..4).map(|_| Bomb(1, At::Drop));
    assert_eq!(good(&batcher, jobs).await, [1; 4]);
    // Nor is there any need to clone a job.
    let jobs = (0..4).map(|job| Bomb(job % 2, At::Clone));
    assert_eq!(good(&batcher, jobs).await, [0, 1, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn only_the_results_of_equal_jobs_are_cloned() {
    let at = |at| {
        move |jobs: Vec<u32>| async move {
            let results = jobs.iter().map(|job| match job {
                7 => Bomb(7, at),
                job => harmless(*job),
            });
            Ok::<_, String>(results.collect::<Vec<_>>())
        }
    };
    let batcher = batcher(3, at(At::Clone).coalesce());
    let results = good(&batcher, [7, 1, 1]).await;
    assert!(results.iter().map(|result| result.0).eq([7, 1, 1]));
    blown(&batcher, [7, 7, 1], "clone").await;
    let results = good(&batcher, [1, 7, 1]).await;
    assert!(results.iter().map(|result| result.0).eq([1, 7, 1]));
    // The clone that panics finds other results in hand whose drops panic.
    let two = |jobs: Vec<u32>| async move {
        let at = |job: &u32| match job {
            7 => At::Clone,
            _ => At::Drop,
        };
        Ok::<_, String>(jobs.iter().map(|job| Bomb(*job, at(job))).collect())
    };
    blown(&super::batcher(4, two.coalesce()), [1, 2, 7, 7], "clone").await;
}

#[tokio::test(start_paused = true)]
async fn results_of_a_wrong_number_may_panic_when_coalesce_drops_them() {
    let many =
        |_: Vec<u32>| async { Ok::<_, String>((0..3).map(|job| Bomb(job, At::Drop)).collect()) };
    for result in all(&batcher(2, many.coalesce()), [1, 2]).await {
        let error = result.expect_err("one too many");
        let (expected, actual) = (2, 3);
        assert!(
            matches!(error, JobError::ResultCount { expected: e, actual: a } if (e, a) == (expected, actual)),
            "{error:?}"
        );
    }
}

#[cfg(feature = "retry")]
mod retry {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};

    use tracing_subscriber::layer::{Layer, SubscriberExt};

    use super::*;

    /// Pauses that panic there, or end after the first.
    #[derive(Debug)]
    pub(super) struct Pauses(At, bool);

    pub(super) fn pauses(at: At) -> Pauses {
        Pauses(at, false)
    }

    impl Clone for Pauses {
        fn clone(&self) -> Self {
            assert!(self.0 != At::Clone, "clone of the backoff");
            Self(self.0, true)
        }
    }

    impl Iterator for Pauses {
        type Item = Duration;

        fn next(&mut self) -> Option<Duration> {
            assert!(self.0 != At::Hash, "backoff");
            std::mem::take(&mut self.1).then_some(Duration::from_secs(1))
        }
    }

    impl Drop for Pauses {
        fn drop(&mut self) {
            // The processor's own is none of the decorator's business.
            let explodes = self.0 == At::Drop && self.1;
            assert!(!explodes || thread::panicking(), "drop of the backoff");
        }
    }

    /// Fails the first batch, with such an error.
    fn once<E>(
        error: impl Fn() -> E + Clone + Send + Sync + 'static,
    ) -> impl microbatch::BatchProcessor<Bomb, u32, Error = E>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let failed = Arc::new(AtomicBool::new(false));
        move |jobs: Vec<Bomb>| {
            let fails = !failed.swap(true, Ordering::SeqCst);
            let error = error.clone();
            async move {
                let numbers = numbers(jobs).await.expect("never fails");
                if fails { Err(error()) } else { Ok(numbers) }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_drop_of_kept_jobs_fails_no_batch_that_was_processed() {
        let batcher = batcher(3, once(|| "busy").retry(pauses(At::Nowhere)));
        for _ in 0..2 {
            let jobs = (0..3).map(|job| Bomb(job, At::DropOfOriginal));
            assert_eq!(good(&batcher, jobs).await, [0, 1, 2]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clone_that_panics_fails_its_batch_alone() {
        let batcher = batcher(4, numbers.retry(pauses(At::Nowhere)));
        let jobs = [
            At::DropOfClone,
            At::DropOfClone,
            At::DropOfOriginal,
            At::Clone,
        ];
        let jobs = (0..4).map(|job| Bomb(job, jobs[job as usize]));
        blown(&batcher, jobs, "clone").await;
        assert_eq!(good(&batcher, (0..4).map(harmless)).await, [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_panics_when_dropped_is_retried() {
        let batcher = batcher(1, once(|| Touchy::Drop).retry(pauses(At::Nowhere)));
        assert_eq!(good(&batcher, [harmless(1)]).await, [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_predicate_that_panics_fails_its_batch_alone() {
        let panics = |_: &Touchy| -> bool { panic!("predicate") };
        let retried = once(|| Touchy::Drop).retry(pauses(At::Nowhere));
        let batcher = batcher(2, retried.when(panics));
        let jobs = [1, 2].map(|job| Bomb(job, At::DropOfOriginal));
        blown(&batcher, jobs, "predicate").await;
        assert_eq!(good(&batcher, [harmless(1), harmless(2)]).await, [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backoff_that_panics_fails_its_batch_only_when_it_is_asked() {
        for (at, panic) in [(At::Hash, "backoff"), (At::Clone, "clone of the backoff")] {
            let batcher = batcher(2, once(|| Touchy::Drop).retry(pauses(at)));
            let jobs = [1, 2].map(|job| Bomb(job, At::DropOfOriginal));
            blown(&batcher, jobs, panic).await;
            assert_eq!(good(&batcher, [harmless(1), harmless(2)]).await, [1, 2]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_drop_of_a_backoff_fails_no_batch() {
        let batcher = batcher(1, once(|| "busy").retry(pauses(At::Drop)));
        // One is dropped before it has given its pause, and one after.
        for _ in 0..2 {
            assert_eq!(good(&batcher, [harmless(1)]).await, [1]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_dropped_in_its_pause_may_panic_in_every_drop() {
        let retried = once(|| Touchy::Drop).retry(pauses(At::Drop));
        let batcher = batcher(2, retried.timeout(Duration::from_millis(500)));
        let jobs = [1, 2].map(|job| Bomb(job, At::DropOfOriginal));
        for result in all(&batcher, jobs).await {
            let error = result.expect_err("too slow");
            assert_eq!(cause(&error), "the batch took longer than 500ms");
        }
        assert_eq!(good(&batcher, [harmless(1), harmless(2)]).await, [1, 2]);
    }

    /// Panics on what the decorator says.
    struct Deaf(&'static str, Arc<AtomicBool>);

    impl<S: tracing::Subscriber> Layer<S> for Deaf {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            if event.metadata().target().ends_with(self.0) {
                self.1.store(true, Ordering::SeqCst);
                panic!("subscriber");
            }
        }
    }

    /// Returns a subscriber that panics on what the module says, and whether it has.
    pub(super) fn deaf(
        module: &'static str,
    ) -> (impl tracing::Subscriber + Send + Sync, Arc<AtomicBool>) {
        // With a second one, a test without any does not decide for all whether an event
        // is of interest.
        static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| tracing::Dispatch::new(tracing_subscriber::registry()));
        let heard = Arc::new(AtomicBool::new(false));
        let layer = Deaf(module, Arc::clone(&heard));
        (tracing_subscriber::registry().with(layer), heard)
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_panics_does_not_stop_a_retry() {
        let (subscriber, heard) = deaf("retry");
        let _default = tracing::subscriber::set_default(subscriber);
        let batcher = batcher(1, once(|| "busy").retry(pauses(At::Nowhere)));
        assert_eq!(good(&batcher, [harmless(1)]).await, [1]);
        assert!(heard.load(Ordering::SeqCst));
    }
}
