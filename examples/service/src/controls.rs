//! What the page can change: settings, load, and the stop. Only by JSON, and only from
//! the page's own origin, so that no other page in the same browser can.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::callers::MOST_CALLERS;
use crate::error::ServiceError;
use crate::settings::{Change, Settings};

/// More than the queue and the largest batch hold.
const LARGEST_BURST: usize = 2000;

/// Refuses requests that are not from one of our own pages. The host is not compared with
/// the origin: the name of a foreign page can be made to lead here, and then both agree.
pub async fn own_origin(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ServiceError> {
    let origin = request.headers().get(header::ORIGIN);
    let own = |origin: &&_| app.origins.iter().any(|own| own.as_bytes() == *origin);
    match origin.map(|origin| origin.as_bytes()).filter(own) {
        Some(_) => Ok(next.run(request).await),
        None => Err(ServiceError::Bad(
            StatusCode::FORBIDDEN,
            "only from the page's own origin".to_owned(),
        )),
    }
}

pub async fn settings(
    State(app): State<Arc<App>>,
    change: Result<Json<Change>, JsonRejection>,
) -> Result<Json<Settings>, ServiceError> {
    let Json(change) = change?;
    change.check().map_err(ServiceError::unprocessable)?;
    change.apply(&app.batched.batcher)?;
    Ok(Json(Settings::of(&app.batched.batcher)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    callers: usize,
}

pub async fn load(
    State(app): State<Arc<App>>,
    load: Result<Json<Load>, JsonRejection>,
) -> Result<StatusCode, ServiceError> {
    let Json(Load { callers }) = load?;
    if callers > MOST_CALLERS {
        let why = format!("`callers` is more than {MOST_CALLERS}");
        return Err(ServiceError::unprocessable(why));
    }
    app.callers.set(&app, callers);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    jobs: usize,
}

#[derive(Serialize)]
pub struct Offered {
    accepted: usize,
    refused: usize,
}

/// Offers so many flights at once, and awaits none of them.
pub async fn burst(
    State(app): State<Arc<App>>,
    burst: Result<Json<Burst>, JsonRejection>,
) -> Result<Json<Offered>, ServiceError> {
    let Json(Burst { jobs }) = burst?;
    if jobs > LARGEST_BURST {
        let why = format!("`jobs` is more than {LARGEST_BURST}");
        return Err(ServiceError::unprocessable(why));
    }
    let offers = (0..jobs).map(|number| app.batched.offer(app.callers.flight(number)));
    let accepted = offers.filter(Result::is_ok).count();
    Ok(Json(Offered {
        accepted,
        refused: jobs - accepted,
    }))
}

/// Takes an object without fields, so that it is JSON like the others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {}

pub async fn stop(
    State(app): State<Arc<App>>,
    stop: Result<Json<Stop>, JsonRejection>,
) -> Result<StatusCode, ServiceError> {
    let Json(Stop {}) = stop?;
    app.stop.cancel();
    Ok(StatusCode::ACCEPTED)
}
