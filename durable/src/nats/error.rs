//! Why the server could not do what it was asked.

use std::time::Duration;

/// Why a [`JetStreamStore`](super::JetStreamStore) could not be opened, or could not do
/// what it was asked. Each names what it is about.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{JetStreamError, JetStreamStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Nobody listens on the port 1.
/// match JetStreamStore::connect("nats://127.0.0.1:1").await.unwrap_err() {
///     JetStreamError::Unreachable { server, .. } => assert_eq!(server, "127.0.0.1:1"),
///     other => panic!("{other}"),
/// }
/// # }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JetStreamError {
    /// No server can be reached. The connection is tried again in the background.
    #[error("cannot reach the NATS server `{server}`: {reason}")]
    Unreachable {
        /// Its address, without a password.
        server: String,
        /// What the system said.
        reason: String,
    },
    /// The server does not take these credentials.
    #[error("the NATS server `{server}` refuses the credentials")]
    Credentials {
        /// Its address, without a password.
        server: String,
    },
    /// The user has no right to publish to a subject, or to subscribe to it.
    #[error("the NATS server `{server}` does not let this user use `{subject}`")]
    Forbidden {
        /// The server's address, without a password.
        server: String,
        /// The subject.
        subject: String,
    },
    /// There is no such stream.
    #[error("there is no stream `{stream}`")]
    MissingStream {
        /// Its name.
        stream: String,
    },
    /// The stream has no such consumer.
    #[error("the stream `{stream}` has no consumer `{consumer}`")]
    MissingConsumer {
        /// The name of the stream.
        stream: String,
        /// The name of the consumer.
        consumer: String,
    },
    /// A stream or its consumer is there, and is not one of this store.
    #[error("the stream `{stream}` has {option} {found}; this store needs {expected}")]
    Differs {
        /// Its name.
        stream: String,
        /// What differs.
        option: &'static str,
        /// What it is.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// The consumer has seen what the stream does not have, as after a loss of power. What
    /// is appended now would not be delivered until the stream has caught up. Delete the
    /// consumer: the next store makes it anew, and leases what is in the stream again.
    #[error(
        "the consumer `{consumer}` has seen message {delivered} of the stream `{stream}`, whose \
         last is {last}"
    )]
    ConsumerAhead {
        /// The name of the stream.
        stream: String,
        /// The name of the consumer.
        consumer: String,
        /// The last message that the consumer has delivered.
        delivered: u64,
        /// The last message of the stream.
        last: u64,
    },
    /// The server did not answer in time. What was asked may have happened.
    #[error("the NATS server `{server}` did not answer `{call}` within {after:?}")]
    TimedOut {
        /// Its address, without a password.
        server: String,
        /// What was asked.
        call: &'static str,
        /// The timeout.
        after: Duration,
    },
    /// An option that cannot be.
    #[error("the option `{option}`: {reason}")]
    BadOption {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused, as it does without JetStream or without room.
    #[error("the NATS server `{server}` refused `{call}`: {reason} ({code})")]
    Refused {
        /// Its address, without a password.
        server: String,
        /// What was asked.
        call: &'static str,
        /// The number that JetStream has for it; 0 if it has none.
        code: u64,
        /// What the server said.
        reason: String,
    },
    /// The store was closed.
    #[error("the store of the stream `{stream}` is closed")]
    Closed {
        /// The name of the stream.
        stream: String,
    },
}
