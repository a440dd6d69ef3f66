//! Which records may go, and how one goes with its file.

use kernel::Digest;

use super::Catalogue;
use super::database::Statement;
use super::records::signed;
use super::row::{self, COLUMNS};
use crate::error::{FetchError, LibraryError};
use crate::record::{Record, RecordId};

/// What no record may be that goes: pinned, leased, or what its blueprint is served with.
const FREE: &str = "pinned = 0 \
    AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.digest = records.digest) \
    AND NOT (role = 'default' AND state = 'active' AND NOT EXISTS \
    (SELECT 1 FROM records AS newer WHERE newer.blueprint = records.blueprint \
    AND newer.role = 'default' AND newer.state = 'active' AND newer.id > records.id))";

/// A record that nothing keeps.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) record: Record,
    /// Whether a newer artifact of the same blueprint, site and parameters is active.
    pub(crate) superseded: bool,
}

/// What became of a record that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// Something keeps it by now.
    Kept,
    /// It is gone; another record has the same file.
    Row,
    /// It is gone, and so is the file.
    RowAndFile,
}

impl Catalogue {
    /// Records that nothing keeps, least recently used first, behind the one given.
    pub(crate) async fn candidates(
        &self,
        after: Option<(u64, RecordId)>,
        limit: u32,
    ) -> Result<Vec<Candidate>, LibraryError> {
        let statement = candidates(after, limit);
        let rows = self.within(self.pool.rows(&statement)).await?;
        let mut candidates = Vec::with_capacity(rows.len());
        for row in rows {
            let superseded = row.integer("superseded").unwrap_or_default() != 0;
            match row::read(&row, &self.files) {
                Ok(record) => candidates.push(Candidate { record, superseded }),
                Err(column) => self.remove_unreadable(&row, column).await?,
            }
        }
        Ok(candidates)
    }

    /// Bytes of all active artifacts; one file counts once.
    pub(crate) async fn bytes(&self) -> Result<u64, LibraryError> {
        let statement = Statement::new(
            "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM \
             (SELECT DISTINCT digest, bytes FROM records WHERE state = 'active') AS files",
        );
        let row = self.within(self.pool.row(&statement)).await?;
        let bytes = row.and_then(|row| row.integer("bytes").ok()).unwrap_or_default();
        Ok(u64::try_from(bytes).unwrap_or_default())
    }

    /// When this catalogue began, in Unix milliseconds.
    pub(crate) async fn born_ms(&self) -> Result<u64, LibraryError> {
        let row = self.within(self.pool.row(&Statement::new("SELECT born_ms FROM about"))).await?;
        let born = row.and_then(|row| row.integer("born_ms").ok()).unwrap_or(i64::MAX);
        Ok(u64::try_from(born).unwrap_or_default())
    }

    /// Removes a record, and with the last one of a file the file itself, unless it was used since or something keeps
    /// it by now. `remove` runs while nobody else writes: a store of the same artifact comes before it or after it.
    pub(crate) async fn forget(
        &self,
        record: &Record,
        remove: impl Future<Output = Result<(), FetchError>>,
    ) -> Result<Result<Forgotten, FetchError>, LibraryError> {
        let row = Statement::new(format!(
            "DELETE FROM records WHERE id = $1 AND last_used_ms = $2 AND {FREE}"
        ))
        .integer(record.id.0)
        .integer(signed(record.last_used_ms));
        let tags = Statement::new("DELETE FROM tags WHERE record_id = $1").integer(record.id.0);
        let others = Statement::new("SELECT id FROM records WHERE digest = $1 LIMIT 1");
        let others = others.text(record.digest.to_hex());
        let measured = Statement::new("DELETE FROM measurements WHERE digest = $1");
        let measured = measured.text(record.digest.to_hex());
        let work = async {
            let mut writing = self.pool.write().await?;
            if writing.execute(&row).await? == 0 {
                return Ok(Ok(Forgotten::Kept));
            }
            writing.execute(&tags).await?;
            let forgotten = if writing.row(&others).await?.is_some() {
                Forgotten::Row
            } else {
                writing.execute(&measured).await?;
                if let Err(fault) = remove.await {
                    return Ok(Err(fault));
                }
                Forgotten::RowAndFile
            };
            writing.commit().await?;
            Ok(Ok(forgotten))
        };
        self.within(work).await
    }

    /// Removes a file that no record knows, while nobody else writes. Says whether it was removed.
    pub(crate) async fn forget_file(
        &self,
        digest: &Digest,
        remove: impl Future<Output = Result<(), FetchError>>,
    ) -> Result<Result<bool, FetchError>, LibraryError> {
        let known = Statement::new(
            "SELECT digest FROM records WHERE digest = $1 UNION ALL \
             SELECT digest FROM leases WHERE digest = $1 LIMIT 1",
        );
        let known = known.text(digest.to_hex());
        let work = async {
            let mut writing = self.pool.write().await?;
            if writing.row(&known).await?.is_some() {
                return Ok(Ok(false));
            }
            let removed = remove.await;
            writing.commit().await?;
            Ok(removed.map(|()| true))
        };
        self.within(work).await
    }

    /// Removes a row whatever it says.
    pub(super) async fn forget_row(&self, id: i64) -> Result<u64, sqlx::Error> {
        let mut writing = self.pool.write().await?;
        let row = Statement::new("DELETE FROM records WHERE id = $1").integer(id);
        let removed = writing.execute(&row).await?;
        let tags = Statement::new("DELETE FROM tags WHERE record_id = $1").integer(id);
        writing.execute(&tags).await?;
        writing.commit().await?;
        Ok(removed)
    }
}

pub(super) fn candidates(after: Option<(u64, RecordId)>, limit: u32) -> Statement {
    let (used_ms, id) = after.map_or((-1, 0), |(used_ms, id)| (signed(used_ms), id.0));
    Statement::new(format!(
        "SELECT {COLUMNS}, CASE WHEN EXISTS (SELECT 1 FROM records AS newer \
         WHERE newer.blueprint = records.blueprint AND newer.site = records.site \
         AND newer.id > records.id AND newer.parameters = records.parameters \
         AND newer.state = 'active') THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END AS superseded \
         FROM records WHERE (last_used_ms, id) > ($1, $2) AND {FREE} \
         ORDER BY last_used_ms, id LIMIT {limit}"
    ))
    .integer(used_ms)
    .integer(id)
}
