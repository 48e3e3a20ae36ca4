-- Version 1.

CREATE SEQUENCE {schema}.leases;

-- Who has which id, and until when: for good while the job lives or is dead, and for the
-- deduplication window once it is done.
CREATE TABLE {schema}.ids (
    queue text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    free timestamptz NOT NULL,
    PRIMARY KEY (queue, id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01,
        autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
-- No index has `free`, so that it can be set within the page.

-- What is to be done. A job is leased by moving `due` forward, so a lease that lapsed is
-- due again by itself; `place` is where it was, `lease` the number of the lease.
CREATE TABLE {schema}.jobs (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    due timestamptz NOT NULL,
    place timestamptz NOT NULL,
    lease bigint,
    attempt integer NOT NULL DEFAULT 0,
    appended timestamptz NOT NULL,
    codec text NOT NULL,
    payload bytea NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01,
        autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX jobs_due ON {schema}.jobs (queue, due, seq);

-- Ends a transaction some of whose leases do not hold; the detail says which.
CREATE FUNCTION {schema}.leases_lost(places bigint[]) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'leases of jobs were lost' USING ERRCODE = 'MB001', DETAIL = places::text;
END
$$;

CREATE TABLE {schema}.dead_jobs (
    queue text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    attempt integer NOT NULL,
    appended timestamptz NOT NULL,
    died timestamptz NOT NULL,
    codec text NOT NULL,
    payload bytea NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (queue, id)
);
