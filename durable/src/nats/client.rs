//! The connection: requests that end in time, and errors that name what is wrong.

use std::error::Error;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::error::JetStreamError;
use super::names::{Names, decode};

/// A connection, and what it heard about rights.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) jetstream: Context,
    /// Its address, without a password.
    pub(super) server: Arc<str>,
    pub(super) call_timeout: Duration,
    /// The subjects that the server has refused to this user.
    forbidden: broadcast::Sender<Arc<str>>,
}

/// An answer of JetStream that is an error.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u64,
    pub(super) reason: String,
}

const STREAM_NOT_FOUND: u64 = 10059;
const CONSUMER_NOT_FOUND: u64 = 10014;
pub(super) const MESSAGE_NOT_FOUND: u64 = 10037;
/// The sequence of a message to delete is unknown.
pub(super) const SEQUENCE_NOT_FOUND: u64 = 10043;
const WRONG_LAST_SEQUENCE: u64 = 10071;

impl Connection {
    pub(super) async fn open(url: &str, call_timeout: Duration) -> Result<Self, JetStreamError> {
        let server = without_password(url);
        let (forbidden, _) = broadcast::channel(64);
        let heard = forbidden.clone();
        let mut options = ConnectOptions::new();
        // The client leaves these to its user.
        if let Some((user, password)) = credentials(url) {
            options = options.user_and_password(user, password);
        }
        let connect = options
            .name("microbatch-durable")
            .connection_timeout(call_timeout)
            .event_callback(move |event| {
                if let Event::ServerError(ServerError::Other(message)) = &event
                    && let Some(subject) = forbidden_subject(message)
                {
                    let _ = heard.send(subject.into());
                }
                async {}
            })
            .connect(url);
        // The connection's own timeout is one for each address.
        let connected = timeout(call_timeout, connect).await;
        let client = match connected {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                        JetStreamError::Credentials { server }
                    }
                    ConnectErrorKind::ServerParse => JetStreamError::BadOption {
                        option: "url",
                        reason: "it is not the address of a NATS server".to_owned(),
                    },
                    _ if describes_credentials(&error) => JetStreamError::Credentials { server },
                    _ => JetStreamError::Unreachable {
                        server,
                        // The errors of the client have their causes in their texts.
                        reason: error.to_string(),
                    },
                });
            }
            Err(_) => {
                return Err(JetStreamError::Unreachable {
                    server,
                    reason: format!("no connection within {call_timeout:?}"),
                });
            }
        };
        Ok(Self::new(client, server.into(), call_timeout, forbidden))
    }

    /// Uses a client that somebody else has made. Which rights it lacks is not heard.
    pub(super) fn of_client(client: Client, call_timeout: Duration) -> Self {
        let info = client.server_info();
        let server = format!("{}:{}", info.host, info.port).into();
        let (forbidden, _) = broadcast::channel(1);
        Self::new(client, server, call_timeout, forbidden)
    }

    fn new(
        client: Client,
        server: Arc<str>,
        call_timeout: Duration,
        forbidden: broadcast::Sender<Arc<str>>,
    ) -> Self {
        let jetstream = ContextBuilder::new()
            .timeout(call_timeout)
            .build(client.clone());
        Self {
            client,
            jetstream,
            server,
            call_timeout,
            forbidden,
        }
    }

    /// Waits for what a call does, no longer than a call may take, and not at all once the
    /// server refuses a subject that has one of `concerns` in it.
    pub(super) async fn bounded<T>(
        &self,
        call: &'static str,
        concerns: &[&str],
        work: impl Future<Output = Result<T, JetStreamError>>,
    ) -> Result<T, JetStreamError> {
        let work = async {
            match timeout(self.call_timeout, work).await {
                Ok(done) => done,
                Err(_) => Err(self.timed_out(call)),
            }
        };
        self.unbounded(concerns, work).await
    }

    /// The same for work that has its own end.
    pub(super) async fn unbounded<T>(
        &self,
        concerns: &[&str],
        work: impl Future<Output = Result<T, JetStreamError>>,
    ) -> Result<T, JetStreamError> {
        let mut refused = self.forbidden.subscribe();
        let forbidden = async {
            loop {
                match refused.recv().await {
                    Ok(subject) => {
                        let concerned = subject.starts_with("_INBOX")
                            || concerns.iter().any(|part| subject.contains(part));
                        if concerned {
                            return subject.to_string();
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            subject = forbidden => Err(JetStreamError::Forbidden {
                server: self.server.to_string(),
                subject,
            }),
        }
    }

    /// Asks the API of JetStream.
    pub(super) async fn api(
        &self,
        call: &'static str,
        subject: &str,
        body: &Value,
    ) -> Result<Result<Value, Refusal>, JetStreamError> {
        // A server takes an empty question, and not the word `null`, where it needs none.
        let body = match body {
            Value::Null => Bytes::new(),
            body => body.to_string().into(),
        };
        let request = async_nats::Request::new().payload(body).timeout(None);
        let ask = async {
            let answer = self
                .client
                .send_request(format!("$JS.API.{subject}"), request)
                .await;
            match answer {
                Ok(message) => serde_json::from_slice(&message.payload)
                    .map_err(|error| self.refused(call, 0, &error.to_string())),
                Err(error) => Err(match error.kind() {
                    RequestErrorKind::TimedOut => self.timed_out(call),
                    RequestErrorKind::NoResponders => {
                        self.refused(call, 0, "JetStream is not enabled")
                    }
                    _ => self.unreachable(&error),
                }),
            }
        };
        let mut answer: Value = self.bounded(call, &[subject], ask).await?;
        Ok(match answer.get_mut("error").map(Value::take) {
            Some(error) => Err(Refusal {
                code: error["err_code"].as_u64().unwrap_or(0),
                reason: error["description"].as_str().unwrap_or("").to_owned(),
            }),
            None => Ok(answer),
        })
    }

    /// Asks for a stream that is there.
    pub(super) async fn stream_info(
        &self,
        stream: &str,
        body: &Value,
    ) -> Result<Value, JetStreamError> {
        let call = "stream info";
        let answer = self
            .api(call, &format!("STREAM.INFO.{stream}"), body)
            .await?;
        answer.map_err(|refusal| self.error_of(call, stream, "", refusal))
    }

    /// Asks for the consumer, which is there.
    pub(super) async fn consumer_info(&self, names: &Names) -> Result<Value, JetStreamError> {
        let Names { live, consumer, .. } = names;
        let call = "consumer info";
        let subject = format!("CONSUMER.INFO.{live}.{consumer}");
        let answer = self.api(call, &subject, &Value::Null).await?;
        answer.map_err(|refusal| self.error_of(call, live, consumer, refusal))
    }

    /// Sends to the subject that a message told for its acknowledgement, and waits until
    /// the server says that it has it.
    pub(super) async fn acknowledge(
        &self,
        call: &'static str,
        names: &Names,
        reply: async_nats::Subject,
        payload: Bytes,
    ) -> Result<(), JetStreamError> {
        // All of a call share one timeout, which is not here.
        let request = async_nats::Request::new().payload(payload).timeout(None);
        match self.client.send_request(reply, request).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::TimedOut => self.timed_out(call),
                RequestErrorKind::NoResponders => JetStreamError::MissingConsumer {
                    stream: names.live.clone(),
                    consumer: names.consumer.to_owned(),
                },
                _ => self.unreachable(&error),
            }),
        }
    }

    /// Sends a message, of which the server tells later whether it has stored it.
    pub(super) async fn publish(
        &self,
        call: &'static str,
        subject: String,
        message: PublishMessage,
    ) -> Result<Published, JetStreamError> {
        match self.jetstream.send_publish(subject, message).await {
            Ok(ack) => Ok(Published::Sent(ack)),
            Err(error) => match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Ok(Published::TooLarge),
                PublishErrorKind::TimedOut => Err(self.timed_out(call)),
                _ => Err(self.unreachable(&error)),
            },
        }
    }

    /// Waits until the server says what became of a message.
    pub(super) async fn stored(
        &self,
        call: &'static str,
        stream: &str,
        ack: PublishAckFuture,
    ) -> Result<Stored, JetStreamError> {
        let error = match ack.into_future().await {
            Ok(PublishAck {
                duplicate: false,
                sequence,
                ..
            }) => return Ok(Stored::New(sequence)),
            Ok(_) => return Ok(Stored::Duplicate),
            Err(error) => error,
        };
        let source = error
            .source()
            .and_then(|source| source.downcast_ref::<jetstream::Error>());
        match (error.kind(), source) {
            (PublishErrorKind::WrongLastSequence, _) => Ok(Stored::SubjectTaken),
            (PublishErrorKind::StreamNotFound, _) => Err(JetStreamError::MissingStream {
                stream: stream.to_owned(),
            }),
            (PublishErrorKind::TimedOut, _) => Err(self.timed_out(call)),
            (_, Some(refusal)) => match refusal.error_code().0 {
                WRONG_LAST_SEQUENCE => Ok(Stored::SubjectTaken),
                code => Err(self.refused(call, code, &refusal.to_string())),
            },
            _ => Err(self.unreachable(&error)),
        }
    }

    /// Fails if there is no connection now. What is sent without one waits in the client,
    /// and would reach the server when it is no longer true.
    pub(super) fn check_connected(&self) -> Result<(), JetStreamError> {
        match self.client.connection_state() {
            async_nats::connection::State::Connected => Ok(()),
            _ => Err(JetStreamError::Unreachable {
                server: self.server.to_string(),
                reason: "the connection is down".to_owned(),
            }),
        }
    }

    pub(super) fn timed_out(&self, call: &'static str) -> JetStreamError {
        JetStreamError::TimedOut {
            server: self.server.to_string(),
            call,
            after: self.call_timeout,
        }
    }

    pub(super) fn refused(&self, call: &'static str, code: u64, reason: &str) -> JetStreamError {
        JetStreamError::Refused {
            server: self.server.to_string(),
            call,
            code,
            reason: reason.to_owned(),
        }
    }

    pub(super) fn unreachable(&self, error: &(dyn Error + 'static)) -> JetStreamError {
        JetStreamError::Unreachable {
            server: self.server.to_string(),
            // The errors of the client have their causes in their texts.
            reason: error.to_string(),
        }
    }

    /// An answer of JetStream that is an error, of a call that is about this stream.
    pub(super) fn error_of(
        &self,
        call: &'static str,
        stream: &str,
        consumer: &str,
        refusal: Refusal,
    ) -> JetStreamError {
        match refusal.code {
            STREAM_NOT_FOUND => JetStreamError::MissingStream {
                stream: stream.to_owned(),
            },
            CONSUMER_NOT_FOUND => JetStreamError::MissingConsumer {
                stream: stream.to_owned(),
                consumer: consumer.to_owned(),
            },
            code => self.refused(call, code, &refusal.reason),
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub(super) enum Published {
    Sent(PublishAckFuture),
    /// It is not sent: the server takes less.
    TooLarge,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// It is stored with this sequence.
    New(u64),
    /// One with its message id was stored less than the window ago.
    Duplicate,
    /// There is a message on its subject.
    SubjectTaken,
}

/// The address, or the addresses, of a URL.
fn without_password(url: &str) -> String {
    let one = |url: &str| {
        let url = url.trim();
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        host.to_owned()
    };
    url.split(',').map(one).collect::<Vec<_>>().join(",")
}

/// The user and the password in the first address that has them.
fn credentials(url: &str) -> Option<(String, String)> {
    let addresses = url.split(',').map(|one| one.trim().parse::<ServerAddr>());
    addresses.flatten().find_map(|address| {
        let user = decode(address.username()?);
        Some((user, decode(address.password().unwrap_or_default())))
    })
}

/// The subject in `Permissions Violation for Publish to "a.b"`.
fn forbidden_subject(message: &str) -> Option<&str> {
    let at = message.to_lowercase().find("permissions violation")?;
    message.get(at..)?.split('"').nth(1)
}

fn describes_credentials(error: &(dyn Error + 'static)) -> bool {
    let text = crate::outcome::describe(error).to_lowercase();
    text.contains("authorization violation") || text.contains("authentication")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_without_its_password() {
        assert_eq!(without_password("nats://me:secret@a:1"), "a:1");
        assert_eq!(without_password("a:1, tls://x:y@b:2"), "a:1,b:2");
    }

    #[test]
    fn a_user_and_a_password_are_read_from_an_address() {
        let read = |url| {
            let (user, password) = credentials(url)?;
            Some(format!("{user} {password}"))
        };
        assert_eq!(read("nats://a:1"), None);
        assert_eq!(read("nats://me:p%40%3A%é@a:1").unwrap(), "me p@:%é");
        assert_eq!(read("a:1, tls://x:y@b:2").unwrap(), "x y");
    }

    #[test]
    fn a_refused_subject_is_read_from_the_message() {
        let message = "Permissions Violation for Publish to \"a.b\"";
        assert_eq!(forbidden_subject(message), Some("a.b"));
        assert_eq!(forbidden_subject("Stale Connection"), None);
    }
}
