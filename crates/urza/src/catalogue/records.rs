//! Storing and finding records.

use kernel::Digest;
use leyline::ids::BlueprintId;
use serde_json::Value as Json;

use super::Catalogue;
use super::database::{Row, Statement, Value, Writing};
use super::row::{self, COLUMNS};
use crate::error::{LibraryError, StoreError};
use crate::extras::{Extras, canonical, in_order};
use crate::job::JobKey;
use crate::measurement::Measurement;
use crate::prewarm::{Prewarm, SAMPLES_MAX};
use crate::record::{NewArtifact, Record};

/// Unreadable rows that one look passes over, removing them.
const UNREADABLE_MAX: usize = 8;

impl Catalogue {
    /// The newest active default artifact of a blueprint.
    pub(crate) async fn find(
        &self,
        blueprint: &BlueprintId,
    ) -> Result<Option<Record>, LibraryError> {
        self.first(&find(blueprint)).await
    }

    /// The newest active artifact of a job.
    pub(crate) async fn find_job(&self, job: &JobKey) -> Result<Option<Record>, LibraryError> {
        self.first(&find_job(job)).await
    }

    /// The newest record of an artifact; an active one before a quarantined one.
    pub(crate) async fn find_digest(
        &self,
        digest: &Digest,
    ) -> Result<Option<Record>, LibraryError> {
        self.first(&find_digest(digest)).await
    }

    async fn first(&self, statement: &Statement) -> Result<Option<Record>, LibraryError> {
        for _ in 0..UNREADABLE_MAX {
            let Some(row) = self.within(self.pool.row(statement)).await? else { return Ok(None) };
            if let Some(record) = self.records(vec![row]).await?.pop() {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Writes the record of a stored file. The same job with the same bytes is the same record,
    /// made active again and newest; samples of the same machine are appended.
    pub(crate) async fn insert(
        &self,
        new: &NewArtifact,
        digest: &Digest,
        now_ms: u64,
    ) -> Result<Record, StoreError> {
        // Checked before anything is touched.
        let _ = canonical(&new.extras)?;
        let work = async {
            let mut writing = self.pool.write().await?;
            let row = insert_in(&mut writing, new, digest, new.bytes.len() as u64, now_ms).await?;
            writing.commit().await?;
            Ok(row)
        };
        let row = self.within(work).await?;
        let id = row.integer("id").map_err(|error| {
            LibraryError::from(crate::error::StoreFault::Database(error.into()))
        })?;
        row::read(&row, &self.files).map_err(|column| {
            LibraryError::BadRow { id: crate::record::RecordId(id), column }.into()
        })
    }

    /// Replaces the latencies of one record.
    pub(crate) async fn set_prewarm(
        &self,
        record: &Record,
        prewarm: &Prewarm,
    ) -> Result<(), LibraryError> {
        let statement = Statement::new(
            "UPDATE records SET prewarm_machine = $1, prewarm_samples = $2 \
             WHERE job_key = $3 AND digest = $4",
        )
        .text(&prewarm.machine)
        .text(samples_json(prewarm))
        .text(record.job.digest().to_hex())
        .text(record.digest.to_hex());
        self.within(self.pool.execute(&statement)).await.map(drop)
    }

    /// Sets one extra of a record; `null` removes it.
    pub(crate) async fn set_extra(
        &self,
        record: &Record,
        name: &str,
        value: &Json,
    ) -> Result<(), StoreError> {
        let work = async {
            let mut writing = self.pool.write().await?;
            let Some(row) = current(&mut writing, record).await? else {
                return Ok(Err(StoreError::Forgotten));
            };
            let mut extras = row::extras(&row).unwrap_or_default();
            match value {
                Json::Null => drop(extras.remove(name)),
                value => drop(extras.insert(name.to_owned(), value.clone())),
            }
            let text = match canonical(&extras) {
                Ok(text) => text,
                Err(refused) => return Ok(Err(refused.into())),
            };
            let statement =
                Statement::new("UPDATE records SET extras = $1, stage = $2 WHERE id = $3")
                    .text(text)
                    .with(Value::MaybeInteger(stage(&extras)))
                    .integer(row.integer("id")?);
            writing.execute(&statement).await?;
            writing.commit().await?;
            Ok(Ok(()))
        };
        self.within(work).await?
    }

    /// Pins a record, or lets it go. Says whether there is such a record.
    pub(crate) async fn set_pinned(
        &self,
        record: &Record,
        pinned: bool,
    ) -> Result<bool, LibraryError> {
        let statement =
            Statement::new("UPDATE records SET pinned = $1 WHERE job_key = $2 AND digest = $3")
                .integer(i64::from(pinned))
                .text(record.job.digest().to_hex())
                .text(record.digest.to_hex());
        Ok(self.within(self.pool.execute(&statement)).await? > 0)
    }

    /// What a machine has measured of a file.
    pub(crate) async fn measurement(
        &self,
        digest: &Digest,
        machine: &str,
        engine: &str,
    ) -> Result<Option<Measurement>, LibraryError> {
        let statement = Statement::new(
            "SELECT samples_ms, algorithms, measured_at_ms FROM measurements \
             WHERE digest = $1 AND machine = $2 AND engine = $3",
        )
        .text(digest.to_hex())
        .text(machine)
        .text(engine);
        let row = self.within(self.pool.row(&statement)).await?;
        Ok(row.and_then(|row| row::measurement(&row)))
    }

    /// What every machine has measured of a file: machine, engine, figures.
    pub(crate) async fn measurements(
        &self,
        digest: &Digest,
    ) -> Result<Vec<(String, String, Measurement)>, LibraryError> {
        let statement = Statement::new(
            "SELECT machine, engine, samples_ms, algorithms, measured_at_ms FROM measurements \
             WHERE digest = $1 ORDER BY machine, engine LIMIT 1000",
        )
        .text(digest.to_hex());
        let rows = self.within(self.pool.rows(&statement)).await?;
        let read = |row: &Row| {
            Some((row.text("machine").ok()?, row.text("engine").ok()?, row::measurement(row)?))
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Keeps what a machine has measured of a file, instead of what it measured before.
    pub(crate) async fn set_measurement(
        &self,
        digest: &Digest,
        machine: &str,
        engine: &str,
        measured: &Measurement,
    ) -> Result<(), LibraryError> {
        let statement = set_measurement(digest, machine, engine, measured);
        self.within(self.pool.execute(&statement)).await.map(drop)
    }

    /// Takes every record of a file out of offer, and says how many were active.
    pub(crate) async fn quarantine(
        &self,
        digest: &Digest,
        reason: &str,
        now_ms: u64,
    ) -> Result<u64, LibraryError> {
        let statement = Statement::new(
            "UPDATE records SET state = 'quarantined', quarantine_reason = $1, \
             quarantined_at_ms = $2 WHERE digest = $3 AND state = 'active'",
        )
        .text(reason)
        .integer(signed(now_ms))
        .text(digest.to_hex());
        let work = async {
            let mut writing = self.pool.write().await?;
            let marked = writing.execute(&statement).await?;
            writing.commit().await?;
            Ok(marked)
        };
        self.within(work).await
    }

    /// Notes when artifacts were last used.
    pub(crate) async fn set_used(&self, used: &[(Digest, u64)]) -> Result<(), LibraryError> {
        let work = async {
            let mut writing = self.pool.write().await?;
            for (digest, at_ms) in used {
                let statement = Statement::new(
                    "UPDATE records SET last_used_ms = $1 WHERE digest = $2 AND last_used_ms < $1",
                )
                .integer(signed(*at_ms))
                .text(digest.to_hex());
                writing.execute(&statement).await?;
            }
            writing.commit().await
        };
        self.within(work).await
    }
}

pub(super) fn find(blueprint: &BlueprintId) -> Statement {
    Statement::new(format!(
        "SELECT {COLUMNS} FROM records WHERE blueprint = $1 AND role = 'default' \
         AND state = 'active' ORDER BY id DESC LIMIT 1"
    ))
    .text(blueprint.as_str())
}

pub(super) fn find_job(job: &JobKey) -> Statement {
    Statement::new(format!(
        "SELECT {COLUMNS} FROM records WHERE job_key = $1 AND state = 'active' \
         ORDER BY id DESC LIMIT 1"
    ))
    .text(job.digest().to_hex())
}

pub(super) fn find_digest(digest: &Digest) -> Statement {
    // "active" comes before "quarantined".
    Statement::new(format!(
        "SELECT {COLUMNS} FROM records WHERE digest = $1 ORDER BY state, id DESC LIMIT 1"
    ))
    .text(digest.to_hex())
}

pub(super) fn set_measurement(
    digest: &Digest,
    machine: &str,
    engine: &str,
    measured: &Measurement,
) -> Statement {
    let samples = Prewarm::new(machine, measured.samples_ms.iter().copied());
    Statement::new(
        "INSERT INTO measurements (digest, machine, engine, samples_ms, algorithms, measured_at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (digest, machine, engine) DO UPDATE SET \
         samples_ms = excluded.samples_ms, algorithms = excluded.algorithms, \
         measured_at_ms = excluded.measured_at_ms",
    )
    .text(digest.to_hex())
    .text(machine)
    .text(engine)
    .text(samples_json(&samples))
    .text(in_order(&measured.algorithms).to_string())
    .integer(signed(measured.measured_at_ms))
}

/// The row of a record, by job and digest: storing the artifact again gives it another one.
pub(super) async fn current(
    writing: &mut Writing,
    record: &Record,
) -> Result<Option<Row>, sqlx::Error> {
    let statement =
        Statement::new("SELECT id, extras FROM records WHERE job_key = $1 AND digest = $2")
            .text(record.job.digest().to_hex())
            .text(record.digest.to_hex());
    writing.row(&statement).await
}

/// Writes one record inside a transaction. `bytes` is the size of the file.
pub(super) async fn insert_in(
    writing: &mut Writing,
    new: &NewArtifact,
    digest: &Digest,
    bytes: u64,
    now_ms: u64,
) -> Result<Row, sqlx::Error> {
    let key = new.job.digest().to_hex();
    let before =
        Statement::new(format!("SELECT {COLUMNS} FROM records WHERE job_key = $1 AND digest = $2"))
            .text(&key)
            .text(digest.to_hex());
    let before = writing.row(&before).await?;
    let before = before.as_ref();
    let created_at_ms =
        before.and_then(|row| row.integer("created_at_ms").ok()).unwrap_or_else(|| signed(now_ms));
    let extras = extras_of(before, new);
    let (version, parent_digest, parent_engine) = match before {
        Some(row) => (
            row.integer("version").unwrap_or_default(),
            row.maybe_text("parent_digest").ok().flatten(),
            row.maybe_text("parent_engine").ok().flatten(),
        ),
        None => successor(writing, new, digest).await?,
    };
    if let Some(row) = before {
        // A new id makes it the newest; the one before must not win after a rollback of engines.
        let delete = Statement::new("DELETE FROM records WHERE id = $1");
        writing.execute(&delete.integer(row.integer("id")?)).await?;
    }
    // The file is sound now, whichever job's record had it quarantined.
    let sound = Statement::new(
        "UPDATE records SET state = 'active', quarantine_reason = NULL, quarantined_at_ms = NULL \
         WHERE digest = $1 AND state <> 'active'",
    );
    writing.execute(&sound.text(digest.to_hex())).await?;
    let samples = joined(before.and_then(|row| row::prewarm(row).ok()), &new.prewarm);
    let pinned = before.and_then(|row| row.integer("pinned").ok()).unwrap_or_default();
    let places = places(1);
    let insert = format!("INSERT INTO records ({WRITTEN}) VALUES {places} RETURNING {COLUMNS}");
    let written = Written {
        new,
        digest,
        bytes,
        samples: &samples,
        created_at_ms,
        extras: &extras,
        version,
        parent: parent_digest.zip(parent_engine),
        pinned,
        last_used_ms: signed(now_ms),
    };
    let insert = written.bind(Statement::new(insert));
    let rows = writing.rows(&insert).await?;
    let row = rows.into_iter().next().ok_or(sqlx::Error::RowNotFound)?;
    if let Some(before) = before {
        let tags = Statement::new("UPDATE tags SET record_id = $1 WHERE record_id = $2");
        let tags = tags.integer(row.integer("id")?).integer(before.integer("id")?);
        writing.execute(&tags).await?;
    }
    Ok(row)
}

/// The columns that a record is written with, in the order of [`Written::bind`]; it is active.
pub(super) const WRITTEN: &str = "blueprint, job_key, parameters, site, engine, role, digest, bytes, \
    guard_digest, guard_spec, guard_summary, compile_ms, prewarm_machine, prewarm_samples, strategy, \
    tier, created_at_ms, extras, version, parent_digest, parent_engine, stage, pinned, last_used_ms, \
    state";
const WRITTEN_LEN: usize = 24;

/// The places of the values of so many rows: `($1, …, 'active'), ($25, …)`.
pub(super) fn places(rows: usize) -> String {
    let row = |row: usize| {
        let first = row * WRITTEN_LEN + 1;
        let values: Vec<String> =
            (first..first + WRITTEN_LEN).map(|place| format!("${place}")).collect();
        format!("({}, 'active')", values.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// A record as it is written.
pub(super) struct Written<'a> {
    pub(super) new: &'a NewArtifact,
    pub(super) digest: &'a Digest,
    /// Size of the file.
    pub(super) bytes: u64,
    pub(super) samples: &'a Prewarm,
    pub(super) created_at_ms: i64,
    pub(super) extras: &'a Extras,
    pub(super) version: i64,
    /// What it takes the place of: digest and engine.
    pub(super) parent: Option<(String, String)>,
    pub(super) pinned: i64,
    pub(super) last_used_ms: i64,
}

impl Written<'_> {
    pub(super) fn bind(self, statement: Statement) -> Statement {
        let new = self.new;
        let (parent_digest, parent_engine) = self.parent.unzip();
        statement
            .text(new.job.blueprint.as_str())
            .text(new.job.digest().to_hex())
            .text(new.job.parameters_json())
            .text(&new.job.site)
            .text(&new.job.engine)
            .text(new.role.text())
            .text(self.digest.to_hex())
            .integer(signed(self.bytes))
            .text(new.guard_digest.to_hex())
            .text(&new.guard_spec)
            .text(&new.guard_summary)
            .with(Value::Real(finite(new.compile_ms)))
            .text(&self.samples.machine)
            .text(samples_json(self.samples))
            .text(&new.strategy)
            .integer(i64::from(new.tier as i32))
            .integer(self.created_at_ms)
            .text(canonical(self.extras).unwrap_or_else(|_| "{}".to_owned()))
            .integer(self.version)
            .with(Value::MaybeText(parent_digest))
            .with(Value::MaybeText(parent_engine))
            .with(Value::MaybeInteger(stage(self.extras)))
            .integer(self.pinned)
            .integer(self.last_used_ms)
    }
}

/// The number of a new version of a blueprint, and what it takes the place of: the newest artifact of the same
/// blueprint, parameters and site.
async fn successor(
    writing: &mut Writing,
    new: &NewArtifact,
    digest: &Digest,
) -> Result<(i64, Option<String>, Option<String>), sqlx::Error> {
    let number = Statement::new(
        "INSERT INTO versions (blueprint, last) VALUES ($1, 1) ON CONFLICT (blueprint) \
         DO UPDATE SET last = versions.last + 1 RETURNING last",
    );
    let number = writing.row(&number.text(new.job.blueprint.as_str())).await?;
    let number = number.ok_or(sqlx::Error::RowNotFound)?.integer("last")?;
    let parent = Statement::new(
        "SELECT digest, engine FROM records WHERE blueprint = $1 AND site = $2 \
         AND parameters = $3 AND digest <> $4 ORDER BY id DESC LIMIT 1",
    )
    .text(new.job.blueprint.as_str())
    .text(&new.job.site)
    .text(new.job.parameters_json())
    .text(digest.to_hex());
    let parent = writing.row(&parent).await?;
    let text = |column| parent.as_ref().and_then(|row| row.text(column).ok());
    Ok((number, text("digest"), text("engine")))
}

/// What was said of an artifact before and is said now.
fn extras_of(before: Option<&Row>, new: &NewArtifact) -> Extras {
    let mut extras = before.and_then(|row| row::extras(row).ok()).unwrap_or_default();
    extras.extend(new.extras.clone());
    // With what earlier ones said it grew too large: what is new counts.
    if canonical(&extras).is_err() { new.extras.clone() } else { extras }
}

/// The blueprint's stage of the curriculum, where the safety sheet names it.
fn stage(extras: &Extras) -> Option<i64> {
    extras.get("safety")?.get("stage")?.as_i64().filter(|stage| *stage >= 0)
}

/// Samples of another machine say nothing about this one, so they are replaced.
fn joined(earlier: Option<Prewarm>, new: &Prewarm) -> Prewarm {
    match earlier {
        Some(earlier) if earlier.machine == new.machine => Prewarm::new(
            new.machine.clone(),
            earlier.samples_ms.iter().chain(&new.samples_ms).copied(),
        ),
        Some(earlier) if new.samples_ms.is_empty() => earlier,
        _ => Prewarm::new(new.machine.clone(), new.samples_ms.iter().copied()),
    }
}

fn samples_json(prewarm: &Prewarm) -> String {
    let samples = &prewarm.samples_ms;
    let last = &samples[samples.len().saturating_sub(SAMPLES_MAX)..];
    serde_json::to_string(last).unwrap_or_else(|_| "[]".to_owned())
}

/// SQLite stores NaN as NULL, which the column refuses.
fn finite(ms: f64) -> f64 {
    if ms.is_finite() { ms } else { 0.0 }
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
