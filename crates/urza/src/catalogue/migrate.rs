//! The schema's versions, up and down, for both databases. What is released never changes: a new version is a new file.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::error::BoxDynError;
use sqlx::migrate::{MigrateError, Migration, MigrationSource, MigrationType, Migrator};

use super::database::{Pool, Statement};
use crate::damage;
use crate::error::OpenError;

/// Two processes that start at once migrate in turn; the second finds it done.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// One version of the schema.
struct Version {
    number: i64,
    name: &'static str,
    up: &'static str,
    /// The first version has none: below it there is no catalogue.
    down: Option<&'static str>,
}

macro_rules! versions {
    ($directory:literal) => {
        [
            Version {
                number: 1,
                name: "records",
                up: include_str!(concat!("../../migrations/", $directory, "/0001_records.up.sql")),
                down: None,
            },
            Version {
                number: 2,
                name: "extras and measurements",
                up: include_str!(concat!(
                    "../../migrations/",
                    $directory,
                    "/0002_extras_and_measurements.up.sql"
                )),
                down: Some(include_str!(concat!(
                    "../../migrations/",
                    $directory,
                    "/0002_extras_and_measurements.down.sql"
                ))),
            },
            Version {
                number: 3,
                name: "versions, tags, leases",
                up: include_str!(concat!(
                    "../../migrations/",
                    $directory,
                    "/0003_versions_tags_leases.up.sql"
                )),
                down: Some(include_str!(concat!(
                    "../../migrations/",
                    $directory,
                    "/0003_versions_tags_leases.down.sql"
                ))),
            },
        ]
    };
}

const SQLITE: [Version; 3] = versions!("sqlite");
const POSTGRES: [Version; 3] = versions!("postgres");

/// The version that this program reads and writes.
pub const SCHEMA_VERSION: i64 = SQLITE[SQLITE.len() - 1].number;

/// The versions up to `last`, embedded.
#[derive(Debug)]
struct Embedded {
    postgres: bool,
    last: i64,
}

impl MigrationSource<'static> for Embedded {
    fn resolve(self) -> BoxFuture<'static, Result<Vec<Migration>, BoxDynError>> {
        let versions = if self.postgres { &POSTGRES } else { &SQLITE };
        let mut migrations = Vec::new();
        for version in versions.iter().filter(|version| version.number <= self.last) {
            let migration = |kind, sql| {
                let (name, sql) = (Cow::Borrowed(version.name), Cow::Borrowed(sql));
                Migration::new(version.number, name, kind, sql, false)
            };
            migrations.push(migration(MigrationType::ReversibleUp, version.up));
            let down = version.down.map(|sql| migration(MigrationType::ReversibleDown, sql));
            migrations.extend(down);
        }
        Box::pin(async move { Ok(migrations) })
    }
}

/// Brings a catalogue up to this program's version.
///
/// # Errors
/// [`OpenError`]; one of a newer version is untouched.
pub(super) async fn up(pool: &Pool, shown: &str, path: Option<&Path>) -> Result<(), OpenError> {
    to(pool, shown, path, SCHEMA_VERSION).await
}

/// Brings a catalogue to a version, up or down. On the way down what the older version has no place for is dropped;
/// records stay.
///
/// # Errors
/// [`OpenError`]
pub(super) async fn to(
    pool: &Pool,
    shown: &str,
    path: Option<&Path>,
    version: i64,
) -> Result<(), OpenError> {
    if !(1..=SCHEMA_VERSION).contains(&version) {
        return Err(OpenError::NoSuchVersion { version, newest: SCHEMA_VERSION });
    }
    let postgres = matches!(pool, Pool::Postgres(_));
    let catalogue = || shown.to_owned();
    let fault =
        |source: MigrateError| OpenError::Migrate { catalogue: catalogue(), source: source.into() };
    let whole = Migrator::new(Embedded { postgres, last: SCHEMA_VERSION }).await.map_err(fault)?;
    let part = Migrator::new(Embedded { postgres, last: version }).await.map_err(fault)?;
    let mut attempt = 1;
    loop {
        let current = current(pool).await.unwrap_or_default();
        let outcome = match pool {
            Pool::Sqlite(pool) if current > version => whole.undo(pool, version).await,
            Pool::Postgres(pool) if current > version => whole.undo(pool, version).await,
            Pool::Sqlite(pool) => part.run(pool).await,
            Pool::Postgres(pool) => part.run(pool).await,
        };
        let is_damage =
            |error: &sqlx::Error| path.is_some_and(|path| damage::is_damage(path, error));
        let problem = match outcome {
            Ok(()) => return Ok(()),
            Err(MigrateError::VersionMissing(version)) => {
                return Err(OpenError::Newer { catalogue: catalogue(), version });
            }
            // A migration never changes once it is released, so this is no other program's catalogue.
            Err(MigrateError::VersionMismatch(version)) => {
                format!("migration {version} is not what it was")
            }
            Err(MigrateError::Dirty(version)) if attempt == ATTEMPTS => {
                format!("migration {version} was left half done")
            }
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if is_damage(&error) =>
            {
                crate::error::readable(&error)
            }
            Err(source) if attempt == ATTEMPTS => return Err(fault(source)),
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                attempt += 1;
                continue;
            }
        };
        return Err(match path {
            Some(path) => OpenError::Damaged { path: path.to_owned(), problem },
            None => OpenError::Foreign { catalogue: catalogue(), problem },
        });
    }
}

/// The version a catalogue has now; 0 when it has none yet.
pub(super) async fn current(pool: &Pool) -> Result<i64, sqlx::Error> {
    let newest = Statement::new("SELECT MAX(version) AS version FROM _sqlx_migrations");
    let row = pool.row(&newest).await?;
    Ok(row.and_then(|row| row.maybe_integer("version").ok().flatten()).unwrap_or_default())
}
