//! A job of a test.

use microbatch_durable::NewJob;

/// One that is its own id, as JSON.
pub(crate) fn job(id: &str) -> NewJob {
    NewJob {
        id: id.into(),
        codec: "json".into(),
        payload: format!("{id:?}").into(),
    }
}
