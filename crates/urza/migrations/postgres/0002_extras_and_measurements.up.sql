-- What the forge says of an artifact beyond the columns: a JSON object by name.
ALTER TABLE records ADD COLUMN extras TEXT NOT NULL DEFAULT '{}';

-- What one machine measured of an artifact with one engine. Never in the artifact's bytes.
CREATE TABLE measurements (
    digest         TEXT COLLATE "C" NOT NULL CHECK (length(digest) = 64),
    machine        TEXT             NOT NULL,
    engine         TEXT             NOT NULL,
    samples_ms     TEXT             NOT NULL,
    algorithms     TEXT             NOT NULL,
    measured_at_ms BIGINT           NOT NULL,
    PRIMARY KEY (digest, machine, engine)
);
