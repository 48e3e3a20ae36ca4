//! What OpenTelemetry makes of the spans of batches and their callers.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use microbatch::{CancellationToken, MicroBatch, MicroBatchBuilder};
use opentelemetry::trace::{SpanId, Status, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tokio::time::timeout;
use tracing::{Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;

/// The links that OpenTelemetry keeps a span.
const MAX_LINKS: usize = 128;

/// Where all spans of this process arrive. Each test knows its own by the name of its
/// micro-batcher.
fn exported() -> &'static InMemorySpanExporter {
    static EXPORTER: OnceLock<InMemorySpanExporter> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("microbatch"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::set_global_default(subscriber).expect("the only one");
        exporter
    })
}

/// The spans of one test that have ended.
struct Spans {
    batches: Vec<SpanData>,
    callers: Vec<SpanData>,
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let mut attributes = span.attributes.iter();
    let found = attributes.find(|attribute| attribute.key.as_str() == key)?;
    Some(found.value.to_string())
}

fn spans(test: &str) -> Spans {
    let all = exported().get_finished_spans().expect("not shut down");
    let of_test = |name: &str, key: &str| {
        let meant =
            |span: &&SpanData| span.name == name && attribute(span, key).as_deref() == Some(test);
        all.iter().filter(meant).cloned().collect()
    };
    Spans {
        batches: of_test("batch", "name"),
        callers: of_test("caller", "test"),
    }
}

fn linked(span: &SpanData) -> Vec<SpanId> {
    let links = span.links.iter();
    links.map(|link| link.span_context.span_id()).collect()
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

/// What the processor makes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Echo(u32),
    Fail,
    Panic,
}

async fn process(jobs: Vec<Job>) -> Result<Vec<Job>, String> {
    tokio::task::yield_now().await;
    assert!(!jobs.contains(&Job::Panic), "out of paper");
    match jobs.contains(&Job::Fail) {
        true => Err("out of ink".to_owned()),
        false => Ok(jobs),
    }
}

fn run<P>(builder: MicroBatchBuilder<Job, Job, P>) -> MicroBatch<Job, Job>
where
    P: microbatch::BatchProcessor<Job, Job>,
{
    exported();
    let built = builder.build_running(CancellationToken::new());
    built.expect("valid options")
}

/// Nothing here takes that long unless it hangs.
async fn soon<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(60);
    timeout(limit, future).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_callers_of_one_batch_all_lead_to_it() {
    const TEST: &str = "two hundred";
    let builder = MicroBatch::builder(process).name(TEST);
    let builder = builder.max_batch_size(200).queue_capacity(1000);
    let batcher = run(builder.interval(Duration::MAX));
    let callers = (0..200).map(|job| {
        let batcher = batcher.clone();
        let call = async move { batcher.submit(Job::Echo(job)).await };
        tokio::spawn(call.instrument(info_span!("caller", test = TEST)))
    });
    for (job, caller) in (0..).zip(callers.collect::<Vec<_>>()) {
        let result = soon(caller).await.expect("no panic");
        assert_eq!(result.expect("no error"), Job::Echo(job));
    }
    soon(batcher.shutdown()).await.expect("drains");

    let Spans { batches, callers } = spans(TEST);
    assert_eq!((batches.len(), callers.len()), (1, 200));
    let batch = &batches[0];
    assert_eq!(batch.parent_span_id, SpanId::INVALID, "a root");
    let fields = ["size", "weight", "reason"].map(|key| attribute(batch, key));
    let fields = fields.map(|field| field.expect("recorded"));
    assert_eq!(fields, ["200", "0", "size"]);
    assert!(attribute(batch, "waited").is_some());
    assert_eq!(batch.status, Status::Unset);
    // The way back is complete, although the batch keeps fewer links.
    assert!(callers.iter().all(|caller| linked(caller) == [id(batch)]));
    let known: Vec<_> = callers.iter().map(id).collect();
    let links = linked(batch);
    assert_eq!(links.len(), MAX_LINKS);
    assert!(links.iter().all(|link| known.contains(link)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_have_gone_are_linked_and_exported_once() {
    const TEST: &str = "gone";
    let builder = MicroBatch::builder(process).name(TEST);
    let batcher = run(builder.max_batch_size(100).interval(Duration::MAX));
    let callers = (0..50).map(|job| {
        let batcher = batcher.clone();
        let call = async move { drop(batcher.submit(Job::Echo(job))) };
        tokio::spawn(call.instrument(info_span!("caller", test = TEST)))
    });
    for caller in callers.collect::<Vec<_>>() {
        soon(caller).await.expect("no panic");
    }
    assert_eq!(spans(TEST).callers.len(), 0, "still held open");
    soon(batcher.shutdown()).await.expect("drains");

    let Spans { batches, callers } = spans(TEST);
    assert_eq!((batches.len(), callers.len()), (1, 50));
    assert!(
        callers
            .iter()
            .all(|caller| linked(caller) == [id(&batches[0])])
    );
    let mut links = linked(&batches[0]);
    let mut known: Vec<_> = callers.iter().map(id).collect();
    links.sort_by_key(|id| id.to_bytes());
    known.sort_by_key(|id| id.to_bytes());
    assert_eq!(links, known);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_that_fails_or_panics_has_the_status_of_an_error() {
    for (test, job, cause) in [
        ("fails", Job::Fail, "out of ink"),
        ("panics", Job::Panic, "out of paper"),
    ] {
        let builder = MicroBatch::builder(process).name(test);
        let batcher = run(builder.max_batch_size(3));
        let caller = info_span!("caller", test);
        let jobs = [Job::Echo(1), job, Job::Echo(2)];
        let handles = caller.in_scope(|| jobs.map(|job| batcher.submit(job)));
        for handle in handles {
            assert!(soon(handle).await.is_err());
        }
        drop(caller);
        soon(batcher.shutdown()).await.expect("drains");
        let Spans { batches, callers } = spans(test);
        assert_eq!((batches.len(), callers.len()), (1, 1));
        assert!(matches!(batches[0].status, Status::Error { .. }), "{test}");
        let mut events = batches[0].events.iter();
        let failed = events.find(|event| event.name == "batch failed");
        let mut told = failed.expect("an event").attributes.iter();
        let error = told.find(|attribute| attribute.key.as_str() == "error");
        let error = error.expect("recorded").value.to_string();
        assert!(error.contains(cause), "{error}");
        // It is the batch that failed. One link, though there were three jobs.
        assert_eq!(callers[0].status, Status::Unset);
        assert_eq!(linked(&callers[0]), [id(&batches[0])]);
        assert_eq!(linked(&batches[0]), [id(&callers[0])]);
    }
}

/// Spans are linked while other threads enter, leave and close them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_every_caller_leads_to_its_own_batch() {
    const TEST: &str = "load";
    const CALLERS: usize = 64;
    const JOBS: usize = 100;
    let builder = MicroBatch::builder(process).name(TEST).max_in_flight(4);
    let builder = builder.flush_when_idle(true).cancel_on_drop(true);
    let batcher = run(builder.max_batch_size(32).queue_capacity(16));
    let callers = (0..CALLERS).map(|caller| {
        let batcher = batcher.clone();
        tokio::spawn(async move {
            for job in 0..JOBS {
                let call = async {
                    let handle = batcher.submit(Job::Echo(job as u32));
                    match (caller + job) % 8 {
                        0 => drop(handle),
                        _ => drop(handle.await),
                    }
                };
                let span = info_span!("caller", test = TEST);
                call.instrument(span).await;
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        soon(caller).await.expect("no panic");
    }
    soon(batcher.shutdown()).await.expect("drains");

    let stats = batcher.stats();
    let Spans { batches, callers } = spans(TEST);
    assert_eq!(batches.len() as u64, stats.batches);
    assert_eq!(callers.len(), CALLERS * JOBS, "each exported once");
    let batches: HashMap<_, _> = batches.iter().map(|batch| (id(batch), batch)).collect();
    let mut in_batches = 0;
    for caller in &callers {
        match linked(caller)[..] {
            [] => {}
            [batch] => {
                in_batches += 1;
                let batch = batches.get(&batch).expect("a batch of this test");
                assert!(linked(batch).contains(&id(caller)));
            }
            _ => panic!("{:?}", caller.links),
        }
    }
    assert_eq!(in_batches, stats.completed);
    assert!(stats.withdrawn + stats.withdrawn_waiting > 0, "{stats:?}");
}
