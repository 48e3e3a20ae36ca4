//! Which path leads where, and what holds for all of them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tracing::Level;

use crate::app::App;
use crate::error::ServiceError;
use crate::{controls, events, flights, metrics, page};

/// In bytes; a flight has some hundred.
const LARGEST_BODY: usize = 16 * 1024;

pub fn router(app: Arc<App>) -> Router {
    let controls = Router::new()
        .route("/settings", post(controls::settings))
        .route("/load", post(controls::load))
        .route("/burst", post(controls::burst))
        .route("/stop", post(controls::stop))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            controls::own_origin,
        ));
    Router::new()
        .route("/", get(page::page))
        .route("/events", get(events::stream))
        .route("/metrics", get(metrics::metrics))
        .route("/flights", post(flights::insert))
        .route("/flights/row-by-row", post(flights::insert_alone))
        .route("/flights/later", post(flights::accept))
        .route("/flights/{id}", get(flights::load))
        .merge(controls)
        .fallback(missing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn(never_guess))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
                // Overload is no failure, and those of the store are logged where they happen.
                .on_failure(()),
        )
        .with_state(app)
}

async fn missing() -> ServiceError {
    ServiceError::Bad(StatusCode::NOT_FOUND, "no such path".to_owned())
}

async fn wrong_method() -> ServiceError {
    let why = "this path has other methods".to_owned();
    ServiceError::Bad(StatusCode::METHOD_NOT_ALLOWED, why)
}

/// Has the browser take data for what it is said to be, and never for markup.
async fn never_guess(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
