//! The catalogue: rows about artifacts, in SQLite.

use std::borrow::Cow;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use leyline::ids::BlueprintId;
use leyline::wire::BlueprintTier;
use sqlx::Row as _;
use sqlx::error::BoxDynError;
use sqlx::migrate::{MigrateError, Migration, MigrationSource, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};

use crate::config::Config;
use crate::damage;
use crate::error::{LibraryError, OpenError, StoreError, StoreFault};
use crate::extras::{Extras, canonical, in_order};
use crate::files::Files;
use crate::job::JobKey;
use crate::measurement::Measurement;
use crate::prewarm::{Prewarm, SAMPLES_MAX};
use crate::record::{NewArtifact, Page, Record, RecordId, RecordState, Role};

/// Connections at most: lookups are short, and SQLite admits one writer.
const CONNECTIONS_MAX: u32 = 4;
/// Two processes that start at once migrate in turn; the second finds it done.
const MIGRATE_ATTEMPTS: u32 = 5;
const MIGRATE_PAUSE: Duration = Duration::from_millis(100);

/// The migrations, embedded. One line for each file, never changed once released.
#[derive(Debug)]
struct Embedded;

impl MigrationSource<'static> for Embedded {
    fn resolve(self) -> BoxFuture<'static, Result<Vec<Migration>, BoxDynError>> {
        let migrations = [
            (1, "records", include_str!("../migrations/0001_records.sql")),
            (
                2,
                "extras and measurements",
                include_str!("../migrations/0002_extras_and_measurements.sql"),
            ),
        ];
        Box::pin(async move {
            Ok(migrations
                .into_iter()
                .map(|(version, description, sql)| {
                    let (description, sql) = (Cow::Borrowed(description), Cow::Borrowed(sql));
                    Migration::new(version, description, MigrationType::Simple, sql, false)
                })
                .collect())
        })
    }
}

/// A handle on the rows. Every query ends within the query time-out.
#[derive(Debug, Clone)]
pub(crate) struct Catalogue {
    pool: SqlitePool,
    files: Files,
    query_timeout: Duration,
}

impl Catalogue {
    /// Opens the catalogue, bringing it up to date. A damaged one is set aside, and an empty one begun: the forge fills
    /// it again, and requests wait for it meanwhile.
    pub(crate) async fn open(config: &Config, files: Files) -> Result<Self, OpenError> {
        let opened = Self::try_open(config, &files).await;
        let Err(OpenError::Damaged { .. }) = &opened else { return opened };
        let path = config.catalogue.path();
        let _alone = damage::lock(path).await?;
        // Another process may have replaced it meanwhile.
        let opened = Self::try_open(config, &files).await;
        let Err(OpenError::Damaged { problem, .. }) = &opened else { return opened };
        let aside = damage::set_aside(path).await?;
        let (path, aside) = (path.display(), aside.display());
        tracing::error!(%path, %aside, problem, "catalogue damaged, set aside; its kernels are compiled again");
        Self::try_open(config, &files).await
    }

    async fn try_open(config: &Config, files: &Files) -> Result<Self, OpenError> {
        let path = config.catalogue.path();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            std::fs::create_dir_all(parent)
                .map_err(|source| OpenError::Directory { path: parent.to_owned(), source })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A record stands for a durable file, so it is as durable.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(config.busy_timeout)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(config.query_timeout)
            .connect_with(options)
            .await
            .map_err(|source| {
                damage::fault(path, source, |path, source| OpenError::Catalogue { path, source })
            })?;
        let catalogue = Self { pool, files: files.clone(), query_timeout: config.query_timeout };
        let prepared = catalogue.prepare(path).await;
        if prepared.is_err() {
            // Nothing of it may be open when the file is set aside.
            catalogue.close().await;
        }
        prepared.map(|()| catalogue)
    }

    async fn prepare(&self, path: &Path) -> Result<(), OpenError> {
        let fault = |source| {
            damage::fault(path, source, |path, source| OpenError::Catalogue { path, source })
        };
        let query = sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)");
        let said = query.fetch_one(&self.pool).await.map_err(fault)?;
        if said != "ok" {
            return Err(damage::damaged(path, &said));
        }
        migrate(&self.pool, path).await?;
        self.remove_unreadable().await.map_err(fault)
    }

    /// Removes rows that cannot be read as records: nobody could be served by them, and the forge builds them again.
    async fn remove_unreadable(&self) -> Result<(), sqlx::Error> {
        let rows = sqlx::query("SELECT * FROM records").fetch_all(&self.pool).await?;
        for row in rows {
            let id = row.try_get::<i64, _>("id")?;
            if let Err(column) = read(&row, RecordId(id), &self.files) {
                sqlx::query("DELETE FROM records WHERE id = ?")
                    .bind(id)
                    .execute(&self.pool)
                    .await?;
                tracing::error!(id, column, "unreadable row removed from the catalogue");
            }
        }
        Ok(())
    }

    /// The newest active default artifact of a blueprint.
    pub(crate) async fn find(
        &self,
        blueprint: &BlueprintId,
    ) -> Result<Option<Record>, LibraryError> {
        let query = sqlx::query(
            "SELECT * FROM records WHERE blueprint = ? AND role = 'default' AND state = 'active' \
             ORDER BY id DESC LIMIT 1",
        )
        .bind(blueprint.as_str());
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        row.map(|row| self.record(&row)).transpose()
    }

    /// The newest active artifact of a job.
    pub(crate) async fn find_job(&self, job: &JobKey) -> Result<Option<Record>, LibraryError> {
        let query = sqlx::query(
            "SELECT * FROM records WHERE job_key = ? AND state = 'active' ORDER BY id DESC LIMIT 1",
        )
        .bind(job.digest().to_hex());
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        row.map(|row| self.record(&row)).transpose()
    }

    /// The newest record of an artifact; an active one before a quarantined one.
    pub(crate) async fn find_digest(
        &self,
        digest: &kernel::Digest,
    ) -> Result<Option<Record>, LibraryError> {
        let query = sqlx::query(
            "SELECT * FROM records WHERE digest = ? ORDER BY state = 'active' DESC, id DESC LIMIT 1",
        )
        .bind(digest.to_hex());
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        row.map(|row| self.record(&row)).transpose()
    }

    /// One page of all records, in the order of storing.
    pub(crate) async fn list(&self, page: Page) -> Result<Vec<Record>, LibraryError> {
        let after = page.after.map_or(0, |id| id.0);
        let query = sqlx::query("SELECT * FROM records WHERE id > ? ORDER BY id LIMIT ?")
            .bind(after)
            .bind(page.limit.clamp(1, 1000));
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        rows.iter().map(|row| self.record(row)).collect()
    }

    /// Writes the record of a stored file. The same job with the same bytes is the same record,
    /// made active again and newest; samples of the same machine are appended.
    pub(crate) async fn insert(
        &self,
        new: &NewArtifact,
        digest: &kernel::Digest,
        now_ms: u64,
    ) -> Result<Record, StoreError> {
        // Checked before anything is touched.
        let _ = canonical(&new.extras)?;
        Ok(self
            .within(self.insert_row(new, digest, now_ms))
            .await
            .and_then(|row| self.record(&row))?)
    }

    async fn insert_row(
        &self,
        new: &NewArtifact,
        digest: &kernel::Digest,
        now_ms: u64,
    ) -> Result<SqliteRow, sqlx::Error> {
        let key = new.job.digest().to_hex();
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = sqlx::query("SELECT * FROM records WHERE job_key = ? AND digest = ?")
            .bind(&key)
            .bind(digest.to_hex())
            .fetch_optional(&mut *tx)
            .await?;
        let earlier = before.as_ref().and_then(|row| prewarm(row).ok());
        let created_at_ms = before
            .as_ref()
            .and_then(|row| row.try_get::<i64, _>("created_at_ms").ok())
            .unwrap_or_else(|| signed(now_ms));
        if let Some(row) = &before {
            // A new id makes it the newest; the one before must not win after a rollback of engines.
            sqlx::query("DELETE FROM records WHERE id = ?")
                .bind(row.try_get::<i64, _>("id")?)
                .execute(&mut *tx)
                .await?;
        }
        // The file is sound now, whichever job's record had it quarantined.
        sqlx::query(
            "UPDATE records SET state = 'active', quarantine_reason = NULL, quarantined_at_ms = NULL \
             WHERE digest = ?",
        )
        .bind(digest.to_hex())
        .execute(&mut *tx)
        .await?;
        let samples = joined(earlier, &new.prewarm);
        let mut extras = before.as_ref().and_then(|row| extras(row).ok()).unwrap_or_default();
        extras.extend(new.extras.clone());
        let extras = match canonical(&extras) {
            Ok(text) => text,
            // With what earlier ones said it grew too large: what is new counts.
            Err(_) => canonical(&new.extras).unwrap_or_else(|_| "{}".to_owned()),
        };
        let row = sqlx::query(
            "INSERT INTO records (blueprint, job_key, parameters, site, engine, role, digest, bytes, \
             guard_digest, guard_spec, guard_summary, compile_ms, prewarm_machine, prewarm_samples, \
             strategy, tier, created_at_ms, extras, state) \
             VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,'active') RETURNING *",
        )
        .bind(new.job.blueprint.as_str())
        .bind(&key)
        .bind(new.job.parameters_json())
        .bind(&new.job.site)
        .bind(&new.job.engine)
        .bind(new.role.text())
        .bind(digest.to_hex())
        .bind(new.bytes.len() as i64)
        .bind(new.guard_digest.to_hex())
        .bind(&new.guard_spec)
        .bind(&new.guard_summary)
        .bind(finite(new.compile_ms))
        .bind(&samples.machine)
        .bind(samples_json(&samples))
        .bind(&new.strategy)
        .bind(new.tier as i32)
        .bind(created_at_ms)
        .bind(extras)
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Replaces the latencies of one record.
    pub(crate) async fn set_prewarm(
        &self,
        id: RecordId,
        prewarm: &Prewarm,
    ) -> Result<(), LibraryError> {
        let query =
            sqlx::query("UPDATE records SET prewarm_machine = ?, prewarm_samples = ? WHERE id = ?")
                .bind(&prewarm.machine)
                .bind(samples_json(prewarm))
                .bind(id.0);
        self.within(query.execute(&self.pool)).await.map(drop)
    }

    /// Sets one extra of a record; `null` removes it.
    pub(crate) async fn set_extra(
        &self,
        record: &Record,
        name: &str,
        value: &serde_json::Value,
    ) -> Result<(), StoreError> {
        let work = async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            // By job and digest: storing the artifact again gives it another row.
            let row =
                sqlx::query("SELECT id, extras FROM records WHERE job_key = ? AND digest = ?")
                    .bind(record.job.digest().to_hex())
                    .bind(record.digest.to_hex())
                    .fetch_optional(&mut *tx)
                    .await?;
            let Some(row) = row else { return Ok(Err(StoreError::Forgotten)) };
            let mut extras = extras(&row).unwrap_or_default();
            match value {
                serde_json::Value::Null => drop(extras.remove(name)),
                value => drop(extras.insert(name.to_owned(), value.clone())),
            }
            let text = match canonical(&extras) {
                Ok(text) => text,
                Err(refused) => return Ok(Err(refused.into())),
            };
            sqlx::query("UPDATE records SET extras = ? WHERE id = ?")
                .bind(text)
                .bind(row.try_get::<i64, _>("id")?)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(Ok(()))
        };
        self.within(work).await?
    }

    /// What a machine has measured of a file.
    pub(crate) async fn measurement(
        &self,
        digest: &kernel::Digest,
        machine: &str,
        engine: &str,
    ) -> Result<Option<Measurement>, LibraryError> {
        let query = sqlx::query(
            "SELECT samples_ms, algorithms, measured_at_ms FROM measurements \
             WHERE digest = ? AND machine = ? AND engine = ?",
        )
        .bind(digest.to_hex())
        .bind(machine)
        .bind(engine);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        // One that cannot be read is as good as none: it is measured again.
        Ok(row.and_then(|row| measurement(&row)))
    }

    /// Keeps what a machine has measured of a file, instead of what it measured before.
    pub(crate) async fn set_measurement(
        &self,
        digest: &kernel::Digest,
        machine: &str,
        engine: &str,
        measured: &Measurement,
    ) -> Result<(), LibraryError> {
        let samples = Prewarm::new(machine, measured.samples_ms.iter().copied());
        let query = sqlx::query(
            "INSERT INTO measurements (digest, machine, engine, samples_ms, algorithms, measured_at_ms) \
             VALUES (?,?,?,?,?,?) ON CONFLICT (digest, machine, engine) DO UPDATE SET \
             samples_ms = excluded.samples_ms, algorithms = excluded.algorithms, \
             measured_at_ms = excluded.measured_at_ms",
        )
        .bind(digest.to_hex())
        .bind(machine)
        .bind(engine)
        .bind(samples_json(&samples))
        .bind(in_order(&measured.algorithms).to_string())
        .bind(signed(measured.measured_at_ms));
        self.within(query.execute(&self.pool)).await.map(drop)
    }

    /// Takes every record of a file out of offer, and says how many were active.
    pub(crate) async fn quarantine(
        &self,
        digest: &kernel::Digest,
        reason: &str,
        now_ms: u64,
    ) -> Result<u64, LibraryError> {
        let query = sqlx::query(
            "UPDATE records SET state = 'quarantined', quarantine_reason = ?, quarantined_at_ms = ? \
             WHERE digest = ? AND state = 'active'",
        )
        .bind(reason)
        .bind(signed(now_ms))
        .bind(digest.to_hex());
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected())
    }

    /// Closes the connections, writing back what SQLite's log still holds.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    async fn within<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, LibraryError> {
        let outcome = tokio::time::timeout(self.query_timeout, query).await;
        let outcome = outcome.map_err(|_| StoreFault::TimedOut(self.query_timeout))?;
        Ok(outcome.map_err(StoreFault::Database)?)
    }

    fn record(&self, row: &SqliteRow) -> Result<Record, LibraryError> {
        let id = RecordId(row.try_get("id").map_err(StoreFault::Database)?);
        read(row, id, &self.files).map_err(|column| LibraryError::BadRow { id, column })
    }
}

/// Reads a row; the error is the column that cannot be read.
fn read(row: &SqliteRow, id: RecordId, files: &Files) -> Result<Record, &'static str> {
    let text = |column: &'static str| row.try_get::<String, _>(column).map_err(|_| column);
    let number = |column: &'static str| {
        let value = row.try_get::<i64, _>(column).map_err(|_| column)?;
        u64::try_from(value).map_err(|_| column)
    };
    let digest_of = |column: &'static str| text(column)?.parse().map_err(|_| column);
    let digest = digest_of("digest")?;
    let role = match text("role")?.as_str() {
        "default" => Role::Default,
        "variant" => Role::Variant,
        _ => return Err("role"),
    };
    let state = match text("state")?.as_str() {
        "active" => RecordState::Active,
        "quarantined" => RecordState::Quarantined {
            reason: text("quarantine_reason").unwrap_or_default(),
            at_ms: number("quarantined_at_ms").unwrap_or_default(),
        },
        _ => return Err("state"),
    };
    let tier = i32::try_from(number("tier")?).map_err(|_| "tier")?;
    Ok(Record {
        id,
        job: JobKey {
            blueprint: text("blueprint")?.into(),
            parameters: serde_json::from_str(&text("parameters")?).map_err(|_| "parameters")?,
            site: text("site")?,
            engine: text("engine")?,
        },
        role,
        digest,
        path: files.path(&digest),
        bytes: number("bytes")?,
        guard_digest: digest_of("guard_digest")?,
        guard_spec: text("guard_spec")?,
        guard_summary: text("guard_summary")?,
        compile_ms: row.try_get("compile_ms").map_err(|_| "compile_ms")?,
        prewarm: prewarm(row)?,
        strategy: text("strategy")?,
        // An unknown tier is refused, never taken for a safe one.
        tier: BlueprintTier::try_from(tier).map_err(|_| "tier")?,
        extras: extras(row)?,
        created_at_ms: number("created_at_ms")?,
        state,
    })
}

fn extras(row: &SqliteRow) -> Result<Extras, &'static str> {
    let text: String = row.try_get("extras").map_err(|_| "extras")?;
    serde_json::from_str(&text).map_err(|_| "extras")
}

fn measurement(row: &SqliteRow) -> Option<Measurement> {
    let samples: String = row.try_get("samples_ms").ok()?;
    let algorithms: String = row.try_get("algorithms").ok()?;
    let measured_at_ms: i64 = row.try_get("measured_at_ms").ok()?;
    Some(Measurement {
        samples_ms: serde_json::from_str(&samples).ok()?,
        algorithms: serde_json::from_str(&algorithms).ok()?,
        measured_at_ms: u64::try_from(measured_at_ms).ok()?,
    })
}

fn prewarm(row: &SqliteRow) -> Result<Prewarm, &'static str> {
    let machine: String = row.try_get("prewarm_machine").map_err(|_| "prewarm_machine")?;
    let samples: String = row.try_get("prewarm_samples").map_err(|_| "prewarm_samples")?;
    let samples: Vec<f64> = serde_json::from_str(&samples).map_err(|_| "prewarm_samples")?;
    Ok(Prewarm::new(machine, samples))
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

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

async fn migrate(pool: &SqlitePool, path: &Path) -> Result<(), OpenError> {
    let path = path.to_owned();
    let migrator = match Migrator::new(Embedded).await {
        Ok(migrator) => migrator,
        Err(source) => return Err(OpenError::Migrate { path, source }),
    };
    let mut attempt = 1;
    loop {
        match migrator.run(pool).await {
            Ok(()) => return Ok(()),
            Err(MigrateError::VersionMissing(version)) => {
                return Err(OpenError::Newer { path, version });
            }
            Err(MigrateError::VersionMismatch(version)) => {
                // A migration never changes once it is released, so this is no other program's catalogue.
                let problem = format!("migration {version} is not what it was");
                return Err(OpenError::Damaged { path, problem });
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if damage::is_damage(&path, &error) =>
            {
                return Err(damage::damaged(&path, &error));
            }
            Err(source) if attempt == MIGRATE_ATTEMPTS => {
                return Err(match source {
                    MigrateError::Dirty(version) => {
                        let problem = format!("migration {version} was left half done");
                        OpenError::Damaged { path, problem }
                    }
                    source => OpenError::Migrate { path, source },
                });
            }
            Err(_) => tokio::time::sleep(MIGRATE_PAUSE).await,
        }
        attempt += 1;
    }
}
