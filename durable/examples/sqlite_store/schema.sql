-- Times are microseconds since the epoch.

-- Several processes read while one writes, and each commit is synced to the disk.
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;

BEGIN IMMEDIATE;

CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    codec TEXT NOT NULL,
    payload BLOB NOT NULL,
    appended INTEGER NOT NULL,
    -- When it can be leased. A lease moves this forward by the lease time, so the job of a
    -- lapsed lease is due again without any cleaning up.
    due INTEGER NOT NULL,
    -- Its place in line: when it was due, for a release to put it back there.
    place INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    -- A random number for each delivery. This is the fence: whoever settles or extends
    -- names it. The attempt would not do, since a release lowers it.
    lease INTEGER UNIQUE
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_due ON jobs (due, seq);

CREATE TABLE IF NOT EXISTS dead_jobs (
    id TEXT NOT NULL PRIMARY KEY,
    attempt INTEGER NOT NULL,
    codec TEXT NOT NULL,
    payload BLOB NOT NULL,
    appended INTEGER NOT NULL,
    died INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT;

-- Ids of jobs that are done, until they may be used again.
CREATE TABLE IF NOT EXISTS settled_ids (id TEXT NOT NULL PRIMARY KEY, at INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS settled_ids_by_time ON settled_ids (at);

-- An id is in one table at a time: to insert it into the next is to move it.
CREATE TRIGGER IF NOT EXISTS job_done AFTER INSERT ON settled_ids
BEGIN DELETE FROM jobs WHERE id = new.id; END;
CREATE TRIGGER IF NOT EXISTS job_dead AFTER INSERT ON dead_jobs
BEGIN DELETE FROM jobs WHERE id = new.id; END;
CREATE TRIGGER IF NOT EXISTS job_revived AFTER INSERT ON jobs
BEGIN DELETE FROM dead_jobs WHERE id = new.id; END;

COMMIT;
