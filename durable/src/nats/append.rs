//! Appending: one message for each job, all sent, then all awaited.

use std::collections::{HashMap, HashSet};

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use futures_util::future::try_join_all;

use super::client::{Published, Stored};
use super::error::JetStreamError;
use super::face::Shared;
use super::names::{self, CODEC_LEN, encode_id, encode_text};
use crate::job::NewJob;
use crate::outcome::{Appended, Refusal};

const CALL: &str = "append";

/// What became of a job so far.
enum Sent {
    Answered(Appended),
    Acked(PublishAckFuture),
}

impl Shared {
    pub(super) async fn append(&self, jobs: &[NewJob]) -> Result<Vec<Appended>, JetStreamError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut stored = self.store_all(jobs.iter().map(|job| (job, None))).await?;
        self.store_freed(jobs, &mut stored).await?;
        self.take_back(jobs, &mut stored).await?;
        Ok(stored.into_iter().map(|(answer, _)| answer).collect())
    }

    /// Sends jobs, each with a generation of its id, and waits for all. Answers with the
    /// sequences of those that are new, and whether the server called one a duplicate by
    /// its message id.
    async fn store_all<'a>(
        &self,
        jobs: impl Iterator<Item = (&'a NewJob, Option<u64>)>,
    ) -> Result<Vec<(Appended, Option<Stored>)>, JetStreamError> {
        let work = async {
            let mut sent = Vec::new();
            for (job, generation) in jobs {
                sent.push(self.send(job, generation).await?);
            }
            let mut answers = Vec::with_capacity(sent.len());
            for sent in sent {
                answers.push(match sent {
                    Sent::Answered(answer) => (answer, None),
                    Sent::Acked(ack) => {
                        let stored = self.connection.stored(CALL, &self.names.live, ack).await?;
                        let answer = match stored {
                            Stored::New(_) => Appended::New,
                            Stored::Duplicate | Stored::SubjectTaken => Appended::Duplicate,
                        };
                        (answer, Some(stored))
                    }
                });
            }
            Ok(answers)
        };
        self.connection.bounded(CALL, &[".jobs."], work).await
    }

    async fn send(&self, job: &NewJob, generation: Option<u64>) -> Result<Sent, JetStreamError> {
        let codec = encode_text(&job.codec);
        // A long name of a codec takes room from the payload.
        let max = self.max_payload - self.max_payload.min(codec.len().saturating_sub(CODEC_LEN));
        if let Err(refusal) = job.check(max) {
            return Ok(Sent::Answered(Appended::Refused(refusal)));
        }
        let token = encode_id(&job.id);
        let subject = self.names.job(&token);
        let mut headers = HeaderMap::new();
        headers.insert(names::CODEC, codec);
        let message_id = match generation {
            None => token,
            Some(generation) => format!("{token}#{generation}"),
        };
        let message = PublishMessage::build()
            .headers(headers)
            .payload(job.payload.clone())
            .message_id(message_id)
            .expected_last_subject_sequence(0);
        Ok(
            match self.connection.publish(CALL, subject, message).await? {
                Published::Sent(ack) => Sent::Acked(ack),
                // The server takes less than when this store was opened.
                Published::TooLarge => Sent::Answered(Appended::Refused(Refusal::TooLarge {
                    size: job.payload.len(),
                    limit: self
                        .connection
                        .client
                        .max_payload()
                        .saturating_sub(names::OVERHEAD)
                        .min(max),
                })),
            },
        )
    }

    /// Sends those again whose id was discarded since the server has seen its message id.
    async fn store_freed(
        &self,
        jobs: &[NewJob],
        stored: &mut [(Appended, Option<Stored>)],
    ) -> Result<(), JetStreamError> {
        let is_duplicate =
            |(_, stored): &(Appended, Option<Stored>)| *stored == Some(Stored::Duplicate);
        if !stored.iter().any(is_duplicate) || !self.dead.any_freed().await? {
            return Ok(());
        }
        let mut met = HashSet::new();
        let first_of_each: Vec<_> = (0..jobs.len())
            .filter(|at| is_duplicate(&stored[*at]) && met.insert(&jobs[*at].id))
            .collect();
        let marks = first_of_each.iter().map(|at| async {
            let mark = self.dead.freed(&encode_id(&jobs[*at].id)).await?;
            Ok::<_, JetStreamError>(mark.map(|mark| (*at, mark)))
        });
        let marks: Vec<_> = try_join_all(marks).await?.into_iter().flatten().collect();
        let again = marks.iter().map(|(at, mark)| (&jobs[*at], Some(*mark)));
        let answers = self.store_all(again).await?;
        for ((at, _), answer) in marks.into_iter().zip(answers) {
            stored[at] = answer;
        }
        Ok(())
    }

    /// Takes those back whose id a dead letter has. See the invariants of [`super::dead`].
    async fn take_back(
        &self,
        jobs: &[NewJob],
        stored: &mut [(Appended, Option<Stored>)],
    ) -> Result<(), JetStreamError> {
        let new: HashMap<_, _> = (0..jobs.len())
            .filter_map(|at| match stored[at].1 {
                Some(Stored::New(sequence)) => Some((&jobs[at].id, (at, sequence))),
                _ => None,
            })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        for (id, letter) in self.dead.letters(new.keys().copied()).await? {
            let (at, sequence) = new[&id];
            // A job that was delivered and has died since is not one of an id that was taken.
            if letter.job == sequence {
                continue;
            }
            // Without the right to delete, whoever has it delivered ends it.
            if let Err(error) = self.dead.delete(&self.names.live, sequence).await {
                tracing::debug!(id = %id, error = %error, "a duplicate of a dead job stays for a while");
            }
            stored[at].0 = Appended::Duplicate;
        }
        Ok(())
    }
}
