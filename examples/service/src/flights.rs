//! The routes of the service proper.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use microbatch::TrySubmitError;
use serde::Serialize;

use crate::app::App;
use crate::error::ServiceError;
use crate::flight::Flight;

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
