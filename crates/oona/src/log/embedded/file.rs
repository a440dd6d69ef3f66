//! The tables of the store, and what is read from them when a log is opened.

use redb::{Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use redb::{ReadableTableMetadata as _, TableHandle as _, WriteTransaction};
use tokio::time::Instant;

use super::codec::{self, ENTRY_HEAD_BYTES};
use super::state::{Core, Group, GroupNo, Pending, Stream, StreamNo};
use crate::entry::EntryId;

/// name -> number, last id given out (2), length.
pub(super) const STREAMS: TableDefinition<'_, &str, (u16, u64, u64, u64)> =
    TableDefinition::new("streams");
/// stream, id of the first entry (2) -> entries, oldest first.
pub(super) const BLOCKS: TableDefinition<'_, (u16, u64, u64), &[u8]> =
    TableDefinition::new("blocks");
/// stream -> bytes of its entries, id below which all are trimmed (2).
pub(super) const EXTENTS: TableDefinition<'_, u16, (u64, u64, u64)> =
    TableDefinition::new("extents");
/// stream, number -> name.
pub(super) const GROUPS: TableDefinition<'_, (u16, u32), &str> = TableDefinition::new("groups");
/// stream, number of the group -> last delivered id (2).
pub(super) const CURSORS: TableDefinition<'_, (u16, u32), (u64, u64)> =
    TableDefinition::new("cursors");
/// stream, group, id (2) -> deliveries, consumer.
pub(super) const PENDING: TableDefinition<'_, (u16, u32, u64, u64), (u32, &str)> =
    TableDefinition::new("pending");
/// What is true of the whole file.
pub(super) const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");
/// Number of the last frame of the journal that the store holds.
pub(super) const ABSORBED: &str = "absorbed";
/// The journal's salt.
pub(super) const SALT: &str = "salt";
/// Claims stand in one table for each period, so that old ones go as a whole.
pub(super) const CLAIMS_PREFIX: &str = "claims-";
/// `<type>:<nonce>` -> stream, id (2).
pub(super) type ClaimsTable<'a> = TableDefinition<'a, &'static str, (u16, u64, u64)>;
/// Entries as the first version of this file had them: stream, id (2) -> fields.
const OLD_ENTRIES: TableDefinition<'_, (u16, u64, u64), &[u8]> = TableDefinition::new("entries");

/// Bytes that a claim takes, about: nonce, owner, its share of a page.
const CLAIM_BYTES: u64 = 128;
/// A block and its overhead fill a page of four times the usual size.
pub(super) const BLOCK_BYTES_MAX: usize = 16 * 1024 - 256;

pub(super) fn key(stream: StreamNo, id: EntryId) -> (u16, u64, u64) {
    (stream, id.ms, id.seq)
}

pub(super) fn id(ms: u64, seq: u64) -> EntryId {
    EntryId { ms, seq }
}

/// What an entry counts for in the size of a log.
pub(super) fn entry_bytes(value: &[u8]) -> u64 {
    u64::try_from(value.len() + ENTRY_HEAD_BYTES).unwrap_or(u64::MAX)
}

pub(super) fn damaged(what: &str) -> redb::Error {
    redb::Error::Corrupted(what.to_owned())
}

/// Frames taken in, and the journal's salt. Makes the tables of a new file.
pub(super) fn prepare(db: &Database) -> Result<(u64, u64), redb::Error> {
    let write = db.begin_write()?;
    write.open_table(STREAMS)?;
    write.open_table(BLOCKS)?;
    write.open_table(EXTENTS)?;
    write.open_table(GROUPS)?;
    write.open_table(CURSORS)?;
    write.open_table(PENDING)?;
    let facts = {
        let mut table = write.open_table(FACTS)?;
        let absorbed = table.get(ABSORBED)?.map_or(0, |row| row.value());
        let salt = table.get(SALT)?.map(|row| row.value());
        let facts = (absorbed, salt.unwrap_or_else(rand::random));
        table.insert(SALT, facts.1)?;
        facts
    };
    migrate(&write)?;
    write.commit()?;
    Ok(facts)
}

/// Puts the entries of a file of the first version into blocks.
fn migrate(write: &WriteTransaction) -> Result<(), redb::Error> {
    if !write.list_tables()?.any(|table| table.name() == OLD_ENTRIES.name()) {
        return Ok(());
    }
    {
        let old = write.open_table(OLD_ENTRIES)?;
        let mut blocks = write.open_table(BLOCKS)?;
        let mut extents = write.open_table(EXTENTS)?;
        for row in old.iter()? {
            let (place, value) = row?;
            let (stream, ms, seq) = place.value();
            let mut block = Vec::new();
            codec::put_entry(&mut block, id(ms, seq), value.value());
            blocks.insert(place.value(), block.as_slice())?;
            let bytes = extents.get(stream)?.map_or(0, |row| row.value().0);
            extents.insert(stream, (bytes + entry_bytes(value.value()), 0, 0))?;
        }
    }
    write.delete_table(OLD_ENTRIES)?;
    Ok(())
}

/// The state of all streams and groups.
pub(super) fn load(db: &Database) -> Result<Core, redb::Error> {
    let read = db.begin_read()?;
    let mut core = Core::new();
    load_streams(&read, &mut core)?;
    let cursors = read.open_table(CURSORS)?;
    for row in read.open_table(GROUPS)?.iter()? {
        let (place, name) = row?;
        let (stream, number) = place.value();
        let cursor = cursors.get((stream, number))?.map_or(EntryId::ZERO, |at| {
            let (ms, seq) = at.value();
            id(ms, seq)
        });
        let found = core.streams.get(usize::from(stream));
        let floor = found.ok_or_else(|| damaged("a group of no stream"))?.floor;
        let behind = count(&read, stream, floor.max(cursor.next()))?;
        let stream = &mut core.streams[usize::from(stream)];
        stream.groups_made = stream.groups_made.max(number.saturating_add(1));
        stream.groups.insert(name.value().to_owned(), Group::new(number, cursor, behind));
    }
    load_pending(&read, &mut core)?;
    Ok(core)
}

fn load_streams(read: &ReadTransaction, core: &mut Core) -> Result<(), redb::Error> {
    let mut named = Vec::new();
    let extents = read.open_table(EXTENTS)?;
    for row in read.open_table(STREAMS)?.iter()? {
        let (name, value) = row?;
        let (number, ms, seq, len) = value.value();
        let mut stream = Stream::new(number, id(ms, seq), len);
        if let Some(extent) = extents.get(number)? {
            let (bytes, ms, seq) = extent.value();
            (stream.bytes, stream.floor) = (bytes, id(ms, seq));
        }
        named.push((name.value().to_owned(), stream));
    }
    named.sort_by_key(|(_, stream)| stream.number);
    for (index, (name, stream)) in named.into_iter().enumerate() {
        if usize::from(stream.number) != index {
            return Err(damaged("the streams are not numbered in order"));
        }
        core.by_name.insert(name, stream.number);
        core.streams.push(stream);
    }
    Ok(())
}

/// Entries of a stream from `first` on.
fn count(read: &ReadTransaction, stream: StreamNo, first: EntryId) -> Result<u64, redb::Error> {
    let mut count = 0;
    visit(read, stream, first, EntryId::MAX, |_, _| {
        count += 1;
        true
    })?;
    Ok(count)
}

fn load_pending(read: &ReadTransaction, core: &mut Core) -> Result<(), redb::Error> {
    let since = Instant::now();
    for row in read.open_table(PENDING)?.iter()? {
        let (place, value) = row?;
        let (stream, number, ms, seq) = place.value();
        let (deliveries, consumer) = value.value();
        let pending = Pending { consumer: consumer.into(), since, deliveries };
        let group = group_by_number(core, stream, number);
        let group = group.ok_or_else(|| damaged("an entry pending for no group"))?;
        group.pending.insert(id(ms, seq), pending);
    }
    Ok(())
}

fn group_by_number(core: &mut Core, stream: StreamNo, number: GroupNo) -> Option<&mut Group> {
    let stream = core.streams.get_mut(usize::from(stream))?;
    stream.groups.values_mut().find(|group| group.number == number)
}

/// Shows the stored entries with ids in `first..=last`, oldest first, until `see` says no.
pub(super) fn visit(
    read: &ReadTransaction,
    stream: StreamNo,
    first: EntryId,
    last: EntryId,
    mut see: impl FnMut(EntryId, &[u8]) -> bool,
) -> Result<(), redb::Error> {
    let blocks = read.open_table(BLOCKS)?;
    // The block that begins before `first` may hold it.
    let before = blocks.range(key(stream, EntryId::ZERO)..=key(stream, first))?.next_back();
    let begin = before.transpose()?.map_or(key(stream, first), |(place, _)| place.value());
    for row in blocks.range(begin..=key(stream, last))? {
        let (_, value) = row?;
        for entry in codec::block(value.value()) {
            let (id, value) = entry.ok_or_else(|| damaged("a block of entries is torn"))?;
            if id > last || id >= first && !see(id, value) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// About how many bytes the claims take.
pub(super) fn claims_bytes(db: &Database) -> Result<u64, redb::Error> {
    let read = db.begin_read()?;
    let mut rows = 0;
    for table in read.list_tables()?.filter(|table| table.name().starts_with(CLAIMS_PREFIX)) {
        rows += read.open_table(ClaimsTable::new(table.name()))?.len()?;
    }
    Ok(rows * CLAIM_BYTES)
}
