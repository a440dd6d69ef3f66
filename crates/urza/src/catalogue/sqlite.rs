//! Opening a SQLite catalogue, and what becomes of a damaged one.

use std::path::Path;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use super::database::{self, Pool, Statement};
use super::migrate;
use crate::config::Config;
use crate::damage;
use crate::error::OpenError;

/// Connections at most: lookups are short, and SQLite admits one writer.
const CONNECTIONS_MAX: u32 = 4;
/// A larger file is not read whole at every start. What is damaged in it shows when it is read.
const CHECKED_BYTES_MAX: u64 = 64 << 20;

/// Opens the catalogue, bringing it up to date. A damaged one is set aside, and an empty one begun: the forge fills
/// it again, and requests wait for it meanwhile.
pub(super) async fn open(path: &Path, config: &Config) -> Result<Pool, OpenError> {
    let opened = try_open(path, config).await;
    let Err(OpenError::Damaged { .. }) = &opened else { return opened };
    let _alone = damage::lock(path).await?;
    // Another process may have replaced it meanwhile.
    let opened = try_open(path, config).await;
    let Err(OpenError::Damaged { problem, .. }) = &opened else { return opened };
    let aside = damage::set_aside(path).await?;
    let (path_shown, aside) = (path.display(), aside.display());
    tracing::error!(path = %path_shown, %aside, problem, "catalogue damaged, set aside; its kernels are compiled again");
    try_open(path, config).await
}

async fn try_open(path: &Path, config: &Config) -> Result<Pool, OpenError> {
    let pool = connect(path, config).await?;
    let prepared = prepare(&pool, path).await;
    if prepared.is_err() {
        // Nothing of it may be open when the file is set aside.
        pool.close().await;
    }
    prepared.map(|()| pool)
}

/// Opens the file as it is.
pub(super) async fn connect(path: &Path, config: &Config) -> Result<Pool, OpenError> {
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
        .foreign_keys(true)
        .disable_statement_logging();
    let pool = database::options(CONNECTIONS_MAX, config.query_timeout)
        // A file does not go away between two questions.
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(|source| fault(path, source))?;
    Ok(Pool::Sqlite(pool))
}

async fn prepare(pool: &Pool, path: &Path) -> Result<(), OpenError> {
    let is_small = std::fs::metadata(path).is_ok_and(|found| found.len() <= CHECKED_BYTES_MAX);
    if is_small {
        let check = Statement::new("PRAGMA quick_check(1)");
        let said = pool.row(&check).await.map_err(|source| fault(path, source))?;
        let said = said.and_then(|row| row.text("quick_check").ok()).unwrap_or_default();
        if said != "ok" {
            let problem = String::from_utf8_lossy(said.as_bytes()).into_owned();
            return Err(OpenError::Damaged { path: path.to_owned(), problem });
        }
    }
    migrate::up(pool, &path.display().to_string(), Some(path)).await
}

/// A fault on the way to an open catalogue: damage, or a file that cannot be used.
fn fault(path: &Path, error: sqlx::Error) -> OpenError {
    if damage::is_damage(path, &error) {
        let problem = crate::error::readable(&error);
        return OpenError::Damaged { path: path.to_owned(), problem };
    }
    OpenError::Catalogue { catalogue: path.display().to_string(), source: error.into() }
}
