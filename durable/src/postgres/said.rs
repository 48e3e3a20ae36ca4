//! What is said of jobs, as the arrays of a statement, and what its rows answer.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::builder::micros;
use super::face::Inner;
use super::leases::PostgresLease;
use super::statements::Statement;
use crate::job::{DeadJob, JobId, Leased, NewJob};
use crate::outcome::{Appended, Refusal, Settled, Verdict};

/// Bytes of payloads in one statement, and in its answer, but for one job at least: the
/// protocol has a limit of 1 GiB, and a call has its time.
pub(super) const STATEMENT_BYTES: usize = 64 << 20;

/// Appends some of the jobs.
pub(super) async fn append_on(
    inner: &Inner,
    client: &Client,
    jobs: &[NewJob],
    chunk: &[usize],
) -> Result<Vec<Row>, Error> {
    // In the order of the keys, in which rows are locked.
    let mut at = chunk.to_vec();
    at.sort_unstable_by_key(|at| &*jobs[*at].id);
    let of = |text: fn(&NewJob) -> &str| at.iter().map(|at| text(&jobs[*at])).collect::<Vec<_>>();
    let (ids, codecs) = (of(|job| &job.id), of(|job| &job.codec));
    let payloads: Vec<_> = at.iter().map(|at| &*jobs[*at].payload).collect();
    let at: Vec<_> = at.iter().map(|at| *at as i64).collect();
    let values: [&(dyn ToSql + Sync); 5] = [&inner.queue, &ids, &codecs, &payloads, &at];
    inner.statements.append.query(client, &values).await
}

/// Verdicts on their way, in the order in which rows are locked.
pub(super) struct Settling {
    /// Places in what the caller said.
    pub(super) at: Vec<usize>,
    jobs: Vec<i64>,
    numbers: Vec<i64>,
    kinds: Vec<&'static str>,
    delays: Vec<i64>,
    reasons: Vec<String>,
    said: usize,
}

impl Settling {
    pub(super) fn new(verdicts: &[(PostgresLease, Verdict)]) -> Self {
        let mut settled = HashSet::new();
        // Of two verdicts of one lease, the first is done.
        let mut at: Vec<_> = (0..verdicts.len())
            .filter(|at| {
                let (lease, verdict) = &verdicts[*at];
                match verdict {
                    Verdict::Settled => !settled.contains(lease),
                    _ => settled.insert(lease),
                }
            })
            .collect();
        at.sort_by_key(|at| verdicts[*at].0.seq);
        let of = |at: &usize| &verdicts[*at];
        let verdict_of = |at| match &of(at).1 {
            Verdict::Done => ("d", Duration::ZERO, String::new()),
            Verdict::Retry { after, .. } => ("r", *after, String::new()),
            // A text of the database has no NUL.
            Verdict::Dead { reason } => ("x", Duration::ZERO, reason.replace('\0', "\u{fffd}")),
            Verdict::Release => ("g", Duration::ZERO, String::new()),
            Verdict::Settled => ("s", Duration::ZERO, String::new()),
        };
        let (kinds, (delays, reasons)) = at
            .iter()
            .map(verdict_of)
            .map(|(kind, delay, reason)| (kind, (micros(delay), reason)))
            .unzip();
        Self {
            jobs: at.iter().map(|at| of(at).0.seq).collect(),
            numbers: at.iter().map(|at| of(at).0.number).collect(),
            kinds,
            delays,
            reasons,
            at,
            said: verdicts.len(),
        }
    }

    pub(super) async fn query(
        &self,
        statement: &Statement,
        inner: &Inner,
        client: &Client,
    ) -> Result<Vec<Row>, Error> {
        let window = micros(inner.options.dedup_window);
        let (jobs, numbers) = (&self.jobs, &self.numbers);
        let (kinds, delays, reasons) = (&self.kinds, &self.delays, &self.reasons);
        let values: [&(dyn ToSql + Sync); 7] =
            [&inner.queue, jobs, numbers, kinds, delays, reasons, &window];
        statement.query(client, &values).await
    }

    /// Which leases held, as the caller asked.
    pub(super) fn answers(&self, rows: &[Row]) -> Vec<Settled> {
        answers(self.said, rows, |place| self.at.get(place))
    }
}

/// Makes the answer of `settle` and `extend` from the rows of those that held.
pub(super) fn answers<'a>(
    asked: usize,
    rows: &[Row],
    at: impl Fn(usize) -> Option<&'a usize>,
) -> Vec<Settled> {
    let mut answers = vec![Settled::Lost; asked];
    for row in rows {
        // Counted from 1.
        let place = usize::try_from(row.get::<_, i64>("at") - 1).ok();
        if let Some(at) = place.and_then(&at) {
            answers[*at] = Settled::Held;
        }
    }
    answers
}

pub(super) fn leased(row: &Row) -> Leased<PostgresLease> {
    let id = JobId::from(row.get::<_, &str>("id"));
    let attempt = u32::try_from(row.get::<_, i32>("attempt")).ok();
    Leased {
        attempt: attempt.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
        codec: row.get::<_, &str>("codec").into(),
        payload: Bytes::copy_from_slice(row.get("payload")),
        appended: row.get("appended"),
        lease: PostgresLease {
            seq: row.get("seq"),
            number: row.get("lease"),
            id: id.clone(),
        },
        id,
    }
}

pub(super) fn dead(row: &Row) -> DeadJob {
    DeadJob {
        id: row.get::<_, &str>("id").into(),
        attempt: u32::try_from(row.get::<_, i32>("attempt")).unwrap_or_default(),
        codec: row.get::<_, &str>("codec").into(),
        payload: Bytes::copy_from_slice(row.get("payload")),
        appended: row.get("appended"),
        died: row.get("died"),
        reason: row.get("reason"),
    }
}

/// Jobs on their way: what is refused and what is there twice is not asked for.
pub(super) struct Appending {
    pub(super) answers: Vec<Appended>,
    /// What goes into a statement each: places in the jobs.
    pub(super) chunks: Vec<Vec<usize>>,
}

impl Appending {
    pub(super) fn new(jobs: &[NewJob], max_payload: usize) -> Self {
        let mut seen = HashSet::new();
        let (mut chunks, mut bytes) = (Vec::<Vec<usize>>::new(), 0);
        let mut answers = Vec::with_capacity(jobs.len());
        for (at, job) in jobs.iter().enumerate() {
            let mut checked = job.check(max_payload);
            if job.codec.contains('\0') {
                let reason = "the name of its codec has a NUL".to_owned();
                checked = checked.and(Err(Refusal::Unencodable { reason }));
            }
            if let Err(refusal) = checked {
                answers.push(Appended::Refused(refusal));
                continue;
            }
            // Unless it comes back as one that was free.
            answers.push(Appended::Duplicate);
            if !seen.insert(&*job.id) {
                continue;
            }
            bytes += job.payload.len();
            match chunks.last_mut() {
                Some(chunk) if bytes <= STATEMENT_BYTES => chunk.push(at),
                _ => {
                    chunks.push(vec![at]);
                    bytes = job.payload.len();
                }
            }
        }
        Self { answers, chunks }
    }

    /// Notes which were free. Returns since when they are due.
    pub(super) fn answer(
        &mut self,
        jobs: &[NewJob],
        chunk: &[usize],
        rows: &[Row],
    ) -> Option<SystemTime> {
        let at: HashMap<&str, usize> = chunk.iter().map(|at| (&*jobs[*at].id, *at)).collect();
        for row in rows {
            if let Some(at) = at.get(row.get::<_, &str>("id")) {
                self.answers[*at] = Appended::New;
            }
        }
        rows.first().map(|row| row.get("due"))
    }
}
