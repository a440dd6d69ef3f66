//! The catalogue: rows about artifacts, in SQLite or PostgreSQL, by one set of statements.
//!
//! Reading order: `records` (store and find), `select` (filters and pages), `lease`, `removal` (what may go), with
//! `database` below them, and `migrate`, `sqlite`, `postgres` for how one is opened.

mod database;
mod fill;
mod import;
mod lease;
mod migrate;
mod outage;
#[cfg(test)]
mod plan_tests;
mod postgres;
mod records;
mod removal;
mod row;
mod select;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::database::{Pool, Row, Statement};
use self::outage::Outage;
use crate::config::{CatalogueUrl, Config};
use crate::error::{LibraryError, OpenError, StoreFault};
use crate::files::Files;
use crate::record::{Record, RecordId};

pub(crate) use self::fill::Filled;
pub use self::migrate::SCHEMA_VERSION;
pub(crate) use self::removal::{Candidate, Forgotten};

/// A handle on the rows. Every query ends within the query time-out.
#[derive(Debug, Clone)]
pub(crate) struct Catalogue {
    pool: Pool,
    files: Files,
    query_timeout: Duration,
    outage: Arc<Outage>,
}

impl Catalogue {
    /// Opens the catalogue, bringing it up to date.
    pub(crate) async fn open(config: &Config, files: Files) -> Result<Self, OpenError> {
        let pool = match &config.catalogue {
            CatalogueUrl::Sqlite(path) => sqlite::open(path, config).await?,
            CatalogueUrl::Postgres(url) => postgres::open(url, config).await?,
        };
        let query_timeout = config.query_timeout;
        Ok(Self { pool, files, query_timeout, outage: Arc::default() })
    }

    /// Closes the connections, writing back what SQLite's log still holds.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Asks what touches no table: what a query costs before it has looked at anything.
    pub(crate) async fn bare(&self) -> Result<(), LibraryError> {
        self.within(self.pool.row(&Statement::new("SELECT 1 AS one"))).await.map(drop)
    }

    /// Waits for the answer to a query, within its time and unless the server is known to be away.
    async fn within<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, LibraryError> {
        if !self.outage.may_ask(Instant::now()) {
            return Err(StoreFault::Away.into());
        }
        let outcome = tokio::time::timeout(self.query_timeout, query).await;
        let is_away = match (&self.pool, &outcome) {
            // Whoever waits for a writer of a file is told so; the file is where it was.
            (Pool::Sqlite(_), _) => false,
            (Pool::Postgres(_), Err(_)) => true,
            (Pool::Postgres(_), Ok(outcome)) => outcome.as_ref().is_err_and(is_away),
        };
        if is_away {
            if self.outage.failed(Instant::now()) {
                tracing::warn!(
                    "the catalogue's server does not answer; what is in memory is served meanwhile"
                );
            }
        } else if self.outage.answered() {
            tracing::info!("the catalogue's server answers again");
        }
        let outcome = outcome.map_err(|_| StoreFault::TimedOut(self.query_timeout))?;
        Ok(outcome.map_err(|error| StoreFault::Database(error.into()))?)
    }

    /// Reads rows as records. One that cannot be read is removed: nobody could be served by it, and the forge builds
    /// its artifact again.
    async fn records(&self, rows: Vec<Row>) -> Result<Vec<Record>, LibraryError> {
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            match row::read(&row, &self.files) {
                Ok(record) => records.push(record),
                Err(column) => self.remove_unreadable(&row, column).await?,
            }
        }
        Ok(records)
    }

    async fn remove_unreadable(&self, row: &Row, column: &'static str) -> Result<(), LibraryError> {
        let id = row.integer("id").map_err(|error| StoreFault::Database(error.into()))?;
        let removed = self.within(self.forget_row(id)).await?;
        if removed > 0 {
            tracing::error!(id = %RecordId(id), column, "unreadable row removed from the catalogue");
        }
        Ok(())
    }
}

/// Whether an error says that the server is away, and not that it refused this query.
fn is_away(error: &sqlx::Error) -> bool {
    /// Of PostgreSQL: it is starting, stopping, or was told to end connections; too many are open.
    const AWAY: [&str; 5] = ["57P01", "57P02", "57P03", "53300", "08006"];
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| AWAY.contains(&&*code)),
        _ => false,
    }
}

/// Brings the catalogue of a configuration to a version of the schema, up or down, and says which it had and has. On
/// the way down what the older version has no place for is dropped; records stay. Nothing may use it meanwhile.
///
/// # Errors
/// [`OpenError`]
pub async fn migrate_to(config: &Config, version: i64) -> Result<(i64, i64), OpenError> {
    let (pool, shown, path) = match &config.catalogue {
        CatalogueUrl::Sqlite(path) => {
            (sqlite::connect(path, config).await?, path.display().to_string(), Some(path.as_path()))
        }
        CatalogueUrl::Postgres(url) => {
            (postgres::connect(url, config).await?, url.to_string(), None)
        }
    };
    let before = migrate::current(&pool).await.unwrap_or_default();
    let outcome = migrate::to(&pool, &shown, path, version).await;
    let after = migrate::current(&pool).await.unwrap_or_default();
    pool.close().await;
    outcome.map(|()| (before, after))
}
