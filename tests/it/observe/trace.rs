//! Spans and events.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microbatch::{BatchProcessor, CancellationToken, MicroBatch, MicroBatchBuilder};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Event, Instrument, Level, Metadata, Subscriber};
use tracing_core::span::Current;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::support::{
    Bomb, Fate, Gate, LIVE, answers, assert_balanced, decide, idle, lock, poll_once, results, run,
    settle, soon, submit,
};

/// A span or an event.
#[derive(Debug, Clone)]
struct Seen {
    /// Zero for an event.
    id: u64,
    name: &'static str,
    target: &'static str,
    level: Level,
    fields: BTreeMap<&'static str, String>,
    parent: Option<u64>,
    closed: bool,
}

impl Seen {
    fn new(id: u64, metadata: &Metadata<'static>, parent: Option<u64>) -> Self {
        Self {
            id,
            name: metadata.name(),
            target: metadata.target(),
            level: *metadata.level(),
            fields: BTreeMap::new(),
            parent,
            closed: false,
        }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

/// Keeps everything that this thread's tracing shows.
#[derive(Clone, Default)]
struct Capture {
    spans: Arc<Mutex<Vec<Seen>>>,
    events: Arc<Mutex<Vec<Seen>>>,
    follows: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Capture {
    fn start() -> (Self, DefaultGuard) {
        let capture = Self::default();
        (capture.clone(), super::subscribe(capture))
    }

    fn spans(&self, name: &str) -> Vec<Seen> {
        let spans = lock(&self.spans);
        spans
            .iter()
            .filter(|span| span.name == name)
            .cloned()
            .collect()
    }

    /// The batcher's own events.
    fn events(&self) -> Vec<Seen> {
        let events = lock(&self.events);
        let own = events
            .iter()
            .filter(|event| event.target.starts_with("microbatch"));
        own.cloned().collect()
    }

    fn events_at(&self, level: Level) -> Vec<Seen> {
        self.events()
            .into_iter()
            .filter(|event| event.level == level)
            .collect()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = context
            .span(id)
            .and_then(|span| span.parent().map(|parent| parent.id()));
        let parent = parent.map(|parent| parent.into_u64());
        let mut seen = Seen::new(id.into_u64(), attributes.metadata(), parent);
        attributes.record(&mut seen);
        lock(&self.spans).push(seen);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let parent = context.event_span(event).map(|span| span.id().into_u64());
        let mut seen = Seen::new(0, event.metadata(), parent);
        event.record(&mut seen);
        lock(&self.events).push(seen);
    }

    fn on_follows_from(&self, span: &Id, follows: &Id, _: Context<'_, S>) {
        lock(&self.follows).push((span.into_u64(), follows.into_u64()));
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let mut spans = lock(&self.spans);
        // Ids are used again, so the last is meant.
        let mut meant = spans.iter_mut().rev();
        if let Some(span) = meant.find(|span| span.id == id.into_u64()) {
            span.closed = true;
        }
    }
}

/// Named, with weights.
fn named(gate: &Gate) -> MicroBatchBuilder<u32, u32, impl BatchProcessor<u32, u32> + use<>> {
    MicroBatch::builder(gate.clone())
        .name("words")
        .max_batch_weight(100, |job| *job as usize)
}

#[tokio::test(start_paused = true)]
async fn there_is_one_span_per_batch_with_all_its_fields() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::open()));
    results(submit(&batcher, [1, 2, 3, 4])).await;
    settle().await;
    let spans = capture.spans("batch");
    let fields = |span: &Seen| {
        ["name", "size", "weight", "reason", "waited"].map(|field| span.field(field).to_owned())
    };
    assert_eq!(spans.len(), 2);
    assert_eq!(fields(&spans[0]), ["words", "3", "6", "size", "0ns"]);
    assert_eq!(fields(&spans[1]), ["words", "1", "4", "interval", "1s"]);
    assert!(
        spans
            .iter()
            .all(|span| span.closed && span.level == Level::INFO)
    );
    assert!(
        spans
            .iter()
            .all(|span| span.target.starts_with("microbatch"))
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_name_there_is_no_name_field() {
    let (capture, _guard) = Capture::start();
    let batcher = run(MicroBatch::builder(Gate::open()));
    results(submit(&batcher, 0..3)).await;
    soon(batcher.shutdown()).await.expect("drains");
    let batches = capture.spans("batch");
    assert_eq!(batches.len(), 1);
    let all = batches
        .iter()
        .chain(&capture.events())
        .cloned()
        .collect::<Vec<_>>();
    assert!(
        all.iter().all(|seen| !seen.fields.contains_key("name")),
        "{all:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_follows_from_the_spans_its_jobs_were_submitted_in() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::open()));
    let first = tracing::info_span!("first").in_scope(|| batcher.submit(1));
    let outside = batcher.submit(2);
    let second = tracing::info_span!("second").in_scope(|| batcher.submit(3));
    results(vec![first, outside, second]).await;
    settle().await;
    let id = |name| capture.spans(name)[0].id;
    let (batch, first, second) = (id("batch"), id("first"), id("second"));
    let follows = lock(&capture.follows).clone();
    let links = [
        (batch, first),
        (batch, second),
        (first, batch),
        (second, batch),
    ];
    assert_eq!(follows, links);
    assert!(capture.spans("first")[0].closed, "no longer kept open");
}

/// Exporters keep so many links a span, and would fill up with the same one.
#[tokio::test(start_paused = true)]
async fn a_caller_of_many_jobs_is_linked_once_with_each_batch() {
    let (capture, _guard) = Capture::start();
    let batcher = run(MicroBatch::builder(Gate::open()).max_batch_size(20));
    let (one, other) = (tracing::info_span!("one"), tracing::info_span!("other"));
    let handles = (0..40).map(|job| {
        let span = if job % 2 == 0 { &one } else { &other };
        span.in_scope(|| batcher.submit(job))
    });
    results(handles.collect()).await;
    assert_eq!(capture.spans("batch").len(), 2);
    assert_eq!(lock(&capture.follows).len(), 2 * 2 * 2);
}

#[tokio::test(start_paused = true)]
async fn the_span_of_a_caller_is_open_until_its_batch_is_cut_and_no_longer() {
    let (capture, _guard) = Capture::start();
    let gate = Gate::closed();
    let batcher = run(named(&gate));
    let mut handle = tracing::info_span!("caller").in_scope(|| batcher.submit(1));
    assert!(poll_once(&mut handle).is_pending());
    settle().await;
    let is_closed = || capture.spans("caller")[0].closed;
    assert!(!is_closed(), "its job is pending");
    // The caller goes, and its job stays.
    drop(handle);
    settle().await;
    assert!(!is_closed());
    tokio::time::advance(Duration::from_secs(1)).await;
    settle().await;
    assert!(is_closed(), "its batch is cut");
    assert_eq!(capture.spans("batch").len(), 1);
    assert_eq!(lock(&capture.follows).len(), 2);
    gate.pass(1);
    soon(batcher.shutdown()).await.expect("drains");
}

/// Under `cancel_on_drop` what is withdrawn is swept later, and its span was closed
/// as late.
#[tokio::test(start_paused = true)]
async fn a_withdrawn_job_lets_go_of_its_span_at_once() {
    let (capture, _guard) = Capture::start();
    let gate = Gate::closed();
    let batcher = MicroBatch::builder(gate.clone()).cancel_on_drop(true);
    let batcher = run(batcher.max_batch_size(10).interval(Duration::MAX));
    let kept = submit(&batcher, 0..5);
    let submit_in = |name: &'static str, job| {
        let span = tracing::info_span!("caller", name);
        span.in_scope(|| batcher.submit(job))
    };
    let open = || {
        let mut spans = capture.spans("caller");
        spans.retain(|span| !span.closed);
        spans.len()
    };
    let (pending, in_batch) = (submit_in("pending", 5), submit_in("in a batch", 6));
    settle().await;
    assert_eq!((batcher.stats().pending, open()), (7, 2));
    let queued = submit_in("queued", 7);
    assert_eq!((batcher.stats().queued, open()), (1, 3));
    drop(queued);
    assert_eq!((batcher.stats().withdrawn, open()), (1, 2));
    drop(pending);
    assert_eq!((batcher.stats().withdrawn, open()), (2, 1));
    let flush = tokio::spawn(batcher.flush());
    settle().await;
    assert_eq!((batcher.stats().processing, open()), (6, 0));
    drop(in_batch);
    gate.pass(9);
    soon(flush).await.expect("no panic");
    assert_eq!(lock(&capture.follows).len(), 2, "of one caller");
    results(kept).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_leaves_while_it_waits_for_room_lets_go_of_its_span() {
    for cancel_on_drop in [false, true] {
        let (capture, _guard) = Capture::start();
        let batcher = MicroBatch::builder(Gate::closed()).cancel_on_drop(cancel_on_drop);
        let batcher = idle(batcher.queue_capacity(1));
        let queued = batcher.submit(1);
        let waiting = tracing::info_span!("caller").in_scope(|| batcher.submit(2));
        assert_eq!(batcher.stats().waiting, 1);
        assert!(!capture.spans("caller")[0].closed);
        drop(waiting);
        assert_eq!(batcher.stats().waiting, 0);
        assert!(capture.spans("caller")[0].closed);
        let refused = tracing::info_span!("refused").in_scope(|| batcher.try_submit(3));
        assert!(refused.is_err() && capture.spans("refused")[0].closed);
        drop(queued);
    }
}

/// A job that its storage, or a stop, drops while its handle lives.
#[tokio::test(start_paused = true)]
async fn an_abandoned_job_lets_go_of_its_span() {
    for cancel_on_drop in [false, true] {
        let (capture, _guard) = Capture::start();
        let batcher = MicroBatch::builder(Gate::closed()).cancel_on_drop(cancel_on_drop);
        let batcher = idle(batcher);
        let handle = tracing::info_span!("caller").in_scope(|| batcher.submit(1));
        assert!(!capture.spans("caller")[0].closed);
        let _ = soon(batcher.shutdown()).await;
        assert!(capture.spans("caller")[0].closed);
        assert!(soon(handle).await.is_err());
    }
}

/// A writer of bytes that a test reads.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn at_info_nothing_is_printed_but_that_a_batch_failed() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let batcher = run(MicroBatch::builder(decide).name("words").max_batch_size(1));
    let span = tracing::info_span!("caller");
    for fate in [Fate::Answer(1), Fate::Fail(7), Fate::Answer(2)] {
        let handle = span.in_scope(|| batcher.submit(fate));
        let _ = soon(handle).await;
    }
    soon(batcher.shutdown()).await.expect("drains");
    let written = String::from_utf8(lock(&written.0).clone()).expect("text");
    let lines: Vec<_> = written.lines().collect();
    assert_eq!(lines.len(), 1, "{written}");
    assert!(lines[0].contains("batch failed"), "{written}");
    assert!(lines[0].contains("cause 7"), "{written}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waited_for_room_keeps_the_span_of_its_submit() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::open()).queue_capacity(1));
    let handles = tracing::info_span!("caller").in_scope(|| submit(&batcher, 0..6));
    results(handles).await;
    let caller = capture.spans("caller")[0].id;
    let follows = lock(&capture.follows).clone();
    let batches = capture.spans("batch").len();
    assert!(batches > 1);
    assert_eq!(follows.len(), 2 * batches);
    let ends = |pair: &(u64, u64)| [pair.0, pair.1].contains(&caller);
    assert!(follows.iter().all(ends));
}

#[tokio::test(start_paused = true)]
async fn a_batch_belongs_to_no_caller_and_its_processor_to_the_batch() {
    let (capture, _guard) = Capture::start();
    let batcher = tracing::info_span!("outer").in_scope(|| {
        run(MicroBatch::builder(|jobs: Vec<u32>| async move {
            tracing::info_span!("inner").in_scope(|| {});
            Ok::<_, String>(jobs)
        }))
    });
    results(submit(&batcher, 0..3)).await;
    let batch = &capture.spans("batch")[0];
    assert_eq!(batch.parent, None);
    assert_eq!(capture.spans("inner")[0].parent, Some(batch.id));
}

#[tokio::test(start_paused = true)]
async fn a_batch_does_not_belong_to_who_runs_the_loop() {
    let (capture, _guard) = Capture::start();
    let batcher = MicroBatch::builder(Gate::open()).build().expect("valid");
    let start = batcher.start(CancellationToken::new());
    tokio::spawn(start.instrument(tracing::info_span!("loop")));
    results(submit(&batcher, 0..3)).await;
    assert_eq!(capture.spans("loop").len(), 1);
    assert_eq!(capture.spans("batch")[0].parent, None);
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_a_debug_event_in_its_batch() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::open()));
    results(submit(&batcher, [1, 2, 3])).await;
    let batch = &capture.spans("batch")[0];
    let events = capture.events();
    assert_eq!(events.len(), 1, "{events:?}");
    let flush = &events[0];
    assert_eq!(
        (flush.level, flush.field("message")),
        (Level::DEBUG, "flush")
    );
    assert_eq!(flush.parent, Some(batch.id));
    for field in ["name", "size", "weight", "reason"] {
        assert_eq!(flush.field(field), batch.field(field));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_told_at_debug() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::open()));
    soon(batcher.shutdown()).await.expect("drains");
    let events = capture.events();
    assert!(!events.is_empty());
    assert!(events.iter().all(|event| event.level == Level::DEBUG));
    assert!(
        events
            .iter()
            .all(|event| event.field("message").contains("stop"))
    );
    assert!(events.iter().all(|event| event.field("name") == "words"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_out_of_time_is_a_warning_with_the_count() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::closed()));
    let _handles = submit(&batcher, 0..5);
    soon(batcher.shutdown())
        .await
        .expect_err("the gate is closed");
    let warnings = capture.events_at(Level::WARN);
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].field("abandoned"), "5");
}

/// The error events of one batch that has that fate.
async fn errors_of(fate: Fate) -> Vec<Seen> {
    let (capture, _guard) = Capture::start();
    let batcher = run(MicroBatch::builder(decide).name("words"));
    answers(submit(&batcher, [Fate::Answer(1), fate, Fate::Answer(2)])).await;
    let batch = &capture.spans("batch")[0];
    let errors = capture.events_at(Level::ERROR);
    assert!(errors.iter().all(|error| error.parent == Some(batch.id)));
    assert!(errors.iter().all(|error| error.field("name") == "words"));
    errors
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_one_error_with_its_cause() {
    for (fate, cause) in [
        (Fate::Fail(7), "cause 7"),
        (Fate::Panic, "panicked on 3 jobs"),
        (Fate::PanicEarly, "panicked early"),
        (Fate::Short, "2 results for 3 jobs"),
    ] {
        let errors = errors_of(fate).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].field("error").contains(cause), "{errors:?}");
    }
}

/// An error that panics when it is shown, as it is only where a subscriber listens.
#[derive(Debug)]
struct Mute;

impl Display for Mute {
    fn fmt(&self, _: &mut Formatter<'_>) -> fmt::Result {
        panic!("no words")
    }
}

impl Error for Mute {}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_shown_fails_its_batch_alone() {
    let (_capture, _guard) = Capture::start();
    let batcher = run(MicroBatch::builder(|jobs: Vec<u32>| async move {
        if jobs.contains(&13) {
            Err(Mute)
        } else {
            Ok(jobs)
        }
    }));
    let unlucky = answers(submit(&batcher, [1, 13, 2])).await;
    assert!(unlucky.iter().all(Result::is_err));
    assert_eq!(results(submit(&batcher, 0..3)).await, [0, 1, 2]);
    let stats = batcher.stats();
    assert_eq!((stats.processing, stats.in_flight), (0, 0), "{stats:?}");
    assert_balanced(stats);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_goes_well_is_no_error() {
    assert!(errors_of(Fate::Answer(3)).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_is_an_error() {
    let (capture, _guard) = Capture::start();
    let batcher = run(named(&Gate::open()).on_batch(|_| panic!("in the hook")));
    results(submit(&batcher, 0..3)).await;
    let errors = capture.events_at(Level::ERROR);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].field("error"), "in the hook");
}

#[tokio::test(start_paused = true)]
async fn jobs_themselves_are_not_logged() {
    let (capture, _guard) = Capture::start();
    let gate = Gate::closed();
    let batcher = run(named(&gate)
        .max_batch_size(100)
        .max_batch_weight(usize::MAX, |_| 1)
        .queue_capacity(10)
        .interval(Duration::MAX));
    gate.pass(9);
    soon(batcher.submit_all(0..500)).await;
    settle().await;
    assert_eq!(gate.batches().len(), 5);
    // A span and an event a batch, and nothing else, least of all at `INFO`.
    let (events, spans) = (capture.events(), lock(&capture.spans).len());
    assert_eq!((events.len(), spans), (5, 5));
    assert!(events.iter().all(|event| event.level >= Level::DEBUG));
}

#[tokio::test(start_paused = true)]
async fn the_event_about_a_job_without_a_worker_has_the_name() {
    let (capture, _guard) = Capture::start();
    let batcher = MicroBatch::builder(|_: Vec<Bomb>| async { Ok::<Vec<()>, String>(Vec::new()) });
    let batcher = idle(batcher.name("words").max_batch_size(1));
    let handles = submit(&batcher, [Bomb(LIVE)]);
    let mut start = Box::pin(batcher.start(CancellationToken::new()));
    assert!(poll_once(&mut start).is_pending());
    assert_eq!(batcher.stats().processing, 1);
    // Before any task can take the batch.
    drop(start);
    assert!(answers(handles).await[0].is_err());
    let errors = capture.events_at(Level::ERROR);
    let names: Vec<_> = errors.iter().map(|event| event.field("name")).collect();
    assert_eq!(names, ["words"]);
}

#[tokio::test(start_paused = true)]
async fn every_event_about_a_panic_has_the_name() {
    let (capture, _guard) = Capture::start();
    let named = |results: usize| {
        MicroBatch::builder(move |_: Vec<u32>| async move {
            Ok::<_, String>((0..results).map(|_| Bomb(LIVE)).collect())
        })
        .name("words")
    };
    // A result without a handle, too many results, and a hook.
    let batcher = run(named(1).on_batch(|_| panic!("hook")));
    drop(batcher.submit(1));
    soon(batcher.shutdown()).await.expect("drains");
    let batcher = run(named(2));
    answers(submit(&batcher, [1])).await;
    let errors = capture.events_at(Level::ERROR);
    let names: Vec<_> = errors.iter().map(|event| event.field("name")).collect();
    // Both of the results too many, and that the batch failed.
    assert_eq!(names, ["words"; 5]);
}

/// A subscriber, one of whose methods panics when it is called for the time with
/// that number.
#[derive(Clone)]
struct Jumpy {
    method: &'static str,
    calls: Arc<AtomicUsize>,
    caller: Arc<Mutex<Option<&'static Metadata<'static>>>>,
}

const METHODS: [&str; 9] = [
    "enabled",
    "new_span",
    "follows_from",
    "event",
    "enter",
    "exit",
    "clone",
    "close",
    "current",
];

impl Jumpy {
    fn called(&self, method: &str) {
        if method == self.method && self.calls.load(Ordering::SeqCst) > 0 {
            let left = self.calls.fetch_sub(1, Ordering::SeqCst);
            assert_ne!(left, 1, "not this time: {method}");
        }
    }
}

impl Subscriber for Jumpy {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        self.called("enabled");
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        lock(&self.caller).get_or_insert(span.metadata());
        self.called("new_span");
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {
        self.called("follows_from");
    }

    fn event(&self, _: &Event<'_>) {
        self.called("event");
    }

    fn enter(&self, _: &Id) {
        self.called("enter");
    }

    fn exit(&self, _: &Id) {
        self.called("exit");
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.called("clone");
        id.clone()
    }

    fn try_close(&self, _: Id) -> bool {
        self.called("close");
        true
    }

    fn current_span(&self) -> Current {
        self.called("current");
        match *lock(&self.caller) {
            Some(metadata) => Current::new(Id::from_u64(1), metadata),
            None => Current::none(),
        }
    }
}

/// One that panicked once in `new_span` ended the loop: three of three jobs were
/// abandoned, and two gauges were stuck. Others took the task with them that calls
/// the processor, so that no later batch was processed. Whatever it does, and
/// whenever, nothing but what it was told is lost.
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_costs_no_job() {
    for method in METHODS {
        let mut turn = 0;
        loop {
            turn += 1;
            let calls = Arc::new(AtomicUsize::new(0));
            let subscriber = Jumpy {
                method,
                calls: Arc::clone(&calls),
                caller: Arc::default(),
            };
            let _guard = tracing::subscriber::set_default(subscriber);
            let batcher = MicroBatch::builder(|jobs: Vec<u32>| async move {
                match jobs.contains(&7) {
                    true => Err("seven"),
                    false => Ok(jobs),
                }
            });
            let batcher = run(batcher.max_batch_size(2).max_in_flight(2));
            let span = tracing::info_span!("caller");
            let entered = span.enter();
            calls.store(turn, Ordering::SeqCst);
            let handles = submit(&batcher, 0..10);
            let answers = answers(handles).await;
            soon(batcher.shutdown()).await.expect("drains");
            let went_off = calls.swap(0, Ordering::SeqCst) == 0;
            drop(entered);
            let failed = answers.iter().map(Result::is_err);
            let context = format!("{method}, call {turn}: {answers:?}");
            assert!(
                failed.eq((0..10).map(|job| job == 6 || job == 7)),
                "{context}"
            );
            let stats = batcher.stats();
            assert_eq!((stats.completed, stats.failed), (8, 2), "{context}");
            assert_balanced(stats);
            if !went_off {
                break;
            }
        }
        assert!(turn > 1, "{method} is never called");
    }
}
