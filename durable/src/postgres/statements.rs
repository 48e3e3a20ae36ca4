//! What is said to the database: one statement a call, whatever the number of jobs.
//!
//! # Invariants
//!
//! - Rows are locked in the order of their keys, `jobs` before `ids`: two calls over the
//!   same jobs wait for each other, and never both. A lease skips what is locked. (An append
//!   of more than 64 MiB is several statements, in the order of the caller; two of them over
//!   the same ids may meet, and the server ends one with an error.)
//! - A statement that changes something sets `synchronous_commit` for its transaction, so
//!   what was answered is on disk whatever the role or the database has as a default.
//! - Whether an id is taken is said by its row in `ids` alone. It is read under the lock of
//!   that row, not from the snapshot: an append that waits for the settlement of the same
//!   job sees what the settlement says.
//! - Statements are not prepared, so a pooler such as PgBouncer may stand between. So each is
//!   planned anew, and must be planned well whatever the statistics say, which are old in a
//!   table that fills and empties: jobs are found by `LATERAL` and by `= ANY (ARRAY(..))`,
//!   which leave nothing but the primary key to choose. A lease may be planned badly: right
//!   after the first import into a table that was analysed while it was empty, it sorts the
//!   backlog (some 150 ms for 600 000 jobs) until autovacuum has analysed the table.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

/// A statement with its types of parameters.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    sql: String,
    types: &'static [Type],
}

impl Statement {
    fn new(options: &Names<'_>, sql: &str, types: &'static [Type]) -> Self {
        let sql = sql
            .replace("{settle}", SETTLING)
            .replace("{durable}", DURABLE)
            .replace("{notified}", NOTIFIED)
            .replace("{channel}", CHANNEL)
            .replace("{schema}", options.schema)
            .replace("{literal}", &options.schema.replace('\'', "''"))
            .replace(
                "{notifies}",
                if options.notifies { "true" } else { "false" },
            );
        Self { sql, types }
    }

    pub(super) async fn query(
        &self,
        client: &Client,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        debug_assert_eq!(values.len(), self.types.len());
        let typed = values.iter().copied().zip(self.types.iter().cloned());
        let typed: Vec<_> = typed.collect();
        client.query_typed(&self.sql, &typed).await
    }
}

/// Only ever raises it: `remote_apply` stays. Local to the transaction.
const DURABLE: &str = "(SELECT set_config('synchronous_commit', \
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' \
    ELSE 'on' END, true))";

/// One channel for each schema and queue; a name has at most 63 bytes.
const CHANNEL: &str = "'microbatch_' || to_hex(hashtextextended('{literal}.' || $1, 0))";

/// Tells who listens that something is due, and from when on: once a statement. A hint.
const NOTIFIED: &str = "(SELECT CASE WHEN {notifies} THEN \
    pg_notify({channel}, (extract(epoch FROM min(due)) * 1000000)::bigint::text)::text END \
    FROM noticed HAVING count(*) > 0)";

struct Names<'a> {
    schema: &'a str,
    notifies: bool,
}

/// `schema` is quoted.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) append: Statement,
    pub(super) lease: Statement,
    pub(super) next_due: Statement,
    pub(super) settle: Statement,
    pub(super) settle_all: Statement,
    pub(super) extend: Statement,
    pub(super) depth: Statement,
    pub(super) list: Statement,
    pub(super) revive: Statement,
    pub(super) discard: Statement,
    pub(super) purge: Statement,
    pub(super) channel: Statement,
    pub(super) hello: Statement,
}

impl Statements {
    pub(super) fn new(schema: &str, notifies: bool) -> Self {
        let names = Names { schema, notifies };
        let new = |sql, types| Statement::new(&names, sql, types);
        Self {
            append: new(
                APPEND,
                &[
                    Type::TEXT,
                    Type::TEXT_ARRAY,
                    Type::TEXT_ARRAY,
                    Type::BYTEA_ARRAY,
                    Type::INT8_ARRAY,
                ],
            ),
            lease: new(
                LEASE,
                &[
                    Type::TEXT,
                    Type::TIMESTAMPTZ,
                    Type::INT8,
                    Type::INT8,
                    Type::INT8,
                ],
            ),
            next_due: new(NEXT_DUE, &[Type::TEXT, Type::TIMESTAMPTZ]),
            settle: new(SETTLE, &SETTLE_TYPES),
            settle_all: new(SETTLE_ALL, &SETTLE_TYPES),
            extend: new(
                EXTEND,
                &[Type::TEXT, Type::INT8_ARRAY, Type::INT8_ARRAY, Type::INT8],
            ),
            depth: new(DEPTH, &[Type::TEXT]),
            list: new(LIST, &[Type::TEXT, Type::TEXT, Type::INT8]),
            revive: new(REVIVE, &[Type::TEXT, Type::TEXT_ARRAY]),
            discard: new(DISCARD, &[Type::TEXT, Type::TEXT_ARRAY]),
            purge: new(PURGE, &[Type::TEXT]),
            channel: new("SELECT {channel}", &[Type::TEXT]),
            hello: new("SELECT pg_notify({channel}, '')::text", &[Type::TEXT]),
        }
    }
}

/// `$2` to `$5`: ids in the order of their bytes, each once; codecs; payloads; places in
/// the order of the caller. Answers with the ids that were free.
const APPEND: &str = "
WITH new AS MATERIALIZED (
    SELECT * FROM unnest($2, $3, $4, $5) WITH ORDINALITY AS new (id, codec, payload, at, key)
), taken AS (
    INSERT INTO {schema}.ids AS i (queue, id, free)
    SELECT $1, id, 'infinity' FROM new ORDER BY key
    ON CONFLICT (queue, id) DO UPDATE SET free = 'infinity'
        WHERE i.free <= statement_timestamp()
    RETURNING id
), noticed AS (
    INSERT INTO {schema}.jobs (queue, id, due, place, appended, codec, payload)
    SELECT $1, id, statement_timestamp(), statement_timestamp(), statement_timestamp(),
        codec, payload
    FROM new JOIN taken USING (id) ORDER BY at
    RETURNING id, due
)
SELECT id, due, {durable}, {notified} FROM noticed";

/// `$2`: where to begin; `$3`: how many; `$4`: the lease time in microseconds; `$5`: beyond how
/// many bytes no further job is leased. The lock is taken in a part of its own, which is not
/// repeated, so that no more are locked than asked.
const LEASE: &str = "
WITH due AS MATERIALIZED (
    SELECT seq, due, octet_length(payload) AS size FROM {schema}.jobs
    WHERE queue = $1 AND due >= coalesce($2, '-infinity') AND due <= statement_timestamp()
    ORDER BY due, seq LIMIT $3
    FOR UPDATE SKIP LOCKED
), batch AS MATERIALIZED (
    SELECT seq FROM (
        SELECT seq, sum(size) OVER (ORDER BY due, seq) - size AS before FROM due
    ) AS sized WHERE before < $5
), number AS MATERIALIZED (
    SELECT nextval('{schema}.leases') AS lease
), leased AS (
    UPDATE {schema}.jobs j
    SET place = j.due, due = statement_timestamp() + $4 * interval '1 microsecond',
        attempt = j.attempt + 1, lease = (SELECT lease FROM number)
    WHERE j.seq = ANY (ARRAY(SELECT seq FROM batch))
    RETURNING j.seq, j.lease, j.id, j.attempt, j.codec, j.payload, j.appended, j.place
)
SELECT seq, lease, id, attempt, codec, payload, appended, place, {durable}
FROM leased ORDER BY place, seq";

/// In how many microseconds the next job is due.
const NEXT_DUE: &str = "
SELECT (extract(epoch FROM due - clock_timestamp()) * 1000000)::bigint FROM {schema}.jobs
WHERE queue = $1 AND due >= coalesce($2, '-infinity') ORDER BY due, seq LIMIT 1";

const SETTLE_TYPES: [Type; 7] = [
    Type::TEXT,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8,
];

/// `$2` to `$6`: jobs in order, leases, verdicts (done, retry, xdead, give back, settled),
/// delays in microseconds, reasons; `$7`: the deduplication window in microseconds.
/// Answers with the places of those whose lease held. A lease has one verdict at most that
/// changes something.
const SETTLE: &str = "{settle}
SELECT at, {durable}, {notified} FROM held";

/// The same, which fails unless all hold: in the statement itself, so that a caller who gives
/// up waiting for it, and commits, commits nothing.
const SETTLE_ALL: &str = "{settle}, lost AS MATERIALIZED (
    SELECT {schema}.leases_lost(array_agg(at)) AS at FROM said
    WHERE at NOT IN (SELECT at FROM held) HAVING count(*) > 0
)
SELECT at, {durable}, {notified} FROM held UNION ALL SELECT at, NULL, NULL FROM lost";

const SETTLING: &str = "
WITH said AS MATERIALIZED (
    SELECT * FROM unnest($2, $3, $4, $5, $6) WITH ORDINALITY
        AS said (seq, lease, verdict, after, reason, at)
), held AS MATERIALIZED (
    SELECT j.seq, j.id, said.verdict, said.after, said.reason, said.at
    FROM said CROSS JOIN LATERAL (
        SELECT j.seq, j.id FROM {schema}.jobs j
        WHERE j.seq = said.seq AND j.queue = $1 AND j.lease = said.lease
            AND j.due > clock_timestamp()
        FOR UPDATE
    ) AS j
), dead AS (
    INSERT INTO {schema}.dead_jobs (queue, id, attempt, appended, died, codec, payload, reason)
    SELECT j.queue, j.id, j.attempt, j.appended, statement_timestamp(), j.codec, j.payload,
        held.reason
    FROM held JOIN {schema}.jobs j ON j.seq = held.seq WHERE held.verdict = 'x'
), gone AS (
    DELETE FROM {schema}.jobs
    WHERE seq = ANY (ARRAY(SELECT seq FROM held WHERE verdict IN ('d', 'x')))
), noticed AS (
    UPDATE {schema}.jobs j
    SET due = CASE held.verdict WHEN 'g' THEN j.place
            ELSE statement_timestamp() + held.after * interval '1 microsecond' END,
        attempt = j.attempt - (held.verdict = 'g')::int, lease = NULL
    FROM held WHERE j.seq = held.seq AND held.verdict IN ('r', 'g')
    RETURNING j.due
), done AS MATERIALIZED (
    SELECT i.id FROM (SELECT id FROM held WHERE verdict = 'd' ORDER BY id) AS done
    CROSS JOIN LATERAL (
        SELECT i.id FROM {schema}.ids i WHERE i.queue = $1 AND i.id = done.id FOR UPDATE
    ) AS i
), known AS (
    UPDATE {schema}.ids SET free = statement_timestamp() + $7 * interval '1 microsecond'
    WHERE queue = $1 AND id = ANY (ARRAY(SELECT id FROM done))
)";

/// `$2` and `$3`: jobs in order, leases; `$4`: the lease time in microseconds.
const EXTEND: &str = "
WITH said AS MATERIALIZED (
    SELECT * FROM unnest($2, $3) WITH ORDINALITY AS said (seq, lease, at)
), held AS MATERIALIZED (
    SELECT j.seq, said.at FROM said CROSS JOIN LATERAL (
        SELECT j.seq FROM {schema}.jobs j
        WHERE j.seq = said.seq AND j.queue = $1 AND j.lease = said.lease
            AND j.due > clock_timestamp()
        FOR UPDATE
    ) AS j
), extended AS (
    UPDATE {schema}.jobs SET due = clock_timestamp() + $4 * interval '1 microsecond'
    WHERE seq = ANY (ARRAY(SELECT seq FROM held))
)
SELECT at, {durable} FROM held";

const DEPTH: &str = "
SELECT ready, leased, delayed,
    (SELECT count(*) FROM {schema}.dead_jobs WHERE queue = $1) AS dead,
    (SELECT appended FROM {schema}.jobs WHERE seq = first) AS oldest
FROM (
    SELECT count(*) FILTER (WHERE due <= statement_timestamp()) AS ready,
        count(*) FILTER (WHERE due > statement_timestamp() AND lease IS NOT NULL) AS leased,
        count(*) FILTER (WHERE due > statement_timestamp() AND lease IS NULL) AS delayed,
        min(seq) AS first
    FROM {schema}.jobs WHERE queue = $1
) AS counts";

const LIST: &str = "
SELECT id, attempt, codec, payload, appended, died, reason FROM {schema}.dead_jobs
WHERE queue = $1 AND id > $2 ORDER BY id LIMIT $3";

/// `$2`: ids, each once.
const REVIVE: &str = "
WITH found AS MATERIALIZED (
    SELECT d.id, said.at
    FROM (
        SELECT * FROM unnest($2) WITH ORDINALITY AS said (id, at) ORDER BY id COLLATE \"C\"
    ) AS said CROSS JOIN LATERAL (
        SELECT d.id FROM {schema}.dead_jobs d WHERE d.queue = $1 AND d.id = said.id FOR UPDATE
    ) AS d
), gone AS (
    DELETE FROM {schema}.dead_jobs WHERE queue = $1 AND id = ANY (ARRAY(SELECT id FROM found))
    RETURNING id, appended, codec, payload
), noticed AS (
    INSERT INTO {schema}.jobs (queue, id, due, place, appended, codec, payload)
    SELECT $1, id, statement_timestamp(), statement_timestamp(), appended, codec, payload
    FROM gone JOIN found USING (id) ORDER BY at
    RETURNING id, due
)
SELECT id, {durable}, {notified} FROM noticed";

const DISCARD: &str = "
WITH found AS MATERIALIZED (
    SELECT d.id FROM (
        SELECT id FROM unnest($2) AS said (id) ORDER BY id COLLATE \"C\"
    ) AS said CROSS JOIN LATERAL (
        SELECT d.id FROM {schema}.dead_jobs d WHERE d.queue = $1 AND d.id = said.id FOR UPDATE
    ) AS d
), gone AS (
    DELETE FROM {schema}.dead_jobs WHERE queue = $1 AND id = ANY (ARRAY(SELECT id FROM found))
), known AS MATERIALIZED (
    SELECT i.id FROM found CROSS JOIN LATERAL (
        SELECT i.id FROM {schema}.ids i WHERE i.queue = $1 AND i.id = found.id FOR UPDATE
    ) AS i
), freed AS (
    DELETE FROM {schema}.ids WHERE queue = $1 AND id = ANY (ARRAY(SELECT id FROM known))
)
SELECT id, {durable} FROM found";

/// Forgets ids that are free, not too many at a time. Answers with each.
const PURGE: &str = "
WITH free AS MATERIALIZED (
    SELECT id FROM {schema}.ids WHERE queue = $1 AND free <= statement_timestamp()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {schema}.ids WHERE queue = $1 AND id = ANY (ARRAY(SELECT id FROM free))
        AND free <= statement_timestamp()
    RETURNING id
)
SELECT count(*) FROM gone";
