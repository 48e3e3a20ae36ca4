//! `/metrics`: what the micro-batchers record, in the text format of Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, header};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};

use crate::app::App;

pub struct Metrics(PrometheusRecorder);

const SIZES: &[f64] = &[1., 2., 5., 10., 20., 50., 100., 200., 500., 1000.];
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1., 2., 5., 10.,
];

impl Metrics {
    pub fn new() -> Result<Self, BuildError> {
        let of = |name: &str| Matcher::Full(format!("microbatch_batch_{name}"));
        let recorder = PrometheusBuilder::new()
            // Without buckets they would be summaries.
            .set_buckets_for_metric(of("size"), SIZES)?
            .set_buckets_for_metric(of("wait_seconds"), SECONDS)?
            .set_buckets_for_metric(of("duration_seconds"), SECONDS)?
            .build_recorder();
        Ok(Self(recorder))
    }

    /// Has the micro-batchers that are built here record into these metrics.
    pub fn of<T>(&self, build: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.0, build)
    }

    /// Gives memory back, as the exporter does only when told.
    pub fn upkeep(&self) {
        self.0.handle().run_upkeep();
    }
}

pub async fn metrics(State(app): State<Arc<App>>) -> ([(HeaderName, &'static str); 1], String) {
    // Gauges are otherwise as old as the last batch.
    app.batched.batcher.record_metrics();
    app.loads.record_metrics();
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, app.metrics.0.handle().render())
}
