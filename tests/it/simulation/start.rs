//! The future of `start`, in hands that count how often it is polled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use microbatch::StartError;

use super::world::{Door, World};

/// A loop that is polled more often than that has nothing to do and does not
/// wait.
const TOO_MANY_POLLS: usize = 2_000;

/// Counts how often the loop is polled, and drops it after so many polls.
pub(crate) struct Loop {
    world: Arc<World>,
    run: Option<BoxFuture<'static, Result<(), StartError>>>,
    left: Option<usize>,
}

impl Loop {
    /// Starts the worker, which was not started before.
    pub(crate) fn new(door: &Door, polls: Option<usize>) -> Self {
        let world = Arc::clone(&door.world);
        let run = door.micro_batch.start(world.cancel.clone());
        world.seen().loop_.started = true;
        Self {
            world,
            run: Some(Box::pin(run)),
            left: polls,
        }
    }

    fn cut_short(&mut self) {
        self.world.cut_short();
        self.run = None;
    }
}

impl Future for Loop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = this.world.now();
        if this.left == Some(0) {
            this.cut_short();
            return Poll::Ready(());
        }
        let mut seen = this.world.seen();
        seen.loop_.began.get_or_insert(now);
        seen.loop_.polls += 1;
        let polls = seen.loop_.polls;
        drop(seen);
        let Some(run) = &mut this.run else {
            return Poll::Ready(());
        };
        let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx)));
        let Ok(polled) = polled else {
            if this.world.seen().loop_.cut_short.is_none() {
                this.world.blame("the loop panicked");
            }
            this.cut_short();
            return Poll::Ready(());
        };
        if let Poll::Ready(result) = polled {
            let now = this.world.now();
            let result = match result {
                Ok(()) => Ok(()),
                Err(StartError::ShutdownTimeout(timeout)) => Err(timeout),
                Err(error) => {
                    this.world.blame(format!("the first start says: {error}"));
                    Ok(())
                }
            };
            this.world.seen().loop_.ended = Some((now, result));
            this.run = None;
            return Poll::Ready(());
        }
        this.left = this.left.map(|left| left - 1);
        if this.left == Some(0) || polls > TOO_MANY_POLLS {
            if polls > TOO_MANY_POLLS {
                this.world.blame("the loop spins");
            }
            this.cut_short();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.run.is_some() {
            self.cut_short();
        }
    }
}
