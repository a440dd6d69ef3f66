-- One row for each artifact that a compile job has produced. The file's place follows from the digest.
CREATE TABLE records (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    blueprint         TEXT    NOT NULL,
    job_key           TEXT    NOT NULL,
    parameters        TEXT    NOT NULL,
    site              TEXT    NOT NULL,
    engine            TEXT    NOT NULL,
    role              TEXT    NOT NULL CHECK (role IN ('default', 'variant')),
    digest            TEXT    NOT NULL CHECK (length(digest) = 64),
    bytes             INTEGER NOT NULL CHECK (bytes > 0),
    guard_digest      TEXT    NOT NULL CHECK (length(guard_digest) = 64),
    guard_spec        TEXT    NOT NULL,
    guard_summary     TEXT    NOT NULL,
    compile_ms        REAL    NOT NULL,
    prewarm_machine   TEXT    NOT NULL,
    prewarm_samples   TEXT    NOT NULL,
    strategy          TEXT    NOT NULL,
    tier              INTEGER NOT NULL CHECK (tier BETWEEN 1 AND 3),
    created_at_ms     INTEGER NOT NULL,
    state             TEXT    NOT NULL CHECK (state IN ('active', 'quarantined')),
    quarantine_reason TEXT,
    quarantined_at_ms INTEGER,
    UNIQUE (job_key, digest)
) STRICT;

CREATE INDEX records_by_blueprint ON records (blueprint, role, state, id);
CREATE INDEX records_by_digest ON records (digest);
