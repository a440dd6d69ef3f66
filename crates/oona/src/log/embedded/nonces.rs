//! Claims of nonces: those that the store has not taken in are in memory, the others in the store, one
//! table for each period, so that old ones go as a whole.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase as _};

use super::file::{CLAIMS_PREFIX, ClaimsTable};
use super::state::StreamNo;
use super::{EmbeddedLog, Shared};
use crate::entry::EntryId;
use crate::error::LogError;
use crate::log::NonceClaim;

/// What a nonce belongs to.
pub(super) type Owner = (StreamNo, EntryId);
/// `<type>:<nonce>`, and what it belongs to.
pub(super) type Claim = (Arc<str>, Owner);

/// Claims that the store does not hold yet.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    known: HashMap<Arc<str>, Owner>,
    /// Those of them that the journal does not hold either.
    fresh: Vec<Claim>,
    /// Counts how often the store has taken claims in.
    taken_in: u64,
}

impl Nonces {
    /// Takes what the next frame of the journal has to hold.
    pub(super) fn take_fresh(&mut self) -> Vec<Claim> {
        std::mem::take(&mut self.fresh)
    }

    /// Gives back what the journal could not write.
    pub(super) fn give_back(&mut self, claims: Vec<Claim>) {
        self.fresh.splice(..0, claims);
    }

    /// The store holds these now.
    pub(super) fn arrived<'a>(&mut self, claims: impl Iterator<Item = &'a Claim>) {
        self.taken_in += 1;
        for (nonce, _) in claims {
            self.known.remove(nonce);
        }
    }

    fn claim(&mut self, nonce: &Arc<str>, id: Owner, stored: Option<Owner>) -> NonceClaim {
        match self.known.get(nonce).copied().or(stored) {
            Some(owner) if owner == id => NonceClaim::Again,
            Some(_) => NonceClaim::Replay,
            None => {
                self.known.insert(Arc::clone(nonce), id);
                self.fresh.push((Arc::clone(nonce), id));
                NonceClaim::First
            }
        }
    }
}

impl Shared {
    pub(super) fn nonces(&self) -> MutexGuard<'_, Nonces> {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim_now(
        &self,
        stream: StreamNo,
        wanted: &[(Arc<str>, EntryId)],
    ) -> Result<Vec<NonceClaim>, LogError> {
        loop {
            let before = self.nonces().taken_in;
            // Not under the lock: a look into the store may have to wait for the disk.
            let stored = self.with_store(|db| stored_owners(db, self.period(), wanted))?;
            let mut nonces = self.nonces();
            if nonces.taken_in != before {
                // What was in memory may be in the store since, and was found in neither.
                continue;
            }
            let pairs = wanted.iter().zip(stored);
            return Ok(pairs
                .map(|((nonce, id), stored)| nonces.claim(nonce, (stream, *id), stored))
                .collect());
        }
    }

    /// Claims live at least one period and at most two.
    pub(super) fn period(&self) -> u64 {
        leyline::time::now_unix_ms() / self.period_ms
    }
}

/// What the store says of each nonce.
fn stored_owners(
    db: &Database,
    period: u64,
    wanted: &[(Arc<str>, EntryId)],
) -> Result<Vec<Option<Owner>>, redb::Error> {
    let read = db.begin_read()?;
    let mut owners = vec![None; wanted.len()];
    for period in [Some(period), period.checked_sub(1)].into_iter().flatten() {
        let table = match read.open_table(ClaimsTable::new(&format!("{CLAIMS_PREFIX}{period}"))) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        for ((nonce, _), owner) in wanted.iter().zip(&mut owners) {
            if owner.is_none() {
                let row = table.get(&**nonce)?.map(|row| row.value());
                *owner = row.map(|(stream, ms, seq)| (stream, EntryId { ms, seq }));
            }
        }
    }
    Ok(owners)
}

impl EmbeddedLog {
    pub(crate) async fn claim_nonces(
        &self,
        stream: &str,
        nonces: Vec<(String, EntryId)>,
    ) -> Result<Vec<NonceClaim>, LogError> {
        if nonces.is_empty() {
            return Ok(Vec::new());
        }
        let number = self.shared().core().ensure_stream(stream).number;
        let wanted: Vec<(Arc<str>, EntryId)> =
            nonces.into_iter().map(|(nonce, id)| (nonce.into(), id)).collect();
        self.blocking(move |shared| shared.claim_now(number, &wanted)).await
    }
}
