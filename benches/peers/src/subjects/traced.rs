//! Callers that have a span for each job, under a subscriber.

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;

use crate::subject::Subject;

/// Who listens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listener {
    None,
    /// A log at INFO, into nothing.
    Log,
    /// An exporter that keeps all spans.
    OpenTelemetry,
}

#[derive(Clone)]
pub(crate) struct Traced<S>(S);

impl<S> Traced<S> {
    pub(crate) fn start(listener: Listener, start: impl FnOnce() -> S) -> Self {
        let set = match listener {
            Listener::None => Ok(()),
            Listener::Log => {
                let log = tracing_subscriber::fmt()
                    .with_max_level(LevelFilter::INFO)
                    .with_writer(std::io::sink);
                tracing::subscriber::set_global_default(log.finish())
            }
            Listener::OpenTelemetry => {
                let provider = SdkTracerProvider::builder()
                    .with_simple_exporter(InMemorySpanExporter::default())
                    .build();
                let tracer = provider.tracer("peers");
                let layer = tracing_opentelemetry::layer().with_tracer(tracer);
                let registry = tracing_subscriber::registry();
                let registry = registry.with(LevelFilter::INFO).with(layer);
                tracing::subscriber::set_global_default(registry)
            }
        };
        set.expect("the only subscriber");
        Self(start())
    }
}

impl<S: Subject> Subject for Traced<S> {
    async fn ask(&mut self, job: u64) -> Option<u64> {
        self.0.ask(job).instrument(info_span!("caller")).await
    }
}
