//! Settling: what a verdict sends, and when a lease has ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::client::{Published, Stored};
use super::dead::nanos;
use super::error::JetStreamError;
use super::face::{JetStreamLease, Shared};
use super::leases::{Delivery, Taken};
use super::names::{self, REASON_LEN, encode_id, encode_text, encode_text_within};
use crate::outcome::{Settled, Verdict};

const CALL: &str = "settle";
const ACK: Bytes = Bytes::from_static(b"+ACK");
const TERM: Bytes = Bytes::from_static(b"+TERM");
const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
const NAK: Bytes = Bytes::from_static(b"-NAK");

/// The longest delay that is asked for, which any server can count in nanoseconds.
const LONGEST_DELAY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A lease that is being settled. It is put back if the call is dropped.
struct Settling<'a> {
    shared: &'a Shared,
    lease: &'a JetStreamLease,
    verdict: &'a Verdict,
    /// Whether it was sent.
    sent: bool,
    done: bool,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if !self.done {
            let doubtful = self.sent && matches!(self.verdict, Verdict::Retry { .. });
            self.shared.leases().put_back(self.lease, doubtful);
        }
    }
}

impl Shared {
    pub(super) async fn settle(
        &self,
        verdicts: &[(JetStreamLease, Verdict)],
    ) -> Result<Vec<Settled>, JetStreamError> {
        let mut answers = vec![Settled::Lost; verdicts.len()];
        let mut mine = HashSet::new();
        let mut sent = FuturesUnordered::new();
        for (at, (lease, verdict)) in verdicts.iter().enumerate() {
            if *verdict == Verdict::Settled {
                if self.leases().held(lease).is_some() {
                    answers[at] = Settled::Held;
                }
                continue;
            }
            if mine.contains(&lease.0) {
                continue;
            }
            let repeatable = matches!(verdict, Verdict::Done | Verdict::Dead { .. });
            match self.leases().take(lease, repeatable) {
                Taken::Lost => {}
                Taken::Unknown => answers[at] = Settled::Unknown,
                Taken::Held(delivery) => {
                    mine.insert(lease.0);
                    let settling = Settling {
                        shared: self,
                        lease,
                        verdict,
                        sent: false,
                        done: false,
                    };
                    sent.push(async move { (at, settling.run(&delivery).await) });
                }
            }
        }
        if sent.is_empty() {
            return Ok(answers);
        }
        // Not before, so that what is lost is answered without a server.
        self.connection.check_connected()?;
        let work = async {
            let mut failure = None;
            while let Some((at, settled)) = sent.next().await {
                match settled {
                    Ok(()) => answers[at] = Settled::Held,
                    Err(error) => failure = Some(error),
                }
            }
            failure.map_or(Ok(answers), Err)
        };
        let concerns = ["$JS.ACK.", ".dead."];
        let answers = self.connection.bounded(CALL, &concerns, work).await;
        self.changed.notify_waiters();
        answers
    }

    /// Declares a job dead: its letter first, so that its id is never free.
    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<(), JetStreamError> {
        let token = encode_id(&delivery.id);
        let codec = encode_text(&delivery.codec);
        let mut headers = HeaderMap::new();
        let used =
            names::OVERHEAD + delivery.payload.len() + codec.len().saturating_sub(names::CODEC_LEN);
        let room = self.connection.client.max_payload().saturating_sub(used);
        let reason = encode_text_within(reason, REASON_LEN + room.min(64 << 10));
        headers.insert(names::REASON, reason);
        headers.insert(names::CODEC, codec);
        headers.insert(names::ATTEMPT, delivery.attempt.to_string());
        headers.insert(names::APPENDED, nanos(delivery.appended).to_string());
        headers.insert(names::SEQUENCE, delivery.sequence.to_string());
        let message = PublishMessage::build()
            .headers(headers)
            .payload(delivery.payload.clone())
            // A call that is repeated has one letter.
            .message_id(format!("{token}.{}", delivery.sequence));
        let subject = self.names.letter(&token);
        match self.connection.publish(CALL, subject, message).await? {
            Published::Sent(ack) => {
                let stored = self.connection.stored(CALL, &self.names.dead, ack).await?;
                if let Stored::New(sequence) = stored {
                    self.dead.note(delivery.id.clone(), sequence).await;
                }
                Ok(())
            }
            Published::TooLarge => {
                let reason = format!("{:?} is larger than the server takes now", &*delivery.id);
                Err(self.connection.refused(CALL, 0, &reason))
            }
        }
    }

    /// Ends a delivery that is of no job: it is dead, or it was appended with the id of one.
    pub(super) async fn end(&self, delivery: &Delivery) -> Result<(), JetStreamError> {
        let reply = delivery.reply.clone();
        let end = self
            .connection
            .acknowledge("lease", &self.names, reply, TERM);
        self.connection.bounded("lease", &["$JS.ACK."], end).await
    }

    pub(super) async fn give_back(
        &self,
        delivery: &Delivery,
        after: Duration,
    ) -> Result<(), JetStreamError> {
        let reply = delivery.reply.clone();
        self.connection
            .acknowledge(CALL, &self.names, reply, nak(after))
            .await
    }

    /// Gives jobs back that nobody has leased from this process. Their attempts count.
    pub(super) async fn give_back_all(&self, deliveries: Vec<Arc<Delivery>>) {
        if deliveries.is_empty() || self.connection.check_connected().is_err() {
            return;
        }
        let work = async {
            let each = deliveries.iter().map(|delivery| async {
                self.give_back(delivery, Duration::ZERO).await?;
                self.leases()
                    .note_returned(delivery.sequence, Duration::ZERO);
                Ok::<_, JetStreamError>(())
            });
            join_all(each).await.into_iter().collect::<Result<(), _>>()
        };
        let concerns = ["$JS.ACK."];
        if let Err(error) = self.connection.bounded(CALL, &concerns, work).await {
            let jobs = deliveries.len();
            tracing::warn!(
                jobs, error = %error,
                "the server did not take jobs back; they are due when their leases end",
            );
        }
    }

    pub(super) async fn extend(
        &self,
        leases: &[JetStreamLease],
    ) -> Result<Vec<Settled>, JetStreamError> {
        let held: Vec<_> = {
            let mut table = self.leases();
            leases.iter().map(|lease| table.held(lease)).collect()
        };
        if held.iter().all(Option::is_none) {
            return Ok(vec![Settled::Lost; leases.len()]);
        }
        self.connection.check_connected()?;
        let each = leases.iter().zip(held).map(|(lease, held)| async move {
            let Some(delivery) = held else {
                return Ok(Settled::Lost);
            };
            let ends = Instant::now() + self.lease_time;
            let reply = delivery.reply.clone();
            self.connection
                .acknowledge("extend", &self.names, reply, PROGRESS)
                .await?;
            self.leases().extended(lease, ends);
            Ok(Settled::Held)
        });
        let work = async { join_all(each).await.into_iter().collect() };
        self.connection.bounded("extend", &["$JS.ACK."], work).await
    }
}

impl Settling<'_> {
    async fn run(mut self, delivery: &Delivery) -> Result<(), JetStreamError> {
        let Self {
            shared,
            lease,
            verdict,
            ..
        } = self;
        let reply = delivery.reply.clone();
        let acknowledge = |payload| {
            let connection = &shared.connection;
            connection.acknowledge(CALL, &shared.names, reply, payload)
        };
        self.sent = true;
        match verdict {
            Verdict::Done => {
                acknowledge(ACK).await?;
                shared.leases().remove(lease);
            }
            Verdict::Retry { after, .. } => {
                acknowledge(nak(*after)).await?;
                shared.leases().give_back(lease, *after);
            }
            Verdict::Dead { reason } => {
                shared.bury(delivery, reason).await?;
                acknowledge(TERM).await?;
                shared.leases().remove(lease);
            }
            Verdict::Release => {
                let ends = Instant::now() + shared.lease_time;
                acknowledge(PROGRESS).await?;
                shared.leases().release(lease, ends);
            }
            Verdict::Settled => {}
        }
        self.done = true;
        Ok(())
    }
}

/// Gives a job back, due after a delay. Without one it is due at once.
fn nak(after: Duration) -> Bytes {
    match after.min(LONGEST_DELAY) {
        Duration::ZERO => NAK,
        after => format!("-NAK {{\"delay\": {}}}", after.as_nanos()).into(),
    }
}
