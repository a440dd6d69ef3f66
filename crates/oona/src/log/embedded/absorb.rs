//! The store takes in what the journal holds: many frames in one transaction, in which what cancels
//! out (an entry delivered and acknowledged) never shows up.
//!
//! When that fails, the journal goes on for as long as it has room, the store is opened again, and
//! the same frames are tried until they are in.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, ReadableTable as _, TableHandle as _, WriteTransaction};

use super::Shared;
use super::codec;
use super::file::{
    ABSORBED, BLOCK_BYTES_MAX, BLOCKS, CLAIMS_PREFIX, CURSORS, ClaimsTable, EXTENTS, FACTS, GROUPS,
    PENDING, STREAMS, damaged, entry_bytes, id, key,
};
use super::medium::Part;
use super::nonces::Claim;
use super::state::{Change, Flight, GroupNo, StreamNo};
use crate::entry::EntryId;

/// Frames are taken in when there are so many bytes of them,
pub(super) const ABSORB_BYTES: u64 = 4 << 20;
/// or after this time.
const ABSORB_INTERVAL: Duration = Duration::from_secs(1);
/// A file of at least this size is compacted when its log is idle,
const COMPACT_BYTES_MIN: u64 = 64 << 20;
/// when its entries take less than this part of it,
const COMPACT_FACTOR: u64 = 8;
/// and not more often than this.
const COMPACT_INTERVAL: Duration = Duration::from_secs(60);
/// Pause before the store is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

impl Shared {
    /// Starts the thread that works while the store has not everything. A thread and no task of the
    /// runtime: nobody awaits it, it mostly waits, and it must not keep a paused clock from moving.
    pub(super) fn start_absorbing(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("oona-absorb".to_owned());
        if let Err(error) = thread.spawn(move || shared.absorb_all()) {
            // The journal holds it meanwhile; the next frame tries again.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "no thread for the embedded log's store"
            );
            self.core().absorbing = false;
        }
    }

    fn absorb_all(&self) {
        loop {
            let flights: Vec<Arc<Flight>> = {
                let core = self.core();
                let gathering = |core: &mut super::Core| {
                    !core.flights.is_empty() && core.flight_bytes < ABSORB_BYTES && !core.closing
                };
                let waited = self.absorb_wake.wait_timeout_while(core, ABSORB_INTERVAL, gathering);
                let mut core = waited.unwrap_or_else(PoisonError::into_inner).0;
                if core.flights.is_empty() {
                    core.absorbing = false;
                    drop(core);
                    self.compact_if_large(COMPACT_BYTES_MIN);
                    return;
                }
                core.flights.iter().map(Arc::clone).collect()
            };
            match self.absorb(&flights) {
                Ok(()) => self.arrived(&flights),
                Err(error) => {
                    if !self.wait_out(error) {
                        return;
                    }
                }
            }
        }
    }

    /// Gives the disk back what a log that was large once no longer needs. Nothing else uses the store
    /// meanwhile; publishing and reading the newest go on.
    pub(super) fn compact_if_large(&self, bytes_min: u64) {
        let bytes = self.core().bytes() + self.claims_bytes.load(Ordering::Relaxed);
        let size = self.disk.size(Part::Store).unwrap_or(0);
        if size < bytes_min || size / COMPACT_FACTOR < bytes {
            return;
        }
        {
            let mut compacted = self.compacted.lock().unwrap_or_else(PoisonError::into_inner);
            if compacted.is_some_and(|at| at.elapsed() < COMPACT_INTERVAL) {
                return;
            }
            *compacted = Some(Instant::now());
        }
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = store.as_mut() else { return };
        match std::panic::catch_unwind(AssertUnwindSafe(|| db.compact())) {
            Ok(Ok(_)) => {
                tracing::info!(path = %self.path.display(), size, "the embedded log's file was compacted");
            }
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), error = &error as &dyn std::error::Error, "the embedded log's file could not be compacted");
            }
            // Opened again by the next who needs it.
            Err(_) => *store = None,
        }
    }

    /// Opens the store again after a pause; `false` when the log is being closed instead.
    fn wait_out(&self, error: redb::Error) -> bool {
        let mut core = self.core();
        if core.store_failure.is_none() {
            tracing::error!(path = %self.path.display(), error = &error as &dyn std::error::Error, "the embedded log's store cannot write, its journal goes on");
        }
        core.store_failure = Some(Arc::new(error));
        self.room.notify_all();
        let paused = self.absorb_wake.wait_timeout_while(core, RETRY_PAUSE, |core| !core.closing);
        let mut core = paused.unwrap_or_else(PoisonError::into_inner).0;
        if core.closing {
            // The journal has it all, for the next who opens the log.
            core.absorbing = false;
            return false;
        }
        drop(core);
        self.reopen();
        true
    }

    /// Memory follows: what the store holds need not be kept here any longer.
    fn arrived(&self, flights: &[Arc<Flight>]) {
        let mut core = self.core();
        if core.store_failure.take().is_some() {
            tracing::info!(path = %self.path.display(), "the embedded log's store writes again");
        }
        for flight in flights {
            core.flights.pop_front();
            core.flight_bytes -= flight.bytes;
            for change in &flight.changes {
                core.stored(change);
            }
        }
        let last = flights.last().map_or(0, |flight| flight.number);
        self.absorbed.store(last, Ordering::Release);
        drop(core);
        self.room.notify_all();
        self.nonces().arrived(flights.iter().flat_map(|flight| &flight.claims));
    }

    /// One transaction. Frames that it has already are left out: after a failure it may turn out to
    /// have succeeded all the same.
    pub(super) fn absorb(&self, flights: &[Arc<Flight>]) -> Result<(), redb::Error> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let db = store.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        let absorbed = std::panic::catch_unwind(AssertUnwindSafe(|| {
            take_in(db, flights, self.period())?;
            self.claims_bytes.store(super::file::claims_bytes(db)?, Ordering::Relaxed);
            Ok(())
        }));
        absorbed.unwrap_or_else(|_| Err(damaged("the store cannot be written")))
    }
}

fn take_in(db: &Database, flights: &[Arc<Flight>], period: u64) -> Result<(), redb::Error> {
    let write = db.begin_write()?;
    let absorbed = write.open_table(FACTS)?.get(ABSORBED)?.map_or(0, |row| row.value());
    let (mut net, mut claims, mut last) = (Net::default(), Vec::new(), absorbed);
    for flight in flights.iter().filter(|flight| flight.number > absorbed) {
        flight.changes.iter().for_each(|change| net.add(change));
        claims.extend(&flight.claims);
        last = flight.number;
    }
    if last == absorbed {
        return Ok(write.abort()?);
    }
    net.write(&write)?;
    write_claims(&write, claims, period)?;
    write.open_table(FACTS)?.insert(ABSORBED, last)?;
    Ok(write.commit()?)
}

type GroupKey = (StreamNo, GroupNo);

/// What a number of changes come to.
#[derive(Default)]
struct Net<'a> {
    new_streams: Vec<(StreamNo, &'a str)>,
    new_groups: BTreeMap<GroupKey, &'a str>,
    removed_groups: Vec<GroupKey>,
    cursors: BTreeMap<GroupKey, EntryId>,
    pending: BTreeMap<(StreamNo, GroupNo, EntryId), Standing<'a>>,
    streams: BTreeMap<StreamNo, StreamNet<'a>>,
}

/// Where a delivery stands in the end.
struct Standing<'a> {
    /// The store knows nothing of it.
    new: bool,
    pending: Option<(u32, &'a str)>,
}

#[derive(Default)]
struct StreamNet<'a> {
    appended: BTreeMap<EntryId, &'a Bytes>,
    appended_count: u64,
    appended_bytes: u64,
    last: Option<EntryId>,
    below: EntryId,
    deleted: Vec<EntryId>,
    removed: u64,
    removed_bytes: u64,
}

impl<'a> Net<'a> {
    fn add(&mut self, change: &'a Change) {
        match change {
            Change::NewStream { stream, name } => self.new_streams.push((*stream, name)),
            Change::NewGroup { stream, group, name } => {
                self.new_groups.insert((*stream, *group), name);
            }
            Change::RemoveGroup { stream, group } => {
                let place = (*stream, *group);
                self.new_groups.remove(&place);
                self.cursors.remove(&place);
                self.pending.retain(|(stream, group, _), _| (*stream, *group) != place);
                self.removed_groups.push(place);
            }
            Change::Append { stream, id, value, .. } => {
                let net = self.streams.entry(*stream).or_default();
                net.appended.insert(*id, value);
                net.appended_count += 1;
                net.appended_bytes += entry_bytes(value);
                net.last = Some(*id);
            }
            Change::Cursor { stream, group, at } => {
                self.cursors.insert((*stream, *group), *at);
            }
            Change::Delivered { stream, group, id, deliveries, to } => {
                let place = (*stream, *group, *id);
                let new = self.pending.get(&place).map_or(*deliveries == 1, |old| old.new);
                self.pending.insert(place, Standing { new, pending: Some((*deliveries, to)) });
            }
            Change::Settled { stream, group, id } => {
                let place = (*stream, *group, *id);
                if self.pending.get(&place).is_some_and(|standing| standing.new) {
                    self.pending.remove(&place);
                } else {
                    self.pending.insert(place, Standing { new: false, pending: None });
                }
            }
            Change::Trim { stream, below, removed, bytes } => {
                let net = self.streams.entry(*stream).or_default();
                net.below = net.below.max(*below);
                net.removed += removed;
                net.removed_bytes += bytes;
                net.appended = net.appended.split_off(below);
            }
            Change::Delete { stream, id, bytes } => {
                let net = self.streams.entry(*stream).or_default();
                net.removed += 1;
                net.removed_bytes += bytes;
                if net.appended.remove(id).is_none() {
                    net.deleted.push(*id);
                }
            }
        }
    }

    fn write(self, write: &WriteTransaction) -> Result<(), redb::Error> {
        {
            let mut streams = write.open_table(STREAMS)?;
            for (stream, name) in &self.new_streams {
                streams.insert(name, (*stream, 0, 0, 0))?;
            }
        }
        self.write_groups(write)?;
        let mut blocks = write.open_table(BLOCKS)?;
        for (stream, net) in &self.streams {
            net.write_entries(&mut blocks, *stream)?;
        }
        write_tops(write, &self.streams)
    }

    fn write_groups(&self, write: &WriteTransaction) -> Result<(), redb::Error> {
        let mut groups = write.open_table(GROUPS)?;
        let mut cursors = write.open_table(CURSORS)?;
        let mut pending = write.open_table(PENDING)?;
        for (stream, group) in &self.removed_groups {
            groups.remove((*stream, *group))?;
            cursors.remove((*stream, *group))?;
            let all = (*stream, *group, 0, 0)..=(*stream, *group, u64::MAX, u64::MAX);
            pending.retain_in(all, |_, _| false)?;
        }
        for (place, name) in &self.new_groups {
            groups.insert(place, name)?;
        }
        for (place, at) in &self.cursors {
            cursors.insert(place, (at.ms, at.seq))?;
        }
        for ((stream, group, id), standing) in &self.pending {
            let place = (*stream, *group, id.ms, id.seq);
            match standing.pending {
                Some(value) => pending.insert(place, value)?.map(drop),
                None => pending.remove(place)?.map(drop),
            };
        }
        Ok(())
    }
}

type Blocks<'a> = redb::Table<'a, (u16, u64, u64), &'static [u8]>;

impl StreamNet<'_> {
    fn write_entries(&self, blocks: &mut Blocks<'_>, stream: StreamNo) -> Result<(), redb::Error> {
        let (mut block, mut first) = (Vec::with_capacity(BLOCK_BYTES_MAX), None);
        for (id, value) in &self.appended {
            let size = block.len() + value.len() + codec::ENTRY_HEAD_BYTES;
            if size > BLOCK_BYTES_MAX
                && let Some(first) = first.take()
            {
                blocks.insert(key(stream, first), block.as_slice())?;
                block.clear();
            }
            first.get_or_insert(*id);
            codec::put_entry(&mut block, *id, value);
        }
        if let Some(first) = first {
            blocks.insert(key(stream, first), block.as_slice())?;
        }
        for id in &self.deleted {
            delete(blocks, stream, *id)?;
        }
        trim(blocks, stream, self.below)
    }
}

/// Takes one entry out of its block.
fn delete(blocks: &mut Blocks<'_>, stream: StreamNo, gone: EntryId) -> Result<(), redb::Error> {
    let place = key(stream, EntryId::ZERO)..=key(stream, gone);
    let Some(row) = blocks.range(place)?.next_back() else { return Ok(()) };
    let (place, value) = row.map(|(place, value)| (place.value(), value.value().to_vec()))?;
    let mut kept = Vec::with_capacity(value.len());
    for entry in codec::block(&value) {
        let (id, value) = entry.ok_or_else(|| damaged("a block of entries is torn"))?;
        if id != gone {
            codec::put_entry(&mut kept, id, value);
        }
    }
    match kept.is_empty() {
        true => blocks.remove(place)?.map(drop),
        false => blocks.insert(place, kept.as_slice())?.map(drop),
    };
    Ok(())
}

/// Removes the blocks that lie before `below` as a whole. What is left of the last one is not shown.
fn trim(blocks: &mut Blocks<'_>, stream: StreamNo, below: EntryId) -> Result<(), redb::Error> {
    let Some(row) = blocks.range(key(stream, EntryId::ZERO)..key(stream, below))?.next_back()
    else {
        return Ok(());
    };
    let (last, value) = row.map(|(place, value)| (place.value(), value.value().to_vec()))?;
    blocks.retain_in(key(stream, EntryId::ZERO)..last, |_, _| false)?;
    let ends = codec::block(&value).last().flatten();
    let (end, _) = ends.ok_or_else(|| damaged("a block of entries is torn"))?;
    if end < below {
        blocks.remove(last)?;
    }
    Ok(())
}

/// Last id, length and extent of every stream that changed. The last id outlives its entry.
fn write_tops(
    write: &WriteTransaction,
    nets: &BTreeMap<StreamNo, StreamNet<'_>>,
) -> Result<(), redb::Error> {
    let mut streams = write.open_table(STREAMS)?;
    let mut extents = write.open_table(EXTENTS)?;
    let mut tops = Vec::new();
    for row in streams.iter()? {
        let (name, value) = row?;
        let (number, ms, seq, len) = value.value();
        let Some(net) = nets.get(&number) else { continue };
        let last = net.last.unwrap_or(id(ms, seq));
        let len = (len + net.appended_count).saturating_sub(net.removed);
        tops.push((name.value().to_owned(), (number, last.ms, last.seq, len)));
        let (bytes, ms, seq) = extents.get(number)?.map_or((0, 0, 0), |row| row.value());
        let bytes = (bytes + net.appended_bytes).saturating_sub(net.removed_bytes);
        let floor = id(ms, seq).max(net.below);
        extents.insert(number, (bytes, floor.ms, floor.seq))?;
    }
    for (name, value) in tops {
        streams.insert(name.as_str(), value)?;
    }
    Ok(())
}

/// Writes claims into the table of this period, and drops tables that nothing can need.
fn write_claims(
    write: &WriteTransaction,
    mut claims: Vec<&Claim>,
    period: u64,
) -> Result<(), redb::Error> {
    if claims.is_empty() {
        return Ok(());
    }
    // In order, so that neighbours share a page.
    claims.sort_unstable();
    let name = format!("{CLAIMS_PREFIX}{period}");
    {
        let mut table = write.open_table(ClaimsTable::new(&name))?;
        for (nonce, (stream, id)) in claims {
            table.insert(&**nonce, key(*stream, *id))?;
        }
    }
    let old: Vec<String> = write
        .list_tables()?
        .map(|table| table.name().to_owned())
        .filter(|name| is_older(name, period.saturating_sub(1)))
        .collect();
    for name in old {
        write.delete_table(ClaimsTable::new(&name))?;
    }
    Ok(())
}

fn is_older(table: &str, than: u64) -> bool {
    table
        .strip_prefix(CLAIMS_PREFIX)
        .and_then(|period| period.parse::<u64>().ok())
        .is_some_and(|period| period < than)
}
