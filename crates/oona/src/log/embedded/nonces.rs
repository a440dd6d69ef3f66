//! Claims of nonces: fresh ones in memory, the others in the file, one table for each period.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use redb::{ReadableDatabase as _, TableHandle as _};

use super::file::{CLAIMS_PREFIX, ClaimsTable, key};
use super::state::StreamNo;
use super::{EmbeddedLog, Shared};
use crate::entry::EntryId;
use crate::error::LogError;
use crate::log::NonceClaim;

/// What a nonce belongs to.
pub(super) type Owner = (StreamNo, EntryId);

/// Claims that the file does not hold yet.
#[derive(Debug)]
pub(super) struct Nonces {
    fresh: HashMap<String, Owner>,
    /// On their way to the file.
    leaving: Arc<HashMap<String, Owner>>,
    /// Up to which period old tables are known to be gone.
    purged: u64,
    /// Claims live at least one period and at most two.
    period_ms: u64,
}

impl Nonces {
    pub(super) fn new(period_ms: u64) -> Self {
        Self { fresh: HashMap::new(), leaving: Arc::default(), purged: 0, period_ms }
    }

    fn period(&self) -> u64 {
        leyline::time::now_unix_ms() / self.period_ms
    }

    fn owner(&self, nonce: &str) -> Option<Owner> {
        self.fresh.get(nonce).or_else(|| self.leaving.get(nonce)).copied()
    }

    /// The claims sent off stand in the file.
    pub(super) fn arrived(&mut self) {
        self.leaving = Arc::default();
    }

    /// Hands the fresh claims to the writer; they are still found here until it is done.
    pub(super) fn send_off(&mut self) -> Arc<HashMap<String, Owner>> {
        self.leaving = Arc::new(std::mem::take(&mut self.fresh));
        Arc::clone(&self.leaving)
    }
}

impl Shared {
    pub(super) fn nonces(&self) -> MutexGuard<'_, Nonces> {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes claims into the table of this period, and drops tables that nothing can need.
    pub(super) fn write_claims(
        &self,
        write: &redb::WriteTransaction,
        claims: &HashMap<String, Owner>,
    ) -> Result<(), redb::Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let (period, purged) = {
            let nonces = self.nonces();
            (nonces.period(), nonces.purged)
        };
        let name = format!("{CLAIMS_PREFIX}{period}");
        let mut table = write.open_table(ClaimsTable::new(&name))?;
        for (nonce, (stream, id)) in claims {
            table.insert(nonce.as_str(), key(*stream, *id))?;
        }
        drop(table);
        if purged == period {
            return Ok(());
        }
        let old: Vec<String> = write
            .list_tables()?
            .map(|table| table.name().to_owned())
            .filter(|name| is_older(name, period.saturating_sub(1)))
            .collect();
        for name in old {
            write.delete_table(ClaimsTable::new(&name))?;
        }
        self.nonces().purged = period;
        Ok(())
    }

    /// Claims in memory, looking at the file for older owners.
    fn claim_now(
        &self,
        stream: StreamNo,
        wanted: Vec<(String, EntryId)>,
    ) -> Result<Vec<NonceClaim>, redb::Error> {
        // Held over the look-ups: a claim is either here or in the file, and never in neither.
        let mut nonces = self.nonces();
        let read = self.db.begin_read()?;
        let period = nonces.period();
        let mut tables = Vec::new();
        for period in [Some(period), period.checked_sub(1)].into_iter().flatten() {
            match read.open_table(ClaimsTable::new(&format!("{CLAIMS_PREFIX}{period}"))) {
                Ok(table) => tables.push(table),
                Err(redb::TableError::TableDoesNotExist(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut claims = Vec::with_capacity(wanted.len());
        for (nonce, id) in wanted {
            let mut owner = nonces.owner(&nonce);
            for table in &tables {
                if owner.is_none() {
                    let row = table.get(nonce.as_str())?.map(|row| row.value());
                    owner = row.map(|(stream, ms, seq)| (stream, EntryId { ms, seq }));
                }
            }
            claims.push(match owner {
                Some(owner) if owner == (stream, id) => NonceClaim::Again,
                Some(_) => NonceClaim::Replay,
                None => {
                    nonces.fresh.insert(nonce, (stream, id));
                    NonceClaim::First
                }
            });
        }
        Ok(claims)
    }
}

fn is_older(table: &str, than: u64) -> bool {
    table
        .strip_prefix(CLAIMS_PREFIX)
        .and_then(|period| period.parse::<u64>().ok())
        .is_some_and(|period| period < than)
}

impl EmbeddedLog {
    pub(crate) async fn claim_nonces(
        &self,
        stream: &str,
        nonces: Vec<(String, EntryId)>,
    ) -> Result<Vec<NonceClaim>, LogError> {
        let number = self.0.core().ensure_stream(stream).number;
        let shared = Arc::clone(&self.0);
        let claimed = tokio::task::spawn_blocking(move || {
            shared.claim_now(number, nonces).map_err(|error| shared.storage(error))
        });
        claimed.await.unwrap_or_else(|_| Err(self.0.closed()))
    }
}
