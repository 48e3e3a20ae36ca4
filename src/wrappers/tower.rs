//! Tower's [`Service`]: a micro-batcher is a service for single jobs, and a service for
//! whole batches can be a processor.

mod in_order;

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tower_service::Service;

use crate::engine::panics::{Call, Shielded, ShieldedVec, rethrow};
use crate::error::JobError;
use crate::handle::JobHandle;
use crate::micro_batch::MicroBatch;
use crate::processor::BatchProcessor;

use in_order::InOrder;

/// Submits each request as a job; its [`JobHandle`] is the response future.
///
/// Readiness belongs to the one clone that was polled, as everywhere in tower.
/// A new clone is not ready, and dropping a clone gives the room that it reserved
/// to the first waiter. A clone that is ready and kept without a call holds its
/// room, one of `queue_capacity`; it does not hold up a stop.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use microbatch::{CancellationToken, MicroBatch};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tower::BoxError> {
/// let squares = MicroBatch::new_running(CancellationToken::new(), |jobs: Vec<u64>| async move {
///     Ok::<_, String>(jobs.iter().map(|job| job * job).collect())
/// });
/// let service = ServiceBuilder::new()
///     .timeout(Duration::from_secs(5))
///     .map_request(|text: &str| text.len() as u64)
///     .service(squares);
///
/// let (two, three) = tokio::join!(service.clone().oneshot("ab"), service.oneshot("abc"));
/// assert_eq!((two?, three?), (4, 9));
/// # Ok(())
/// # }
/// ```
impl<J: Send + 'static, R: Send + 'static> Service<J> for MicroBatch<J, R> {
    type Response = R;
    type Error = JobError;
    type Future = JobHandle<R>;

    /// Reserves room in the queue for the next call; first come, first served,
    /// together with all others that wait for room.
    ///
    /// Polled again, it keeps the room that it reserved, or its position among the
    /// waiters.
    ///
    /// # Errors
    ///
    /// [`JobError::Closed`] if jobs are no longer accepted. It stays so.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), JobError>> {
        // A reservation is not refused by a stop once it has room.
        if self.reservation.is_some() && self.is_closed() {
            self.reservation = None;
            return Poll::Ready(Err(JobError::Closed));
        }
        let mut reservation = self
            .reservation
            .take()
            .unwrap_or_else(|| Box::new(self.reservation()));
        let ready = reservation.poll_ready(cx);
        self.reservation = Some(reservation);
        ready.map_err(|_| JobError::Closed)
    }

    /// Submits the job into the room that was reserved, at once.
    ///
    /// The handle resolves as [`JobError::Closed`] if the micro-batcher was
    /// stopped meanwhile, and as [`JobError::TooHeavy`] for a job that no batch can
    /// hold.
    ///
    /// Without readiness it does not panic. It gives up its position among the
    /// waiters, if it has one, and does what [`submit`](MicroBatch::submit) does:
    /// the handle waits for room.
    fn call(&mut self, job: J) -> JobHandle<R> {
        if let Some(mut reservation) = self.reservation.take() {
            // Room may have been granted since the last poll.
            let granted = reservation.poll_ready(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(Ok(())) = granted {
                return self.submit_into(*reservation, job);
            }
        }
        self.submit(job)
    }
}

/// Processes each batch by one call of a tower [`Service`], so that a bulk
/// service with its layers is a processor.
///
/// Every batch gets a clone of its own, waits until that is ready and calls it.
/// So a service that is not ready keeps the batch in flight, while the next one
/// fills up. Batches wait for readiness and are called one after the other, in
/// order; under `max_in_flight` their responses are awaited side by side. For a
/// service that is not `Clone`, put tower's `Buffer` around it.
///
/// An error of the service, of `poll_ready` or of the call, fails that batch
/// alone, as [`JobError::Failed`], or unchanged if it is a [`JobError`]. A panic
/// does so as [`JobError::Panicked`].
///
/// # Cancel safety
///
/// As for any [`BatchProcessor`]: the clone and its future are dropped if a
/// stop runs out of time.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, MicroBatch, ServiceProcessor};
/// use tower::{ServiceBuilder, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), microbatch::JobError> {
/// let bulk = ServiceBuilder::new()
///     .concurrency_limit(2)
///     .service(service_fn(|names: Vec<&'static str>| async move {
///         Ok::<_, std::io::Error>(names.iter().map(|name| name.len()).collect())
///     }));
/// let lengths: MicroBatch<&str, usize> =
///     MicroBatch::new_running(CancellationToken::new(), ServiceProcessor::new(bulk));
///
/// assert_eq!(lengths.submit("batch").await?, 5);
/// # Ok(())
/// # }
/// ```
pub struct ServiceProcessor<S> {
    /// Locked to clone it, once per batch. Many services, above all boxed ones, are
    /// `Send` but not `Sync`.
    service: Mutex<S>,
    /// Held by a batch until it has called its service.
    order: InOrder,
}

impl<S> ServiceProcessor<S> {
    /// Makes a processor of the service.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch::{CancellationToken, MicroBatch, ServiceProcessor};
    /// use tower::service_fn;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bulk = service_fn(|ids: Vec<u32>| async move {
    ///     Ok::<_, std::io::Error>(ids.iter().map(|id| format!("user {id}")).collect::<Vec<_>>())
    /// });
    /// let users = MicroBatch::new_running(CancellationToken::new(), ServiceProcessor::new(bulk));
    /// assert_eq!(users.submit(7).await?, "user 7");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(service: S) -> Self {
        Self {
            service: Mutex::new(service),
            order: InOrder::new(),
        }
    }
}

impl<S: Clone> ServiceProcessor<S> {
    /// Returns a clone for one batch.
    fn clone_service(&self) -> S {
        let service = self.service.lock();
        service.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<J, R, S> BatchProcessor<J, R> for ServiceProcessor<S>
where
    J: Send + 'static,
    S: Service<Vec<J>, Response = Vec<R>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
{
    type Error = S::Error;

    fn process(&self, jobs: Vec<J>) -> impl Future<Output = Result<Vec<R>, S::Error>> + Send {
        let jobs = ShieldedVec::new(jobs);
        let turn = self.order.enter();
        async move {
            let turn = turn.await;
            let mut service = Shielded::new(self.clone_service());
            poll_fn(|cx| service.get_mut().poll_ready(cx)).await?;
            let call = Call::new(|| service.get_mut().call(jobs.into_vec()));
            // Dropped before the response is awaited, because the clone may hold a permit that
            // other batches need.
            drop(service);
            drop(turn);
            call.await.unwrap_or_else(|message| rethrow(message))
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for ServiceProcessor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceProcessor")
            .field("service", &self.service)
            .finish()
    }
}
