//! What callers do with what they are given: handles, permits, futures.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use microbatch::{Closed, JobError, JobHandle};
use tokio::time::{sleep, timeout};

use super::doubles::{Answer, Task};
use super::scenario::{Caller, Job, Permit, Reserver, Stays};
use super::seen::{Admission, Handle, Outcome, ReservationSeen, Way};
use super::world::{Door, Holds, World};

/// A handle, which tells what becomes of it.
pub(crate) struct Held {
    world: Arc<World>,
    pub(crate) id: usize,
    handle: Option<JobHandle<Answer>>,
    /// What `accepted` said, where it said no.
    refusal: Option<Outcome>,
}

impl Held {
    pub(crate) fn new(world: &Arc<World>, id: usize, handle: JobHandle<Answer>) -> Self {
        Self {
            world: Arc::clone(world),
            id,
            handle: Some(handle),
            refusal: None,
        }
    }

    /// Waits for room.
    async fn accepted(&mut self) -> bool {
        poll_fn(|cx| self.poll_accepted(cx)).await
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(handle) = &mut self.handle else {
            return Poll::Ready(false);
        };
        let result = std::task::ready!(pin!(handle.accepted()).poll(cx));
        match &result {
            Ok(()) => self
                .world
                .with_job(self.id, |job, now| job.accepted_by(now)),
            Err(error) => {
                self.world
                    .with_job(self.id, |job, _| job.admission = Admission::Refused);
                self.refusal = Some(Outcome::from(error));
            }
        }
        Poll::Ready(result.is_ok())
    }

    fn resolve(&mut self, result: Result<Answer, JobError>) {
        self.handle = None;
        let outcome = Outcome::from(&result);
        if self
            .refusal
            .take()
            .is_some_and(|refusal| refusal != outcome)
        {
            self.world
                .blame(format!("job {}: refused, then {outcome:?}", self.id));
        }
        self.world.resolved(self.id, &result);
    }

    /// Waits for the result on a thread without a runtime, when all is over.
    pub(crate) fn wait_blocking(mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        if !handle.is_finished() {
            return self
                .world
                .blame(format!("job {}: all is over, and no answer", self.id));
        }
        let result = handle.blocking_wait();
        self.resolve(result);
    }
}

impl Future for Held {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let id = self.id;
        let Some(handle) = &mut self.handle else {
            return Poll::Ready(());
        };
        let finished = handle.is_finished();
        match Pin::new(handle).poll(cx) {
            Poll::Ready(result) => {
                self.resolve(result);
                Poll::Ready(())
            }
            Poll::Pending => {
                if finished {
                    self.world.blame(format!("job {id}: finished and pending"));
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.handle.is_none() {
            return;
        }
        // It may have been accepted since it was asked about last.
        if self.world.seen().jobs[self.id].admission == Admission::Waiting {
            let _ = self.poll_accepted(&mut Context::from_waker(Waker::noop()));
        }
        self.world
            .with_job(self.id, |job, now| job.handle = Handle::Dropped(now));
        self.handle = None;
    }
}

/// Does with the handle as the caller would, in a task of its own.
fn hold(mut held: Held, caller: Caller) {
    let world = Arc::clone(&held.world);
    if caller.eager {
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = match caller.asks {
            true => held.poll_accepted(cx).map(drop),
            false => held.poll_unpin(cx),
        };
    }
    let task = async move {
        if caller.hesitates > 0 {
            sleep(Duration::from_millis(caller.hesitates)).await;
        }
        let wait = async |held: &mut Held| {
            if caller.asks {
                held.accepted().await;
            }
            held.await;
        };
        match caller.stays {
            Stays::ToTheEnd => wait(&mut held).await,
            Stays::For(ms) => {
                let _ = timeout(Duration::from_millis(ms), wait(&mut held)).await;
            }
            Stays::NotAtAll => {}
            Stays::Beyond => {
                if caller.hesitates == 0 {
                    let _ = wait(&mut held).now_or_never();
                }
                let world = Arc::clone(&held.world);
                world.kept.lock().expect("no panic").push(held);
            }
        }
    };
    world.spawn(Holds::Nothing, task);
}

pub(crate) fn submit(door: &Door, job: Job, caller: Caller) {
    hold(door.submit(job), caller);
}

pub(crate) fn try_submit(door: &Door, job: Job, caller: Caller) {
    if let Some(held) = door.try_submit(job) {
        hold(held, caller);
    }
}

/// Flushes, and notes when that was asked for and when it was done.
pub(crate) fn flush(door: &Door) -> impl Future<Output = ()> + Send + 'static {
    let world = Arc::clone(&door.world);
    let flush = door.micro_batch.flush();
    async move {
        let number = world.asks_to_flush();
        flush.await;
        let now = world.now();
        world.seen().flushes[number].answered = Some(now);
    }
}

/// Shuts down, and notes when that was asked for and what came of it.
pub(crate) fn shutdown(door: &Door) -> impl Future<Output = ()> + Send + 'static {
    let world = Arc::clone(&door.world);
    let shutdown = door.micro_batch.shutdown();
    async move {
        let number = world.asks_to_shut_down();
        let result = shutdown.await;
        let now = world.now();
        world.seen().shutdowns[number].answered = Some((now, result));
    }
}

/// Waits for that future as long as the caller stays.
pub(crate) async fn staying(future: impl Future<Output = ()>, stays: Stays) {
    match stays {
        Stays::ToTheEnd | Stays::Beyond => future.await,
        Stays::For(ms) => {
            let _ = timeout(Duration::from_millis(ms), future).await;
        }
        Stays::NotAtAll => drop(future),
    }
}

/// Submits all, and notes what became of each.
pub(crate) async fn submit_all(door: Door, jobs: Vec<Job>) {
    let world = Arc::clone(&door.world);
    let ids: Arc<Mutex<Vec<usize>>> = Arc::default();
    let made = Arc::clone(&ids);
    let maker = Arc::clone(&world);
    let tasks = jobs.into_iter().map(move |job| {
        let task = maker.make(job, Way::SubmitAll);
        let mut made = made.lock().expect("no panic");
        if let Some(&before) = made.last() {
            // Its turn has come, so the one before has been accepted, or was
            // refused and dropped at once.
            maker.with_job(before, |job, now| {
                if !job.dropped {
                    job.accepted_by(now);
                }
            });
        }
        made.push(task.id);
        maker.with_job(task.id, |job, now| {
            job.entered = Some(now);
            job.admission = Admission::Waiting;
        });
        task
    });
    let mut sending = Sending {
        world: Arc::clone(&world),
        ids,
        all: Some(Box::pin(
            async move { door.micro_batch.submit_all(tasks).await },
        )),
    };
    let results = match &mut sending.all {
        Some(all) => all.await,
        None => Vec::new(),
    };
    let ids = std::mem::take(&mut *sending.ids.lock().expect("no panic"));
    if results.len() != ids.len() {
        world.blame(format!("{} results for jobs {ids:?}", results.len()));
    }
    for (id, result) in ids.into_iter().zip(results) {
        world.resolved(id, &result);
    }
}

/// A `submit_all`, which tells where it stood when it was dropped.
struct Sending {
    world: Arc<World>,
    /// The jobs that it has got to.
    ids: Arc<Mutex<Vec<usize>>>,
    all: Option<BoxFuture<'static, Vec<Result<Answer, JobError>>>>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let ids = self.ids.lock().expect("no panic").clone();
        let Some(&last) = ids.last() else { return };
        let was_there = !self.world.seen().jobs[last].dropped;
        let cancels = self.world.scenario.options.cancel_on_drop;
        self.all = None;
        for id in ids {
            self.world.with_job(id, |job, now| {
                job.handle = Handle::Dropped(now);
                job.admission = match job.admission {
                    // Its job went with its handle, waiting or not.
                    Admission::Waiting if cancels && job.dropped => Admission::Unclear,
                    // Only a job that waits for room goes with its handle.
                    Admission::Waiting if id == last && was_there && job.dropped => {
                        Admission::Refused
                    }
                    Admission::Waiting if id == last && was_there => {
                        return job.accepted_by(now);
                    }
                    Admission::Waiting => Admission::Unclear,
                    admission => admission,
                };
            });
        }
    }
}

/// Waits for room as long as the caller stays.
async fn granted<'a>(door: &'a Door, reserver: Reserver) -> Option<Result<Room<'a>, Closed>> {
    let mut reserve = pin!(door.micro_batch.reserve());
    let polled = match reserver.eager {
        true => reserve.as_mut().now_or_never(),
        false => None,
    };
    if polled.is_some() {
        return polled;
    }
    match reserver.stays {
        Stays::NotAtAll => None,
        Stays::For(ms) => timeout(Duration::from_millis(ms), reserve).await.ok(),
        Stays::ToTheEnd | Stays::Beyond => Some(reserve.await),
    }
}

type Room<'a> = microbatch::Permit<'a, Task, Answer>;

/// Waits for room, and does with it as the caller would.
pub(crate) async fn reserve(door: Door, reserver: Reserver) {
    let Reserver { permit, job, .. } = reserver;
    let world = Arc::clone(&door.world);
    let reserving = Reserving::begin(&world);
    let Some(granted) = granted(&door, reserver).await else {
        return;
    };
    let Ok(granted) = granted else {
        if !door.micro_batch.is_closed() {
            world.blame("a reservation was refused, but all is open");
        }
        return;
    };
    let now = world.now();
    world.seen().reservations[reserving.number].granted = Some(now);
    let held = Permitted::begin(&world);
    match permit {
        Permit::Used { after } | Permit::Unused { after } => {
            if after > 0 {
                sleep(Duration::from_millis(after)).await;
            }
        }
        Permit::TooLate => world.curtain.cancelled().await,
    }
    drop(held);
    if matches!(permit, Permit::Unused { .. }) {
        return drop(granted);
    }
    let task = world.make(job, Way::Permit);
    let id = task.id;
    let open = !door.micro_batch.is_closed();
    let before = door.micro_batch.stats().accepted;
    let handle = granted.submit(task);
    if handle.is_finished() {
        // Its room has gone to the next waiter.
        world.with_job(id, |job, _| job.admission = Admission::Refused);
        if open && !door.is_too_heavy(job) && world.panic_of_the_weigher(id).is_none() {
            world.blame(format!("job {id}: refused in spite of its permit"));
        }
    } else {
        door.submitted(id, before, false);
        if door.micro_batch.stats().accepted != before + 1 {
            world.blame(format!("job {id}: has a permit, and must wait"));
        }
    }
    drop(reserving);
    drop(door);
    Held::new(&world, id, handle).await;
}

/// A caller waits for room, or has it.
struct Reserving {
    world: Arc<World>,
    number: usize,
}

impl Reserving {
    fn begin(world: &Arc<World>) -> Self {
        let asked = world.now();
        world.reserving(|count| *count += 1);
        let mut seen = world.seen();
        let number = seen.reservations.len();
        seen.reservations.push(ReservationSeen {
            asked,
            granted: None,
            left: None,
        });
        Self {
            world: Arc::clone(world),
            number,
        }
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        let now = self.world.now();
        self.world.reserving(|count| *count -= 1);
        self.world.seen().reservations[self.number].left = Some(now);
    }
}

/// A caller holds a permit for certain.
struct Permitted<'a>(&'a World);

impl<'a> Permitted<'a> {
    fn begin(world: &'a World) -> Self {
        world.permits(|count| *count += 1);
        Self(world)
    }
}

impl Drop for Permitted<'_> {
    fn drop(&mut self) {
        self.0.permits(|count| *count -= 1);
    }
}
