//! Leases as rows.

use std::collections::HashSet;
use std::time::Duration;

use kernel::Digest;

use super::Catalogue;
use super::database::{Row, Statement};
use crate::error::LibraryError;
use crate::lease::Lease;

/// Leases looked at in one round at most; the rest are looked at in the next, and hold until then.
const LEASES_MAX: usize = 10_000;
/// Artifacts under a lease that the cache of a bucket is told of at most.
const LEASED_MAX: usize = 100_000;

impl Catalogue {
    /// Takes a lease or renews it. Says whether there is such an artifact.
    pub(crate) async fn lease(
        &self,
        digest: &Digest,
        holder: &str,
        purpose: &str,
        ttl: Duration,
    ) -> Result<bool, LibraryError> {
        let pairs = [(*digest, holder.to_owned())];
        Ok(self.lease_all(&pairs, purpose, ttl).await?.is_empty())
    }

    /// Takes or renews leases in one step, and hands back those of artifacts that there are not.
    pub(crate) async fn lease_all(
        &self,
        pairs: &[(Digest, String)],
        purpose: &str,
        ttl: Duration,
    ) -> Result<Vec<(Digest, String)>, LibraryError> {
        let now = self.pool.now_ms();
        let take = format!(
            "INSERT INTO leases (digest, holder, purpose, ttl_ms, beat, taken_at_ms, renewed_at_ms) \
             VALUES ($1, $2, $3, $4, 1, {now}, {now}) ON CONFLICT (digest, holder) DO UPDATE SET \
             purpose = excluded.purpose, ttl_ms = excluded.ttl_ms, beat = leases.beat + 1, \
             renewed_at_ms = excluded.renewed_at_ms"
        );
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let work = async {
            let mut unknown = Vec::new();
            // Alone: what is looked at here cannot be removed before the lease stands.
            let mut writing = self.pool.write().await?;
            for (digest, holder) in pairs {
                let known = Statement::new("SELECT id FROM records WHERE digest = $1 LIMIT 1");
                if writing.row(&known.text(digest.to_hex())).await?.is_none() {
                    unknown.push((*digest, holder.clone()));
                    continue;
                }
                let take = Statement::new(take.clone()).text(digest.to_hex()).text(holder);
                writing.execute(&take.text(purpose).integer(ttl_ms)).await?;
            }
            writing.commit().await?;
            Ok(unknown)
        };
        self.within(work).await
    }

    /// Which artifacts are under a lease.
    pub(crate) async fn leased(&self) -> Result<HashSet<Digest>, LibraryError> {
        let statement =
            Statement::new(format!("SELECT DISTINCT digest FROM leases LIMIT {LEASED_MAX}"));
        let rows = self.within(self.pool.rows(&statement)).await?;
        Ok(rows.iter().filter_map(|row| row.text("digest").ok()?.parse().ok()).collect())
    }

    /// Renews every lease of a holder, and says how many it has.
    pub(crate) async fn renew(&self, holder: &str) -> Result<u64, LibraryError> {
        let statement = Statement::new(format!(
            "UPDATE leases SET beat = beat + 1, renewed_at_ms = {} WHERE holder = $1",
            self.pool.now_ms()
        ))
        .text(holder);
        self.alone(&statement).await
    }

    /// Gives a lease back, or all of a holder; says how many there were.
    pub(crate) async fn release(
        &self,
        digest: Option<&Digest>,
        holder: &str,
    ) -> Result<u64, LibraryError> {
        let statement = match digest {
            Some(digest) => Statement::new("DELETE FROM leases WHERE holder = $1 AND digest = $2")
                .text(holder)
                .text(digest.to_hex()),
            None => Statement::new("DELETE FROM leases WHERE holder = $1").text(holder),
        };
        self.alone(&statement).await
    }

    /// Leases of one artifact, or of all.
    pub(crate) async fn leases(&self, digest: Option<&Digest>) -> Result<Vec<Lease>, LibraryError> {
        let now = self.pool.now_ms();
        let of = if digest.is_some() { "WHERE digest = $1" } else { "" };
        let mut statement = Statement::new(format!(
            "SELECT digest, holder, purpose, ttl_ms, beat, taken_at_ms, \
             {now} - renewed_at_ms AS age_ms FROM leases {of} ORDER BY digest, holder LIMIT {LEASES_MAX}"
        ));
        if let Some(digest) = digest {
            statement = statement.text(digest.to_hex());
        }
        let rows = self.within(self.pool.rows(&statement)).await?;
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Ends leases that are over, unless they were renewed since; says how many.
    pub(crate) async fn end_leases(&self, over: &[&Lease]) -> Result<u64, LibraryError> {
        if over.is_empty() {
            return Ok(0);
        }
        let work = async {
            let mut writing = self.pool.write().await?;
            let mut ended = 0;
            for lease in over {
                let statement = Statement::new(
                    "DELETE FROM leases WHERE digest = $1 AND holder = $2 AND beat = $3",
                )
                .text(lease.digest.to_hex())
                .text(&lease.holder)
                .integer(lease.beat);
                ended += writing.execute(&statement).await?;
            }
            writing.commit().await?;
            Ok(ended)
        };
        self.within(work).await
    }

    /// One statement over several rows, alone among writers.
    async fn alone(&self, statement: &Statement) -> Result<u64, LibraryError> {
        let work = async {
            let mut writing = self.pool.write().await?;
            let touched = writing.execute(statement).await?;
            writing.commit().await?;
            Ok(touched)
        };
        self.within(work).await
    }
}

fn read(row: &Row) -> Option<Lease> {
    let ms = |column| Some(u64::try_from(row.integer(column).ok()?).unwrap_or_default());
    Some(Lease {
        digest: row.text("digest").ok()?.parse().ok()?,
        holder: row.text("holder").ok()?,
        purpose: row.text("purpose").ok()?,
        ttl: Duration::from_millis(ms("ttl_ms")?),
        // A clock that was set back makes it look renewed in the future: that is just now.
        age: Duration::from_millis(ms("age_ms")?),
        taken_at_ms: ms("taken_at_ms")?,
        beat: row.integer("beat").ok()?,
    })
}
