//! Why a request has no result, and what its caller is told.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use microbatch::{JobError, ReconfigureError};
use serde_json::json;

use crate::store::{StoreError, describe};

#[derive(Debug)]
pub enum ServiceError {
    /// The caller is wrong.
    Bad(StatusCode, String),
    /// There is no room now.
    Full,
    /// The service takes no more jobs.
    Stopping,
    /// The store failed. The log says why, and the caller does not hear of it.
    Failed,
}

impl ServiceError {
    pub fn unprocessable(why: String) -> Self {
        Self::Bad(StatusCode::UNPROCESSABLE_ENTITY, why)
    }
}

impl From<JobError> for ServiceError {
    fn from(error: JobError) -> Self {
        if matches!(error, JobError::Closed) {
            return Self::Stopping;
        }
        tracing::error!("no result: {}", describe(&error));
        Self::Failed
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        tracing::error!("no result: {}", describe(&*error));
        Self::Failed
    }
}

impl From<JsonRejection> for ServiceError {
    fn from(rejection: JsonRejection) -> Self {
        Self::Bad(rejection.status(), lowercase(&rejection.body_text()))
    }
}

impl From<PathRejection> for ServiceError {
    fn from(rejection: PathRejection) -> Self {
        Self::Bad(rejection.status(), lowercase(&rejection.body_text()))
    }
}

impl From<ReconfigureError> for ServiceError {
    fn from(error: ReconfigureError) -> Self {
        match error {
            ReconfigureError::Closed => Self::Stopping,
            error => Self::unprocessable(describe(&error)),
        }
    }
}

/// Makes axum's sentences look like ours.
fn lowercase(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_lowercase);
    first.chain(letters.as_str().chars()).collect()
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::Bad(status, why) => (status, why),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "busy, try again".into()),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping".into()),
            Self::Failed => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "it is not known whether the job was done".into(),
            ),
        };
        let mut response = (status, Json(json!({ "error": why }))).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
