//! What the page is told, four times a second, by server-sent events.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::Event;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};

use crate::app::App;
use crate::batches::Flushed;
use crate::meter::Reading;
use crate::settings::{QUEUE_CAPACITY, Settings};

const PERIOD: Duration = Duration::from_millis(250);

/// Counts since the start and gauges of this moment.
#[derive(Debug, Default, Serialize)]
pub struct Sample {
    /// In milliseconds since the start.
    at: u64,
    row_by_row: Reading,
    batched: Reading,
    later: Reading,
    /// Jobs on disk that are not stored.
    on_disk: u64,
    by_reason: BTreeMap<String, Flushed>,
    /// How long batches were in hand, added up, in milliseconds.
    busy: f64,
    in_flight: usize,
    queued: usize,
    pending: usize,
    queue_capacity: usize,
    accepted: u64,
    completed: u64,
    settings: Option<Settings>,
    callers: usize,
    /// Everything accepted is done, and no more samples come.
    ended: bool,
}

/// Sends samples until the service stops, and a last one once it is drained. Then it drops
/// the sender, which ends all streams: an open one would hold up a graceful stop for ever.
pub async fn sample(app: Arc<App>, sender: watch::Sender<Arc<Sample>>) {
    let started = Instant::now();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while app.stop.run_until_cancelled(ticks.tick()).await.is_some() {
        app.callers.expire();
        app.metrics.upkeep();
        let _ = sender.send(Arc::new(Sample::take(&app, started)));
    }
    // `main` reports how the stop went.
    let _ = app.drained().await;
    let last = Sample {
        ended: true,
        ..Sample::take(&app, started)
    };
    let _ = sender.send(Arc::new(last));
}

impl Sample {
    fn take(app: &App, started: Instant) -> Self {
        let stats = app.batched.batcher.stats();
        let batches = app.batches.lock();
        let by_reason = batches.by_reason.iter();
        let by_reason = by_reason.map(|(reason, flushed)| (reason.to_string(), *flushed));
        Self {
            at: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            row_by_row: app.row_by_row.meter.read(),
            batched: Reading {
                commits: stats.batches,
                // Also those that no one waits for.
                jobs: stats.completed,
                ..app.batched.meter.read()
            },
            later: Reading {
                commits: app.later.stats().batches,
                ..app.later.meter.read()
            },
            on_disk: app.later.on_disk(),
            by_reason: by_reason.collect(),
            busy: batches.busy.as_secs_f64() * 1000.0,
            in_flight: stats.in_flight,
            queued: stats.queued,
            pending: stats.pending,
            queue_capacity: QUEUE_CAPACITY,
            accepted: stats.accepted,
            completed: stats.completed,
            settings: Some(Settings::of(&app.batched.batcher)),
            callers: app.callers.count(),
            ended: false,
        }
    }
}

/// The last event is named `end`.
pub async fn stream(
    State(app): State<Arc<App>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let samples = WatchStream::new(app.samples.clone());
    let events = samples.map(|sample| {
        let name = if sample.ended { "end" } else { "message" };
        let event = Event::default().event(name).json_data(&*sample);
        // A sample is numbers and names of ours.
        Ok(event.unwrap_or_default())
    });
    Sse::new(events)
}
