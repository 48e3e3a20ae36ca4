//! Drives the real `MicroBatch` through a scenario, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use microbatch::{
    BatchStorage, MemoryStorage, MicroBatch, MicroBatchBuilder, ReconfigureError, StartError,
};
use tokio::runtime::{Builder, Handle};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::callers::{self, Held};
use super::doubles::{Answer, Cupboard, Processor, Task, hook};
use super::model;
use super::scenario::{Change, Ending, Job, Pause, Scenario, Start, Step, Storage};
use super::seen::{Limits, Outcome, Seen};
use super::start::Loop;
use super::world::{Door, Holds, World};

/// No scenario takes longer, in virtual time.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns what was seen, or all that went wrong.
pub(crate) fn run(scenario: &Scenario) -> Result<Seen, String> {
    let world = World::new(scenario);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let in_time = runtime.block_on(async { timeout(LIMIT, drive(&world)).await.is_ok() });
    world.leave_the_runtime();
    drop(runtime);
    if in_time {
        when_all_is_over(&world);
        nothing_is_left(&world);
    }
    world.drop_all();
    let end = world.now();
    let mut seen = world.seen();
    seen.end = end;
    let mut wrong = std::mem::take(&mut seen.blames);
    if in_time {
        wrong.extend(model::judge(scenario, &seen));
    } else {
        wrong.insert(0, format!("hung: {}", unanswered(&seen)));
    }
    match wrong.is_empty() {
        true => Ok(std::mem::take(&mut *seen)),
        false => Err(wrong.join("\n")),
    }
}

fn unanswered(seen: &Seen) -> String {
    let jobs = seen.jobs.iter().enumerate();
    let open = jobs.filter(|(_, job)| job.handle == super::seen::Handle::Held);
    let jobs: Vec<_> = open.map(|(id, job)| (id, job.admission)).collect();
    let flushes = seen.flushes.iter().filter(|flush| flush.answered.is_none());
    let shutdowns = seen.shutdowns.iter();
    let shutdowns = shutdowns.filter(|shutdown| shutdown.answered.is_none());
    format!(
        "jobs {jobs:?}, {} flushes and {} shutdowns without an answer; {:?}",
        flushes.count(),
        shutdowns.count(),
        seen.loop_
    )
}

async fn drive(world: &Arc<World>) {
    world.now();
    build(world);
    for (step, pause) in &world.scenario.steps {
        take(world, step);
        observe(world);
        match *pause {
            Pause::None => {}
            Pause::Yields(times) => {
                for _ in 0..times {
                    yield_now().await;
                }
            }
            Pause::Sleeps(ms) => {
                settle(world).await;
                look_at_rest(world);
                sleep(Duration::from_millis(ms)).await;
            }
        }
        observe(world);
    }
    end(world).await;
}

fn build(world: &Arc<World>) {
    let options = &world.scenario.options;
    let ms = |ms: Option<u64>| ms.map_or(Duration::MAX, Duration::from_millis);
    let mut builder = MicroBatch::builder(Processor::new(world))
        .max_batch_size(options.max_batch_size)
        .interval(ms(options.interval))
        .queue_capacity(options.queue_capacity)
        .max_in_flight(options.max_in_flight)
        .flush_when_idle(options.flush_when_idle)
        .cancel_on_drop(options.cancel_on_drop)
        .shutdown_timeout(ms(options.shutdown_timeout))
        .name("simulation");
    if options.flush_cost.is_some() {
        builder = builder.flush_cost(ms(options.flush_cost));
    }
    if let Some(limit) = options.max_batch_weight {
        let part = Arc::clone(&world.parts);
        builder = builder.max_batch_weight(limit, move |task: &Task| {
            let _part = &part;
            task.weigh()
        });
    }
    if options.hook {
        builder = builder.on_batch(hook(world));
    }
    if let Some(semaphore) = &world.semaphore {
        builder = builder.permits(Arc::clone(semaphore));
    }
    match options.storage {
        Storage::Default => finish(world, builder),
        Storage::Memory => finish(world, builder.storage(MemoryStorage::new())),
        _ => finish(world, builder.storage(Cupboard::new(world))),
    }
}

fn finish<S>(world: &Arc<World>, builder: MicroBatchBuilder<Task, Answer, Processor, S>)
where
    S: BatchStorage<Task, Answer>,
{
    match world.scenario.options.start {
        Start::Running => {
            let running = builder.build_running(world.cancel.clone());
            world.open(running.expect("valid options"));
            let now = world.now();
            let mut seen = world.seen();
            seen.loop_.started = true;
            seen.loop_.began = Some(now);
        }
        Start::Spawned { polls } => {
            world.open(builder.build().expect("valid options"));
            start(world, polls);
        }
        Start::NotYet => world.open(builder.build().expect("valid options")),
    }
}

fn take(world: &Arc<World>, step: &Step) {
    let door = match step {
        Step::Cancel => return cancel(world),
        Step::DropCaller(number) => return world.abort_one(*number),
        Step::GrantPermits(count) => return grant_permits(world, *count),
        Step::TakePermit => return take_permit(world),
        Step::CloseSemaphore => return close_semaphore(world),
        Step::DropClone { even_the_last } => {
            let mut doors = world.doors();
            let door = match doors.len() {
                1 if !even_the_last => None,
                _ => doors.pop(),
            };
            drop(doors);
            return drop(door);
        }
        _ => world.door(),
    };
    let Some(door) = door else { return };
    match step.clone() {
        Step::Submit { times, job, caller } => {
            for _ in 0..times {
                callers::submit(&door, job, caller);
            }
        }
        Step::TrySubmit { job, caller } => callers::try_submit(&door, job, caller),
        Step::Reserve(reserver) => {
            world.spawn(Holds::Door, callers::reserve(door, reserver));
        }
        Step::SubmitAll { jobs, stays } => {
            let all = callers::submit_all(door, jobs);
            world.spawn(Holds::Door, callers::staying(all, stays));
        }
        Step::Flush(stays) => {
            let flush = callers::flush(&door);
            world.spawn(Holds::Nothing, callers::staying(flush, stays));
        }
        Step::Shutdown(stays) => {
            let shutdown = callers::shutdown(&door);
            drop(door);
            world.spawn(Holds::Nothing, callers::staying(shutdown, stays));
        }
        Step::Start { polls } => start(world, polls),
        Step::Clone => world.doors().push(door),
        Step::Reconfigure(changes) => reconfigure(&door, changes),
        Step::Pause => set_paused(&door, true),
        Step::Resume => set_paused(&door, false),
        Step::Nothing
        | Step::Cancel
        | Step::DropClone { .. }
        | Step::DropCaller(_)
        | Step::GrantPermits(_)
        | Step::TakePermit
        | Step::CloseSemaphore => {}
    }
}

fn reconfigure(door: &Door, changes: [Change; 2]) {
    let world = &door.world;
    let before = door.micro_batch.settings();
    let mut should = before;
    changes.iter().for_each(|change| change.make(&mut should));
    let zero = should.max_batch_size == 0
        || should.interval.is_zero()
        || should.max_in_flight == 0
        || should.max_batch_weight == 0;
    if should.flush_cost == Some(Duration::ZERO) {
        should.flush_cost = None;
        should.flush_when_idle = true;
    }
    if world.scenario.options.max_batch_weight.is_none() {
        should.max_batch_weight = usize::MAX;
    }
    let closed = door.micro_batch.is_closed();
    let result = door.micro_batch.reconfigure(|settings| {
        changes.iter().for_each(|change| change.make(settings));
    });
    let right = match &result {
        Ok(settings) => !closed && !zero && *settings == should,
        Err(ReconfigureError::Invalid(_)) => zero && !closed,
        Err(ReconfigureError::Closed) => closed,
    };
    let now = door.micro_batch.settings();
    if !right || now != *result.as_ref().unwrap_or(&before) {
        world.blame(format!("changed to {result:?} by {changes:?}; {now:?}"));
    }
    let at = world.now();
    match result {
        Ok(settings) => world.seen().limits.push((at, Limits::from(settings))),
        Err(_) => world.seen().invalid_changes += 1,
    }
}

fn set_paused(door: &Door, paused: bool) {
    let world = &door.world;
    match paused {
        true => door.micro_batch.pause(),
        false => door.micro_batch.resume(),
    }
    let closed = door.micro_batch.is_closed();
    if door.micro_batch.is_paused() != (paused && !closed) {
        world.blame(format!("paused: {paused}, and is not"));
    }
    if !closed {
        let now = world.now();
        world.seen().pauses.push((now, paused));
    }
}

fn grant_permits(world: &World, count: usize) {
    let Some(semaphore) = &world.semaphore else {
        return;
    };
    semaphore.add_permits(count);
    let now = world.now();
    world
        .seen()
        .permits
        .push((now, isize::try_from(count).unwrap_or(isize::MAX)));
}

fn take_permit(world: &World) {
    let Some(semaphore) = &world.semaphore else {
        return;
    };
    let Ok(permit) = semaphore.try_acquire() else {
        return;
    };
    permit.forget();
    let now = world.now();
    world.seen().permits.push((now, -1));
}

fn close_semaphore(world: &World) {
    let Some(semaphore) = &world.semaphore else {
        return;
    };
    semaphore.close();
    let now = world.now();
    world.seen().semaphore_closed.get_or_insert(now);
}

fn start(world: &Arc<World>, polls: Option<usize>) {
    let Some(door) = world.door() else { return };
    let seen = world.seen();
    let started = seen.loop_.started;
    let skipped = !started && seen.closed.is_some();
    drop(seen);
    if !started && !skipped {
        let loop_ = Loop::new(&door, polls);
        drop(door);
        let task = world.spawn(Holds::Nothing, loop_);
        *world.loop_task.lock().expect("no panic") = Some(task);
        return;
    }
    let second = door.micro_batch.start(world.cancel.clone());
    drop(door);
    match second.now_or_never() {
        Some(Err(StartError::AlreadyStarted)) if started => {}
        Some(Ok(())) if skipped => {}
        result => world.blame(format!("a start that has nothing to start: {result:?}")),
    }
}

fn cancel(world: &Arc<World>) {
    let now = world.now();
    world.seen().cancelled.get_or_insert(now);
    world.cancel.cancel();
}

/// Checks what must be true between any two steps.
fn observe(world: &Arc<World>) {
    let Some(door) = world.door() else { return };
    door.observe();
    let running = door.micro_batch.is_running();
    let seen = world.seen();
    let loop_ = &seen.loop_;
    let over = loop_.ended.is_some() || loop_.cut_short.is_some();
    // Of a loop that it did not start itself the world sees no end.
    let may_end = world.scenario.options.start == Start::Running && seen.stopped().is_some();
    let right = match running {
        true => loop_.started && !over,
        false => !loop_.started || over || may_end,
    };
    drop(seen);
    if !right {
        world.blame(format!("is_running() is {running}"));
    }
}

/// Lets the others go on until nothing happens any more but that time passes.
async fn settle(world: &World) {
    loop {
        let before = world.now();
        for _ in 0..8 {
            yield_now().await;
        }
        if world.now().tick == before.tick + 1 {
            return;
        }
    }
}

/// Checks what must be true when everybody waits.
fn look_at_rest(world: &World) {
    let Some(door) = world.door() else { return };
    let options = &world.scenario.options;
    let stats = door.micro_batch.stats();
    let permits = world.permitted();
    if stats.waiting > 0 && stats.queued + permits < options.queue_capacity {
        world.blame(format!("wait in vain: {stats:?}, {permits} permits"));
    }
    let seen = world.seen();
    let running = seen.loop_.began.is_some() && seen.loop_.cut_short.is_none();
    let drains = seen.stopped().is_some();
    let flushes = seen.flushes.iter().any(|flush| flush.answered.is_none());
    let paused = seen.pauses.last().is_some_and(|(_, paused)| *paused);
    let permits_free = seen.permits_at(u64::MAX).checked_sub(seen.processing);
    let limits = seen.limits_at(u64::MAX);
    drop(seen);
    if door.micro_batch.is_paused() != (paused && !door.micro_batch.is_closed()) {
        world.blame(format!("is_paused() is not {paused}"));
    }
    let available = world.semaphore.as_ref();
    let available = available.map(|semaphore| semaphore.available_permits());
    if available.is_some() && available != permits_free {
        world.blame(format!("{available:?} permits instead of {permits_free:?}"));
    }
    let takes_up = running && !drains && !flushes && options.storage.is_plain();
    let has_room = options.max_batch_weight.is_none() && stats.pending < limits.max_batch_size;
    if takes_up && has_room && stats.waiting > 0 && stats.queued > 0 {
        world.blame(format!("left in the queue: {stats:?}, {permits} permits"));
    }
}

/// Brings the run to its end by the means of the scenario, and by a shutdown
/// if that is not enough.
async fn end(world: &Arc<World>) {
    match world.scenario.ending {
        Ending::DropRuntime => return,
        Ending::Shutdown => {}
        Ending::Cancel => {
            cancel(world);
            let began = world.seen().loop_.started;
            while began
                && world
                    .door()
                    .is_some_and(|door| door.micro_batch.is_running())
            {
                sleep(Duration::from_millis(1)).await;
            }
        }
        Ending::DropAll => {
            world.drop_doors();
        }
        Ending::DropStart => {
            let task = world.loop_task.lock().expect("no panic").take();
            if let Some(task) = task {
                task.abort();
                while !task.is_finished() {
                    yield_now().await;
                }
                observe(world);
            }
        }
    }
    if let Some(door) = world.door() {
        let shutdown = callers::shutdown(&door);
        drop(door);
        shutdown.await;
        observe(world);
        is_over(world);
    } else {
        // Who holds a clone and waits before any start would wait for ever.
        world.abort_holders_of_doors();
    }
    world.curtain.cancel();
    world.join_tasks().await;
    // The loop was perhaps not started by a task of the world's.
    while Handle::current().metrics().num_alive_tasks() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    if let Some(door) = world.door() {
        closed_for_good(&door);
    }
}

/// Checks what a completed shutdown promises.
fn is_over(world: &World) {
    let Some(door) = world.door() else { return };
    if door.micro_batch.is_running() || !door.micro_batch.is_closed() {
        world.blame("shut down, but running or open");
    }
    let processing = world.seen().processing;
    if processing > 0 {
        world.blame(format!("shut down, but {processing} batches are alive"));
    }
}

/// Checks how a `MicroBatch` behaves that has ended.
fn closed_for_good(door: &Door) {
    let world = &door.world;
    door.observe();
    let id = {
        let mut held = door.submit(Job::default());
        let id = held.id;
        if (&mut held).now_or_never().is_none() {
            world.blame("all is over, and a job has no answer");
        }
        id
    };
    let answer = world.seen().jobs[id].handle.clone();
    if !matches!(answer, super::seen::Handle::Resolved(_, Outcome::Closed)) {
        world.blame(format!("all is over, and a job is told {answer:?}"));
    }
    if door.try_submit(Job::default()).is_some() {
        world.blame("all is over, and a job was let in");
    }
    if !matches!(door.micro_batch.reserve().now_or_never(), Some(Err(_))) {
        world.blame("all is over, and there is a permit");
    }
    if door.micro_batch.flush().now_or_never().is_none() {
        world.blame("all is over, and a flush waits");
    }
    if callers::shutdown(door).now_or_never().is_none() {
        world.blame("all is over, and a shutdown waits");
    }
    is_over(world);
    let stats = door.micro_batch.stats();
    world.seen().stats = Some(stats);
}

/// Observes what has outlived the runtime.
fn when_all_is_over(world: &Arc<World>) {
    if let Some(door) = world.door() {
        // For one that was never started this is the end.
        if callers::shutdown(&door).now_or_never().is_none() {
            world.blame("the runtime is gone, and a shutdown waits");
        }
        closed_for_good(&door);
    }
    let kept = std::mem::take(&mut *world.kept.lock().expect("no panic"));
    kept.into_iter().for_each(Held::wait_blocking);
    if let Some(door) = world.door() {
        let stats = door.micro_batch.stats();
        world.seen().stats = Some(stats);
    }
}

/// Checks that nothing is left alive.
fn nothing_is_left(world: &Arc<World>) {
    world.drop_all();
    let parts = Arc::strong_count(&world.parts) - 1;
    let seen = world.seen();
    let jobs = seen.jobs.iter().filter(|job| !job.dropped).count();
    let (processing, answers) = (seen.processing, seen.answers_alive);
    let permits = seen.permits_at(u64::MAX);
    drop(seen);
    let available = world.semaphore.as_ref();
    let available = available.map(|semaphore| semaphore.available_permits());
    if available.is_some_and(|available| available != permits) {
        world.blame(format!("{available:?} of {permits} permits are back"));
    }
    if (jobs, answers, processing, parts) != (0, 0, 0, 0) {
        world.blame(format!(
            "left alive: {jobs} jobs, {answers} answers, {processing} batches, {parts} parts"
        ));
    }
}
