//! The Load switch: a bounded closed loop of callers in this process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use microbatch::CancellationToken;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::app::App;
use crate::error::ServiceError;
use crate::flight::Flight;
use crate::later::Job;

pub const MOST_CALLERS: usize = 256;

/// Load that someone has left on ends by itself.
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// How long a caller waits that was refused.
const PAUSE: Duration = Duration::from_millis(100);

pub struct Callers {
    flights: Vec<Flight>,
    stop: CancellationToken,
    running: Mutex<Running>,
}

struct Running {
    /// One a caller.
    tokens: Vec<CancellationToken>,
    since: Instant,
}

impl Callers {
    pub fn new(flights: Vec<Flight>, stop: CancellationToken) -> Self {
        Self {
            flights,
            stop,
            running: Mutex::new(Running {
                tokens: Vec::new(),
                since: Instant::now(),
            }),
        }
    }

    pub fn count(&self) -> usize {
        self.lock().tokens.len()
    }

    /// Starts or stops callers until there are as many for each way to insert.
    pub fn set(&self, app: &Arc<App>, callers: usize) {
        let mut running = self.lock();
        running.since = Instant::now();
        for caller in running.tokens.len()..callers {
            let token = self.stop.child_token();
            tokio::spawn(call(Arc::clone(app), caller, Way::RowByRow, token.clone()));
            tokio::spawn(call(Arc::clone(app), caller, Way::Batched, token.clone()));
            tokio::spawn(call(Arc::clone(app), caller, Way::Later, token.clone()));
            running.tokens.push(token);
        }
        while running.tokens.len() > callers {
            if let Some(token) = running.tokens.pop() {
                token.cancel();
            }
        }
    }

    /// Ends load that has run for long enough.
    pub fn expire(&self) {
        let mut running = self.lock();
        if running.since.elapsed() > LONGEST {
            for token in running.tokens.drain(..) {
                token.cancel();
            }
        }
    }

    pub fn flight(&self, number: usize) -> Flight {
        self.flights[number % self.flights.len()].clone()
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    RowByRow,
    Batched,
    Later,
}

/// Stores one flight after the other, the same ones whichever way it has.
async fn call(app: Arc<App>, caller: usize, way: Way, stop: CancellationToken) {
    let numbers = (caller..).step_by(MOST_CALLERS);
    for number in numbers {
        if stop.is_cancelled() {
            return;
        }
        let flight = app.callers.flight(number);
        let result = match way {
            Way::RowByRow => app.row_by_row.insert(flight).await.map(drop),
            Way::Batched => app.batched.insert(flight).await.map(drop),
            Way::Later => {
                let id = Uuid::now_v7().to_string();
                app.later.accept(Job { id, flight }).await.map(drop)
            }
        };
        match result {
            Ok(()) => {}
            Err(ServiceError::Stopping) => return,
            Err(_) => sleep(PAUSE).await,
        }
    }
}
