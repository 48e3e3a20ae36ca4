//! Pulling: one request for jobs at a time, owned by a task, so that what it brings is lost
//! with no caller.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::{Message, StatusCode, Subscriber};
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, Shared as SharedFuture, join_all};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::dead::{revived_from, system_time};
use super::error::JetStreamError;
use super::face::{JetStreamLease, Shared};
use super::leases::Delivery;
use super::names::{self, decode};
use super::setup;
use crate::job::Leased;

const CALL: &str = "lease";

/// The longest wait of the server for a job. Jobs that come to a pull whose callers were
/// dropped wait for the next, so it is short; and the time of a lease is counted from its
/// beginning.
const LONGEST_PULL: Duration = Duration::from_millis(500);

/// The most jobs of a pull. A client drops what comes faster than it is read, beyond 65 536.
const LARGEST_PULL: usize = 4096;

/// A pause after an answer that came too early.
const PAUSE: Duration = Duration::from_millis(20);

/// After how many pulls that brought nothing the consumer is compared with its stream.
const EMPTY_PULLS: u32 = 10;

/// The pull that is on its way, for all who wait for it.
pub(super) type Pull = SharedFuture<BoxFuture<'static, Result<(), JetStreamError>>>;

/// A caller that waits, and for how many.
struct Waiting<'a>(&'a Shared, usize);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, max: usize) -> Self {
        shared.pulls().wanted += max;
        Self(shared, max)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pulls().wanted -= self.1;
    }
}

#[derive(Debug, Default)]
pub(super) struct Pulls {
    current: Option<Pull>,
    /// How many jobs those want who wait.
    wanted: usize,
    /// How many pulls brought nothing.
    empty: u32,
    closed: bool,
}

impl Pulls {
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn current(&self) -> Option<Pull> {
        self.current.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

impl Shared {
    pub(super) async fn lease(
        self: &Arc<Self>,
        max: usize,
    ) -> Result<Vec<Leased<JetStreamLease>>, JetStreamError> {
        let max = max.clamp(1, LARGEST_PULL);
        let _waiting = Waiting::new(self, max);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Listens before it looks, so that nothing released is missed.
            changed.as_mut().enable();
            self.check_open()?;
            let leased = self.leases().give(max);
            if !leased.is_empty() {
                return Ok(leased);
            }
            let pull = self.current_pull()?;
            tokio::select! {
                pulled = pull => pulled?,
                () = changed => {}
            }
        }
    }

    /// Joins the pull that is on its way, or starts one.
    fn current_pull(self: &Arc<Self>) -> Result<Pull, JetStreamError> {
        let mut pulls = self.pulls();
        // Whoever closes the store waits for the pull that is there, and for no later one.
        if pulls.closed {
            return Err(self.closed());
        }
        if let Some(pull) = &pulls.current
            && pull.peek().is_none()
        {
            return Ok(pull.clone());
        }
        let asked = pulls.wanted.clamp(1, LARGEST_PULL);
        let shared = Arc::clone(self);
        let task = self.tasks.spawn(async move { shared.pull(asked).await });
        let stream = self.names.live.clone();
        let pull = async move {
            // Only the end of the runtime ends the task early.
            let ended = |_| Err(JetStreamError::Closed { stream });
            task.await.unwrap_or_else(ended)
        };
        let pull = pull.boxed().shared();
        pulls.current = Some(pull.clone());
        Ok(pull)
    }

    /// A server that came back without its last messages is as silent as one without jobs.
    async fn look_at_silence(&self) -> Result<(), JetStreamError> {
        let empty = {
            let mut pulls = self.pulls();
            pulls.empty = (pulls.empty + 1) % EMPTY_PULLS;
            pulls.empty
        };
        match empty {
            0 => setup::check_not_ahead(&self.connection, &self.names).await,
            _ => Ok(()),
        }
    }

    /// Asks the server once, and keeps what comes.
    async fn pull(self: Arc<Self>, asked: usize) -> Result<(), JetStreamError> {
        let expires = LONGEST_PULL.min(self.lease_time / 10);
        let (started, messages, failure) = self.fetch(asked, expires).await?;
        let deliveries: Vec<_> = messages
            .into_iter()
            .filter_map(|message| self.read(message))
            .map(Arc::new)
            .collect();
        if deliveries.is_empty() {
            return match failure {
                Some(error) => Err(error),
                None => self.look_at_silence().await,
            };
        }
        let due = self.without_dead(deliveries).await?;
        let ends = started + self.lease_time;
        let mut leases = self.leases();
        for delivery in due {
            leases.keep(delivery, ends);
        }
        drop(leases);
        self.changed.notify_waiters();
        // What has come is given first. An error comes again with the next pull.
        Ok(())
    }

    /// Returns when it asked, what came, and what ended it if not the server's own answer.
    async fn fetch(
        self: &Arc<Self>,
        asked: usize,
        expires: Duration,
    ) -> Result<(Instant, Vec<Message>, Option<JetStreamError>), JetStreamError> {
        let client = &self.connection.client;
        let next = format!(
            "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
            self.names.live, self.names.consumer
        );
        let inbox = client.new_inbox();
        // Both: waits for the first job, then answers with what there is, and ends.
        let body = json!({
            "batch": asked,
            "expires": u64::try_from(expires.as_nanos()).unwrap_or(u64::MAX),
            "no_wait": true,
        });
        // What is sent without a connection waits in the client.
        self.connection.check_connected()?;
        let subscribe = async {
            let subscribed = client.subscribe(inbox.clone()).await;
            subscribed.map_err(|error| self.connection.unreachable(&error))
        };
        let mut answers = self.connection.bounded(CALL, &[], subscribe).await?;
        let started = Instant::now();
        let (mut messages, mut pause) = (Vec::new(), Duration::ZERO);
        let work = async {
            let send = async {
                let sent = client.publish_with_reply(next.clone(), inbox, body.to_string().into());
                sent.await
                    .map_err(|error| self.connection.unreachable(&error))
            };
            self.connection.bounded(CALL, &[], send).await?;
            // Each message may take as long as a call; the other half is for `silence`.
            loop {
                let patience = expires + self.connection.call_timeout / 2;
                let Ok(answer) = timeout(patience, answers.next()).await else {
                    return Err(self.silence().await);
                };
                let Some(message) = answer else {
                    return Err(JetStreamError::Unreachable {
                        server: self.connection.server.to_string(),
                        reason: "the connection was closed".to_owned(),
                    });
                };
                match message.status {
                    None | Some(StatusCode::OK) => {
                        messages.push(message);
                        if messages.len() == asked {
                            return Ok(());
                        }
                    }
                    Some(StatusCode::IDLE_HEARTBEAT) => {}
                    Some(StatusCode::NO_RESPONDERS) => {
                        return Err(JetStreamError::MissingConsumer {
                            stream: self.names.live.clone(),
                            consumer: self.names.consumer.to_owned(),
                        });
                    }
                    Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => {
                        // Before its time: others wait.
                        if messages.is_empty() && started.elapsed() < expires / 2 {
                            pause = PAUSE;
                        }
                        return Ok(());
                    }
                    Some(_) => {
                        let reason = message.description.unwrap_or_default();
                        if reason.contains("Consumer Deleted") {
                            return Err(JetStreamError::MissingConsumer {
                                stream: self.names.live.clone(),
                                consumer: self.names.consumer.to_owned(),
                            });
                        }
                        tracing::debug!(reason, "the server ended a pull");
                        pause = PAUSE;
                        return Ok(());
                    }
                }
            }
        };
        let failure = self.connection.unbounded(&[&next], work).await.err();
        if failure.is_some() {
            self.tasks
                .spawn(Arc::clone(self).keep_late(answers, started));
        }
        sleep(pause).await;
        Ok((started, messages, failure))
    }

    /// Listens to a pull that has failed for as long as what it brings can be leased: its
    /// request may reach the server when the network is back.
    async fn keep_late(self: Arc<Self>, mut answers: Subscriber, started: Instant) {
        let until = started + self.lease_time / 2;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                message = timeout(left, answers.next()) => message,
            };
            let Ok(Some(message)) = message else {
                return;
            };
            if !matches!(message.status, None | Some(StatusCode::OK)) {
                continue;
            }
            let late = self.read(message).map(Arc::new).into_iter().collect();
            // Without an answer, the job is due when this lease ends.
            if let Ok(due) = self.without_dead(late).await {
                let mut leases = self.leases();
                for delivery in due {
                    leases.keep(delivery, started + self.lease_time);
                }
            }
            self.changed.notify_waiters();
        }
    }

    /// Says why nobody answers a pull: servers of 2.9 are silent if there is no consumer.
    async fn silence(&self) -> JetStreamError {
        let asked = self.connection.consumer_info(&self.names);
        match timeout(self.connection.call_timeout / 2, asked).await {
            Ok(Err(error)) => error,
            _ => self.connection.timed_out(CALL),
        }
    }

    fn read(&self, message: Message) -> Option<Delivery> {
        let message = jetstream::Message {
            context: self.connection.jetstream.clone(),
            message,
        };
        let info = match message.info() {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(error = %error, "the server sent a message that is no delivery");
                return None;
            }
        };
        let attempt = u32::try_from(info.delivered).unwrap_or(u32::MAX);
        let (sequence, place) = (info.stream_sequence, info.consumer_sequence);
        let published = info.published.unix_timestamp_nanos();
        let message = message.message;
        let header = |name| Some(message.headers.as_ref()?.get(name)?.as_str());
        let token = message.subject.rsplit('.').next().unwrap_or_default();
        Some(Delivery {
            id: decode(token).into(),
            codec: decode(header(names::CODEC).unwrap_or_default()).into(),
            appended: header(names::APPENDED)
                .and_then(|nanos| nanos.parse().ok())
                .map_or_else(|| system_time(published), system_time),
            attempt: NonZeroU32::new(attempt).unwrap_or(NonZeroU32::MIN),
            sequence,
            place,
            revived: message.headers.as_ref().and_then(revived_from),
            reply: message.reply?,
            payload: message.payload,
        })
    }

    /// Leaves those out whose id a dead letter has. See the invariants of [`super::dead`].
    async fn without_dead(
        &self,
        mut deliveries: Vec<Arc<Delivery>>,
    ) -> Result<Vec<Arc<Delivery>>, JetStreamError> {
        let letters = self
            .dead
            .letters(deliveries.iter().map(|delivery| &delivery.id))
            .await?;
        if letters.is_empty() {
            return Ok(deliveries);
        }
        let mut held_back = Vec::new();
        deliveries.retain(|delivery| {
            let Some((_, letter)) = letters.iter().find(|(id, _)| *id == delivery.id) else {
                return true;
            };
            if delivery.revived == Some(letter.sequence) {
                return true;
            }
            held_back.push((Arc::clone(delivery), letter.job == delivery.sequence));
            false
        });
        let each = held_back.iter().map(|(delivery, is_dead)| async move {
            // A job of an id that was taken. Whoever appended it takes it back, or learns
            // that the letter has gone: so the first time, it is left to them.
            if !is_dead && delivery.attempt.get() == 1 {
                let later = self.lease_time.max(2 * self.connection.call_timeout);
                return self.give_back(delivery, later).await;
            }
            self.end(delivery).await
        });
        let work = async { Ok(join_all(each).await) };
        for ended in self.connection.bounded(CALL, &["$JS.ACK."], work).await? {
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a job with a dead letter comes again");
            }
        }
        Ok(deliveries)
    }
}
