//! The routes of the service proper.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use microbatch::TrySubmitError;
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::error::ServiceError;
use crate::flight::Flight;
use crate::later::Job;

#[derive(Serialize)]
pub struct Stored {
    id: i64,
}

type Created = (StatusCode, [(HeaderName, String); 1], Json<Stored>);
type Body = Result<Json<Flight>, JsonRejection>;

/// Stores a flight in a commit of its own.
pub async fn insert_alone(
    State(app): State<Arc<App>>,
    body: Body,
) -> Result<Created, ServiceError> {
    let id = app.row_by_row.insert(valid(body)?).await?;
    Ok(created(id))
}

/// Stores a flight in a commit with others.
pub async fn insert(State(app): State<Arc<App>>, body: Body) -> Result<Created, ServiceError> {
    let id = app.batched.insert(valid(body)?).await?;
    Ok(created(id))
}

#[derive(Serialize)]
pub struct Accepted {
    id: String,
    /// It was accepted before under this id.
    duplicate: bool,
}

/// Accepts a flight once it is on disk, to be stored later. Whoever has no answer sends
/// it again with the same `Idempotency-Key`, and it is stored once.
pub async fn accept(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Accepted>), ServiceError> {
    let id = match headers.get("idempotency-key") {
        Some(key) => key
            .to_str()
            .map(str::to_owned)
            .map_err(|_| ServiceError::unprocessable("`Idempotency-Key` is not text".to_owned()))?,
        None => Uuid::now_v7().to_string(),
    };
    let flight = valid(body)?;
    let new = app
        .later
        .accept(Job {
            id: id.clone(),
            flight,
        })
        .await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(Accepted {
            id,
            duplicate: !new,
        }),
    ))
}

/// Loads a flight.
pub async fn load(
    State(app): State<Arc<App>>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Flight>, ServiceError> {
    let Path(id) = id?;
    let handle = app.loads.try_submit(id).map_err(|error| match error {
        TrySubmitError::Full(_) => ServiceError::Full,
        _ => ServiceError::Stopping,
    })?;
    let flight = handle.await?;
    let missing = || ServiceError::Bad(StatusCode::NOT_FOUND, format!("no flight {id}"));
    flight.map(Json).ok_or_else(missing)
}

fn valid(body: Body) -> Result<Flight, ServiceError> {
    let Json(flight) = body?;
    flight.check().map_err(ServiceError::unprocessable)?;
    Ok(flight)
}

fn created(id: i64) -> Created {
    let location = [(header::LOCATION, format!("/flights/{id}"))];
    (StatusCode::CREATED, location, Json(Stored { id }))
}
