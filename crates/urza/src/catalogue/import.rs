//! Records of an archive, shown all at once.

use std::time::Duration;

use super::Catalogue;
use super::database::{Row, Statement, Writing};
use super::records::{insert_in, set_measurement, signed};
use crate::archive::Arriving;
use crate::error::{LibraryError, StoreFault};
use crate::select::folded;

/// How long showing the records of one archive may take; nothing else is written meanwhile.
const LIMIT: Duration = Duration::from_secs(600);

impl Catalogue {
    /// Writes records whose artifacts are stored, in one transaction, and says how many are new. One that is there
    /// already stays as it is, and gets the tags it did not have.
    pub(crate) async fn import(&self, records: &[Arriving]) -> Result<u64, LibraryError> {
        let work = async {
            let mut writing = self.pool.write().await?;
            let mut new = 0;
            for record in records {
                new += u64::from(import_one(&mut writing, record).await?);
            }
            writing.commit().await?;
            Ok(new)
        };
        let outcome = tokio::time::timeout(LIMIT, work).await;
        let outcome = outcome.map_err(|_| StoreFault::TimedOut(LIMIT))?;
        Ok(outcome.map_err(|error: sqlx::Error| StoreFault::Database(error.into()))?)
    }
}

async fn import_one(writing: &mut Writing, record: &Arriving) -> Result<bool, sqlx::Error> {
    let known = Statement::new(
        "SELECT id FROM records WHERE job_key = $1 AND digest = $2 AND state = 'active'",
    )
    .text(record.new.job.digest().to_hex())
    .text(record.digest.to_hex());
    let known: Option<Row> = writing.row(&known).await?;
    let is_new = known.is_none();
    let id = match known {
        Some(row) => row.integer("id")?,
        None => {
            let at_ms = record.created_at_ms;
            let row = insert_in(writing, &record.new, &record.digest, record.bytes, at_ms).await?;
            let id = row.integer("id")?;
            // Nobody has used it here; it is as good as just stored.
            let fresh =
                Statement::new("UPDATE records SET last_used_ms = $1, pinned = $2 WHERE id = $3")
                    .integer(signed(leyline::time::now_unix_ms()))
                    .integer(i64::from(record.pinned))
                    .integer(id);
            writing.execute(&fresh).await?;
            id
        }
    };
    for tag in &record.tags {
        let Ok(folded) = folded(tag) else { continue };
        let statement = Statement::new(
            "INSERT INTO tags (folded, record_id, tag) VALUES ($1, $2, $3) \
             ON CONFLICT (folded, record_id) DO NOTHING",
        );
        writing.execute(&statement.text(folded).integer(id).text(tag)).await?;
    }
    for (machine, engine, measured) in record.measurements.iter().filter(|_| is_new) {
        writing.execute(&set_measurement(&record.digest, machine, engine, measured)).await?;
    }
    Ok(is_new)
}
