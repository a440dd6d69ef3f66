//! Very many records at once, for a measurement: rows as [`Catalogue::insert`] writes them, many in a statement.

use std::time::Duration;

use kernel::Digest;

use super::Catalogue;
use super::database::Statement;
use super::records::{WRITTEN, Written, places, signed};
use crate::error::{LibraryError, StoreFault};
use crate::record::NewArtifact;

/// Rows of one statement: SQLite looks through all places before it for each of its places.
const ROWS: usize = 50;

/// How long one transaction may take; nobody else uses the catalogue.
const LIMIT: Duration = Duration::from_secs(120);

/// One of them.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) new: NewArtifact,
    pub(crate) digest: Digest,
    /// Size that its file would have.
    pub(crate) bytes: u64,
    /// Among those of its blueprint, from 1.
    pub(crate) version: i64,
}

impl Catalogue {
    /// Writes records of jobs that the catalogue does not know, in one transaction and without numbers of versions of
    /// their blueprints.
    pub(crate) async fn fill(&self, records: &[Filled], now_ms: u64) -> Result<(), LibraryError> {
        let work = async {
            let mut writing = self.pool.write().await?;
            for rows in records.chunks(ROWS) {
                let places = places(rows.len());
                let insert =
                    Statement::new(format!("INSERT INTO records ({WRITTEN}) VALUES {places}"));
                writing
                    .execute(&rows.iter().fold(insert, |insert, row| bind(insert, row, now_ms)))
                    .await?;
            }
            writing.commit().await
        };
        let outcome = tokio::time::timeout(LIMIT, work).await;
        let outcome = outcome.map_err(|_| StoreFault::TimedOut(LIMIT))?;
        Ok(outcome.map_err(|error: sqlx::Error| StoreFault::Database(error.into()))?)
    }
}

fn bind(insert: Statement, row: &Filled, now_ms: u64) -> Statement {
    let written = Written {
        new: &row.new,
        digest: &row.digest,
        bytes: row.bytes,
        samples: &row.new.prewarm,
        created_at_ms: signed(now_ms),
        extras: &row.new.extras,
        version: row.version,
        parent: None,
        pinned: 0,
        last_used_ms: signed(now_ms),
    };
    written.bind(insert)
}
