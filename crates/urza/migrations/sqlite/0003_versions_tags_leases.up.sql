-- Versions and lineage: what an artifact is the successor of. The numbers of a blueprint are never used twice.
ALTER TABLE records ADD COLUMN version       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN parent_digest TEXT;
ALTER TABLE records ADD COLUMN parent_engine TEXT;
ALTER TABLE records ADD COLUMN stage         INTEGER;
ALTER TABLE records ADD COLUMN pinned        INTEGER NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN last_used_ms  INTEGER NOT NULL DEFAULT 0;

UPDATE records SET last_used_ms = created_at_ms, version =
    (SELECT COUNT(*) FROM records AS older WHERE older.blueprint = records.blueprint AND older.id <= records.id);

CREATE TABLE versions (
    blueprint TEXT    NOT NULL PRIMARY KEY,
    last      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO versions (blueprint, last) SELECT blueprint, MAX(version) FROM records GROUP BY blueprint;

-- Found without regard to case, shown as written.
CREATE TABLE tags (
    folded    TEXT    NOT NULL,
    record_id INTEGER NOT NULL,
    tag       TEXT    NOT NULL,
    PRIMARY KEY (folded, record_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_record ON tags (record_id);

-- Who uses a file. The beat goes up with each renewal: a lease whose beat stands still is over.
CREATE TABLE leases (
    digest        TEXT    NOT NULL,
    holder        TEXT    NOT NULL,
    purpose       TEXT    NOT NULL,
    ttl_ms        INTEGER NOT NULL CHECK (ttl_ms > 0),
    beat          INTEGER NOT NULL,
    taken_at_ms   INTEGER NOT NULL,
    renewed_at_ms INTEGER NOT NULL,
    PRIMARY KEY (digest, holder)
) STRICT, WITHOUT ROWID;

-- When this catalogue began: an unknown file that is older may belong to another one.
CREATE TABLE about (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    born_ms INTEGER NOT NULL
) STRICT;
INSERT INTO about (one, born_ms) VALUES (1, CAST(strftime('%s', 'now') AS INTEGER) * 1000);

CREATE INDEX records_by_site  ON records (site, id);
CREATE INDEX records_by_tier  ON records (tier, id);
CREATE INDEX records_by_stage ON records (stage, id);
CREATE INDEX records_by_state ON records (state, id);
CREATE INDEX records_by_place ON records (blueprint, site, id);
CREATE INDEX records_by_name  ON records (blueprint, id);
CREATE INDEX records_by_job   ON records (job_key, state, id);
CREATE INDEX records_by_use   ON records (last_used_ms, id);
