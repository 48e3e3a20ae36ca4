//! `/metrics`, in the text format of Prometheus. The names are those of the crate's own
//! metrics, so that its feature can take this file's place.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use microbatch::MicroBatch;

use crate::app::App;
use crate::batches::Distribution;
use crate::settings::QUEUE_CAPACITY;

pub async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, text(&app))
}

fn text(app: &App) -> String {
    let mut page = Page(String::new());
    let refused = app.batched.meter.refused();
    batcher(&mut page, &app.batched.batcher, refused);
    let batches = app.batches.lock();
    page.name("batches_total", "counter", "finished batches by reason");
    for (reason, flushed) in &batches.by_reason {
        page.value(
            "batches_total",
            &format!("reason=\"{reason}\""),
            flushed.batches,
        );
    }
    page.name("batch_failures_total", "counter", "failed batches by kind");
    for kind in ["error", "panic", "result_count"] {
        let failures = batches.failures.get(kind).copied().unwrap_or(0);
        page.value(
            "batch_failures_total",
            &format!("kind=\"{kind}\""),
            failures,
        );
    }
    page.distribution("batch_size", "jobs in a batch", &batches.size);
    page.distribution(
        "batch_wait_seconds",
        "longest wait of a job in the batch",
        &batches.waited,
    );
    page.distribution(
        "batch_duration_seconds",
        "time in the processor",
        &batches.took,
    );
    page.0
}

/// What a snapshot of a micro-batcher tells.
fn batcher<J: Send + 'static, R: Send + 'static>(
    page: &mut Page,
    batcher: &MicroBatch<J, R>,
    refused: u64,
) {
    let (stats, settings) = (batcher.stats(), batcher.settings());
    page.name("jobs_accepted_total", "counter", "jobs accepted");
    page.value("jobs_accepted_total", "", stats.accepted);
    page.name("jobs_total", "counter", "jobs by outcome");
    let outcomes = [
        ("completed", stats.completed),
        ("failed", stats.failed),
        ("withdrawn", stats.withdrawn),
        ("abandoned", stats.abandoned),
    ];
    for (outcome, jobs) in outcomes {
        page.value("jobs_total", &format!("outcome=\"{outcome}\""), jobs);
    }
    page.name("jobs_refused_total", "counter", "jobs never accepted");
    // Nothing weighs here, so what was not full was closed.
    let closed = stats.refused.saturating_sub(refused);
    for (why, jobs) in [("full", refused), ("closed", closed), ("too_heavy", 0)] {
        page.value("jobs_refused_total", &format!("why=\"{why}\""), jobs);
    }
    page.name("jobs", "gauge", "jobs by state");
    let states = [
        ("waiting", stats.waiting),
        ("queued", stats.queued),
        ("pending", stats.pending),
        ("processing", stats.processing),
    ];
    for (state, jobs) in states {
        page.value("jobs", &format!("state=\"{state}\""), jobs);
    }
    page.gauge("batches_in_flight", "batches in hand", stats.in_flight);
    page.gauge("queue_capacity", "room in the queue", QUEUE_CAPACITY);
    page.gauge(
        "batch_size_limit",
        "most jobs in a batch",
        settings.max_batch_size,
    );
    page.gauge(
        "interval_seconds",
        "longest wait for company",
        settings.interval.as_secs_f64(),
    );
    page.gauge(
        "in_flight_limit",
        "most batches in hand",
        settings.max_in_flight,
    );
}

struct Page(String);

impl Page {
    fn name(&mut self, name: &str, kind: &str, help: &str) {
        self.line(&format!("# HELP microbatch_{name} {help}"));
        self.line(&format!("# TYPE microbatch_{name} {kind}"));
    }

    fn value(&mut self, name: &str, label: &str, value: impl std::fmt::Display) {
        let comma = if label.is_empty() { "" } else { "," };
        self.line(&format!(
            "microbatch_{name}{{batcher=\"inserts\"{comma}{label}}} {value}"
        ));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.name(name, "gauge", help);
        self.value(name, "", value);
    }

    fn distribution(&mut self, name: &str, help: &str, values: &Distribution) {
        self.name(name, "histogram", help);
        let bounds = values.bounds.iter().map(f64::to_string);
        let mut below = 0;
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&values.counts) {
            below += count;
            self.value(&format!("{name}_bucket"), &format!("le=\"{bound}\""), below);
        }
        self.value(&format!("{name}_sum"), "", values.sum);
        self.value(&format!("{name}_count"), "", below);
    }

    fn line(&mut self, line: &str) {
        // A string has room for everything.
        let _ = writeln!(self.0, "{line}");
    }
}
