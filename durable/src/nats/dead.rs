//! Dead letters: where they are, and which ids they hold.
//!
//! # Invariants
//!
//! - A job dies in this order: its letter is stored, then it leaves the live stream. So at
//!   no time is its id free. A process that dies between the two leaves both; whoever gets
//!   the job next finds the letter, which names the job's sequence, and finishes the move.
//! - No server compares an append with another stream. So an append, once it is stored,
//!   asks whether a letter of its id was there, and takes itself back. Asking first would
//!   miss a job that dies between the question and the append; asked afterwards, whatever
//!   freed the subject is seen, as the letter was stored before the subject was free.
//!   Until it is taken back, such a job may be delivered; so whoever has a job delivered
//!   asks the same, and holds it back.
//! - The question is one request for any number of jobs: the last sequence of the dead
//!   stream. `Index` has every id of a letter up to the sequence that it knows, and maybe
//!   some that have gone. Only an id that is in it is asked for by name.
//! - A revived job is stored before its letter is deleted, and names the letter. So a
//!   letter that is still there does not hold it back.
//! - A discarded id is free at once, though the server still knows its message id. So a
//!   discard leaves a mark for as long as the server counts duplicates. An append that the
//!   server calls a duplicate looks for the mark, and if there is one, is sent again with
//!   the mark's sequence as part of its message id: that counts duplicates anew.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind, Stream};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::client::{Connection, MESSAGE_NOT_FOUND, Published, SEQUENCE_NOT_FOUND, Stored};
use super::error::JetStreamError;
use super::names::{self, Names, decode, encode_id, encode_text};
use crate::asked::{answers, first_of_each};
use crate::job::{DeadJob, JobId};

/// How many requests of one call are on their way at the same time.
const CONCURRENT: usize = 256;

/// How many new letters are read one by one. More are read as a list of all.
const WALK: u64 = 256;

/// How often a job is revived against appends of its id.
const TRIES: usize = 5;

/// The dead letters of a stream.
#[derive(Debug)]
pub(super) struct DeadStream {
    connection: Connection,
    names: Names,
    dead: Stream<()>,
    live: Stream<()>,
    freed: Stream<()>,
    index: Mutex<Index>,
}

/// The ids of all letters up to a sequence, and maybe of some that have gone.
#[derive(Debug, Default)]
struct Index {
    /// The stream that was asked, by when it was made.
    created: Option<String>,
    known: u64,
    ids: BTreeSet<JobId>,
    /// Sequences behind the known ones, of letters of this store, which are in `ids`.
    ahead: BTreeSet<u64>,
}

/// A dead letter as it is stored.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) sequence: u64,
    /// The sequence that its job had.
    pub(super) job: u64,
    dead: DeadJob,
}

impl Index {
    /// Knows what this store has written itself, up to the first letter of another.
    fn catch_up(&mut self) {
        while let Some(next) = self.ahead.first().copied()
            && next <= self.known + 1
        {
            self.ahead.pop_first();
            self.known = self.known.max(next);
        }
    }
}

impl DeadStream {
    pub(super) fn new(
        connection: Connection,
        names: Names,
        [live, dead, freed]: [Stream<()>; 3],
    ) -> Self {
        Self {
            connection,
            names,
            dead,
            live,
            freed,
            index: Mutex::default(),
        }
    }

    /// How many letters there are.
    pub(super) async fn count(&self) -> Result<u64, JetStreamError> {
        let info = self
            .connection
            .stream_info(&self.names.dead, &Value::Null)
            .await?;
        Ok(number(&info["state"]["messages"]))
    }

    /// Has the index know all letters that are there now. Returns what it knows.
    async fn refresh(&self) -> Result<tokio::sync::MutexGuard<'_, Index>, JetStreamError> {
        // Asked before the lock is waited for: an answer that another caller waits for may
        // be older than what this one has to know.
        let info = self
            .connection
            .stream_info(&self.names.dead, &Value::Null)
            .await?;
        let (last, messages) = (
            number(&info["state"]["last_seq"]),
            number(&info["state"]["messages"]),
        );
        let created = info["created"].as_str().map(str::to_owned);
        let mut index = self.index.lock().await;
        let same = index.created == created && index.created.is_some();
        index.catch_up();
        if same && last <= index.known {
            return Ok(index);
        }
        if messages == 0 {
            *index = Index {
                created,
                known: last,
                ..Index::default()
            };
        } else if same && last - index.known <= WALK {
            self.walk(&mut index, last).await?;
        } else {
            *index = self.read_all(created).await?;
        }
        Ok(index)
    }

    /// Notes a letter that this store has written, so that it need not be read.
    pub(super) async fn note(&self, id: JobId, sequence: u64) {
        let mut index = self.index.lock().await;
        index.ids.insert(id);
        index.ahead.insert(sequence);
        index.catch_up();
    }

    /// Reads the letters behind those that are known.
    async fn walk(&self, index: &mut Index, last: u64) -> Result<(), JetStreamError> {
        let subject = self.names.letter("*");
        while index.known < last {
            let next = self
                .dead
                .get_first_raw_message_by_subject(&subject, index.known + 1);
            let next = async {
                match next.await {
                    Ok(message) => Ok(Some(message)),
                    Err(error) => match error.kind() {
                        RawMessageErrorKind::NoMessageFound => Ok(None),
                        _ => Err(self.connection.unreachable(&error)),
                    },
                }
            };
            let next = self.connection.bounded("get a letter", &["MSG.GET"], next);
            match next.await? {
                Some(message) => {
                    index.ids.insert(self.id_of(&message.subject));
                    index.known = message.sequence;
                    index.catch_up();
                }
                None => index.known = last,
            }
        }
        Ok(())
    }

    /// Reads the ids of all letters, which the server sorts and gives in pages.
    async fn read_all(&self, created: Option<String>) -> Result<Index, JetStreamError> {
        let mut index = Index {
            created,
            ..Index::default()
        };
        let mut offset = 0_u64;
        let mut first_page = true;
        let mut last_subject = String::new();
        loop {
            let body = json!({ "subjects_filter": self.names.letter("*"), "offset": offset });
            let info = self.connection.stream_info(&self.names.dead, &body).await?;
            if first_page {
                // What is stored from here on is read by the next walk.
                index.known = number(&info["state"]["last_seq"]);
                first_page = false;
            }
            let Some(subjects) = info["state"]["subjects"].as_object() else {
                return Ok(index);
            };
            // A letter that was deleted from an earlier page moves the others forward. Then
            // the page begins behind what it should: it is asked for from further ahead.
            let begins = subjects.keys().min().cloned().unwrap_or_default();
            if begins > last_subject && offset > 0 {
                offset = offset.saturating_sub(1000);
                continue;
            }
            for subject in subjects.keys() {
                index.ids.insert(self.id_of(subject));
                if *subject > last_subject {
                    last_subject.clone_from(subject);
                }
            }
            let (total, given) = (number(&info["total"]), subjects.len() as u64);
            if given == 0 || offset + given >= total {
                return Ok(index);
            }
            // The last one is asked for again, to see that nothing is between.
            offset += given - 1;
        }
    }

    fn id_of(&self, subject: &str) -> JobId {
        let token = subject.rsplit('.').next().unwrap_or(subject);
        decode(token).into()
    }

    /// Returns the letters that there are of these ids, after one question for all.
    pub(super) async fn letters<'a>(
        &self,
        ids: impl Iterator<Item = &'a JobId>,
    ) -> Result<Vec<(JobId, Letter)>, JetStreamError> {
        let index = self.refresh().await?;
        if index.ids.is_empty() {
            return Ok(Vec::new());
        }
        let met: BTreeSet<_> = ids.filter(|id| index.ids.contains(*id)).cloned().collect();
        drop(index);
        let found = self.get_all(met.into_iter().collect()).await?;
        Ok(found
            .into_iter()
            .filter_map(|(id, letter)| Some((id, letter?)))
            .collect())
    }

    async fn get_all(
        &self,
        ids: Vec<JobId>,
    ) -> Result<Vec<(JobId, Option<Letter>)>, JetStreamError> {
        let get = |id: JobId| async move {
            let letter = self.get(&id).await?;
            Ok((id, letter))
        };
        stream::iter(ids.into_iter().map(get))
            .buffered(CONCURRENT)
            .try_collect()
            .await
    }

    async fn get(&self, id: &JobId) -> Result<Option<Letter>, JetStreamError> {
        let subject = self.names.letter(&encode_id(id));
        let message = self.last(&self.dead, &self.names.dead, &subject).await?;
        Ok(message.map(|message| self.read(id.clone(), message)))
    }

    /// The last message of a subject, from the leader of the stream.
    async fn last(
        &self,
        stream: &Stream<()>,
        name: &str,
        subject: &str,
    ) -> Result<Option<StreamMessage>, JetStreamError> {
        let call = "get a message";
        let get = async {
            match stream.get_last_raw_message_by_subject(subject).await {
                Ok(message) => Ok(Some(message)),
                Err(error) => match error.kind() {
                    LastRawMessageErrorKind::NoMessageFound => Ok(None),
                    LastRawMessageErrorKind::JetStream(error) => match error.error_code().0 {
                        MESSAGE_NOT_FOUND => Ok(None),
                        code => {
                            let reason = error.to_string();
                            let refusal = super::client::Refusal { code, reason };
                            Err(self.connection.error_of(call, name, "", refusal))
                        }
                    },
                    _ => Err(self.connection.unreachable(&error)),
                },
            }
        };
        self.connection.bounded(call, &["MSG.GET"], get).await
    }

    fn read(&self, id: JobId, message: StreamMessage) -> Letter {
        let text = |name| {
            message
                .headers
                .get(name)
                .map_or("", async_nats::HeaderValue::as_str)
        };
        let died = system_time(message.time.unix_timestamp_nanos());
        let dead = DeadJob {
            id,
            attempt: text(names::ATTEMPT).parse().unwrap_or(0),
            codec: decode(text(names::CODEC)).into(),
            appended: text(names::APPENDED).parse().map_or(died, system_time),
            died,
            reason: decode(text(names::REASON)),
            payload: message.payload.clone(),
        };
        Letter {
            sequence: message.sequence,
            job: text(names::SEQUENCE).parse().unwrap_or(0),
            dead,
        }
    }

    pub(super) async fn list(
        &self,
        after: Option<&JobId>,
        limit: usize,
    ) -> Result<Vec<DeadJob>, JetStreamError> {
        let mut listed = Vec::new();
        let mut after = after.cloned();
        while listed.len() < limit {
            let index = self.refresh().await?;
            let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let next: Vec<_> = index
                .ids
                .range::<JobId, _>((from, Bound::Unbounded))
                .take((limit - listed.len()).min(CONCURRENT))
                .cloned()
                .collect();
            let known = index.known;
            drop(index);
            let Some(last) = next.last().cloned() else {
                break;
            };
            let mut gone = Vec::new();
            for (id, letter) in self.get_all(next).await? {
                match letter {
                    Some(letter) => listed.push(letter.dead),
                    None => gone.push(id),
                }
            }
            let mut index = self.index.lock().await;
            // Unless letters were added meanwhile, which may be of these ids.
            if index.known == known && index.ahead.is_empty() {
                for id in gone {
                    index.ids.remove(&id);
                }
            }
            after = Some(last);
        }
        Ok(listed)
    }

    pub(super) async fn revive(&self, ids: &[JobId]) -> Result<Vec<bool>, JetStreamError> {
        let asked = first_of_each(ids);
        let letters = self.get_all(asked.clone()).await?;
        let mut letters: Vec<_> = letters
            .into_iter()
            .filter_map(|(id, letter)| Some((id, letter?)))
            .collect();
        let revived: BTreeSet<JobId> = letters.iter().map(|(id, _)| id.clone()).collect();
        let mut deleted = Vec::new();
        for _ in 0..TRIES {
            // In order, and in the order in which they were asked for.
            let mut acks = Vec::with_capacity(letters.len());
            for (id, letter) in letters {
                let ack = self.publish_revived(&id, &letter).await?;
                acks.push((id, letter, ack));
            }
            let mut again = Vec::new();
            for (id, letter, ack) in acks {
                let stored = self.connection.stored("revive", &self.names.live, ack);
                let stored = self.connection.bounded("revive", &[".jobs."], stored);
                match stored.await? {
                    Stored::New(_) | Stored::Duplicate => deleted.push(letter.sequence),
                    Stored::SubjectTaken if self.clear(&id, &letter).await? => {
                        deleted.push(letter.sequence);
                    }
                    Stored::SubjectTaken => again.push((id, letter)),
                }
            }
            letters = again;
            if letters.is_empty() {
                break;
            }
        }
        if let Some((id, _)) = letters.first() {
            let reason = format!("{:?} is appended again and again", &**id);
            return Err(self.connection.refused("revive", 0, &reason));
        }
        self.delete_all(&self.names.dead, deleted).await?;
        Ok(answers(ids, &revived))
    }

    async fn publish_revived(
        &self,
        id: &JobId,
        letter: &Letter,
    ) -> Result<async_nats::jetstream::context::PublishAckFuture, JetStreamError> {
        let token = encode_id(id);
        let mut headers = HeaderMap::new();
        headers.insert(names::CODEC, encode_text(&letter.dead.codec));
        headers.insert(names::APPENDED, nanos(letter.dead.appended).to_string());
        headers.insert(names::REVIVED, letter.sequence.to_string());
        let message = PublishMessage::build()
            .headers(headers)
            .payload(letter.dead.payload.clone())
            // Its own, so that a call that is repeated revives once.
            .message_id(format!("{token}!{}", letter.sequence))
            .expected_last_subject_sequence(0);
        let sent = self
            .connection
            .publish("revive", self.names.job(&token), message);
        match self.connection.bounded("revive", &[".jobs."], sent).await? {
            Published::Sent(ack) => Ok(ack),
            Published::TooLarge => {
                let reason = format!("{:?} is larger than the server takes now", &**id);
                Err(self.connection.refused("revive", 0, &reason))
            }
        }
    }

    /// Looks at what has the subject of a job to be revived. That is the job itself, revived
    /// before: then returns true. Or it is what has no right to be there beside a letter:
    /// the job, of which the move was not finished, or one that was appended meanwhile. That
    /// is deleted.
    async fn clear(&self, id: &JobId, letter: &Letter) -> Result<bool, JetStreamError> {
        let subject = self.names.job(&encode_id(id));
        let Some(message) = self.last(&self.live, &self.names.live, &subject).await? else {
            return Ok(false);
        };
        if revived_from(&message.headers) == Some(letter.sequence) {
            return Ok(true);
        }
        self.delete(&self.names.live, message.sequence).await?;
        Ok(false)
    }

    pub(super) async fn discard(&self, ids: &[JobId]) -> Result<Vec<bool>, JetStreamError> {
        let letters = self.get_all(first_of_each(ids)).await?;
        let discard = |(id, letter): (JobId, Option<Letter>)| async move {
            let Some(letter) = letter else {
                return Ok(None);
            };
            // The mark first: without it, the id would not be free once the letter has gone.
            self.mark_free(&id, &letter).await?;
            // The job, if its move was not finished: by its subject as well as its sequence,
            // which counts from the start again if somebody has made the stream anew.
            let subject = self.names.job(&encode_id(&id));
            let live = self.last(&self.live, &self.names.live, &subject).await?;
            if live.is_some_and(|live| live.sequence == letter.job) {
                self.delete(&self.names.live, letter.job).await?;
            }
            let found = self.delete(&self.names.dead, letter.sequence).await?;
            Ok(found.then_some(id))
        };
        let discarded: Vec<_> = stream::iter(letters.into_iter().map(discard))
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        Ok(answers(ids, &discarded.into_iter().flatten().collect()))
    }

    async fn mark_free(&self, id: &JobId, letter: &Letter) -> Result<(), JetStreamError> {
        let call = "discard";
        let token = encode_id(id);
        let message = PublishMessage::build().message_id(format!("{token}!{}", letter.sequence));
        let mark = async {
            let subject = self.names.free(&token);
            match self.connection.publish(call, subject, message).await? {
                Published::Sent(ack) => self.connection.stored(call, &self.names.freed, ack).await,
                Published::TooLarge => Err(self.connection.refused(call, 0, "too large")),
            }
        };
        self.connection.bounded(call, &[".freed."], mark).await?;
        Ok(())
    }

    /// Whether any id was freed lately.
    pub(super) async fn any_freed(&self) -> Result<bool, JetStreamError> {
        let info = self
            .connection
            .stream_info(&self.names.freed, &Value::Null)
            .await?;
        Ok(number(&info["state"]["messages"]) > 0)
    }

    /// The sequence of the mark that an id was freed, if it was lately.
    pub(super) async fn freed(&self, token: &str) -> Result<Option<u64>, JetStreamError> {
        let subject = self.names.free(token);
        let mark = self.last(&self.freed, &self.names.freed, &subject).await?;
        Ok(mark.map(|mark| mark.sequence))
    }

    async fn delete_all(&self, stream: &str, sequences: Vec<u64>) -> Result<(), JetStreamError> {
        stream::iter(sequences.into_iter().map(|seq| self.delete(stream, seq)))
            .buffer_unordered(CONCURRENT)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    /// Deletes a message, which is that one whatever has its subject now. Returns whether
    /// it was there.
    pub(super) async fn delete(&self, stream: &str, sequence: u64) -> Result<bool, JetStreamError> {
        let call = "delete a message";
        let subject = format!("STREAM.MSG.DELETE.{stream}");
        // The bytes on disk are not overwritten.
        let body = json!({ "seq": sequence, "no_erase": true });
        match self.connection.api(call, &subject, &body).await? {
            Ok(_) => Ok(true),
            Err(refusal) => match refusal.code {
                SEQUENCE_NOT_FOUND | MESSAGE_NOT_FOUND => Ok(false),
                // Older servers have one number for all that is wrong with a deletion.
                10057 if refusal.reason.contains("not found") => Ok(false),
                10057 if refusal.reason.contains("no message") => Ok(false),
                10057 if refusal.reason.contains("deleted") => Ok(false),
                _ => Err(self.connection.error_of(call, stream, "", refusal)),
            },
        }
    }
}

/// The letter that a live job was revived from.
pub(super) fn revived_from(headers: &HeaderMap) -> Option<u64> {
    headers.get(names::REVIVED)?.as_str().parse().ok()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

pub(super) fn system_time(nanos: i128) -> SystemTime {
    let since = u64::try_from(nanos).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_nanos(since)
}

pub(super) fn nanos(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}
