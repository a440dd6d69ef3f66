//! The tables of the file, and how an entry is written into a value.

use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
};
use tokio::time::Instant;

use super::state::{Core, Group, GroupNo, Pending, Stream, StreamNo};
use crate::entry::{EntryId, Fields};

/// name -> number, last id given out (2), length.
pub(super) const STREAMS: TableDefinition<'_, &str, (u16, u64, u64, u64)> =
    TableDefinition::new("streams");
/// stream, id (2) -> fields.
pub(super) const ENTRIES: TableDefinition<'_, (u16, u64, u64), &[u8]> =
    TableDefinition::new("entries");
/// stream, number -> name.
pub(super) const GROUPS: TableDefinition<'_, (u16, u32), &str> = TableDefinition::new("groups");
/// stream, number of the group -> last delivered id (2).
pub(super) const CURSORS: TableDefinition<'_, (u16, u32), (u64, u64)> =
    TableDefinition::new("cursors");
/// stream, group, id (2) -> deliveries, consumer.
pub(super) const PENDING: TableDefinition<'_, (u16, u32, u64, u64), (u32, &str)> =
    TableDefinition::new("pending");
/// Claims stand in one table for each period, so that old ones go as a whole.
pub(super) const CLAIMS_PREFIX: &str = "claims-";
/// `<type>:<nonce>` -> stream, id (2).
pub(super) type ClaimsTable<'a> = TableDefinition<'a, &'static str, (u16, u64, u64)>;

pub(super) fn key(stream: StreamNo, id: EntryId) -> (u16, u64, u64) {
    (stream, id.ms, id.seq)
}

pub(super) fn id(ms: u64, seq: u64) -> EntryId {
    EntryId { ms, seq }
}

/// The whole of a file that lies in memory: opened, loaded, every entry decoded.
pub(super) fn open_memory(bytes: &[u8]) -> Result<Vec<(EntryId, Fields)>, redb::Error> {
    let opened = std::panic::catch_unwind(|| {
        let memory = InMemoryBackend::new();
        memory.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        memory.write(0, bytes)?;
        let db = Database::builder().create_with_backend(memory)?;
        load(&db)?;
        let mut found = Vec::new();
        for row in db.begin_read()?.open_table(ENTRIES)?.iter()? {
            let (place, value) = row?;
            let (_, ms, seq) = place.value();
            found.push((id(ms, seq), decode(value.value())));
        }
        Ok(found)
    });
    opened.unwrap_or_else(|_| Err(redb::Error::Corrupted("its pages contradict each other".into())))
}

/// Makes the tables if need be and reads the state of all streams and groups.
pub(super) fn load(db: &Database) -> Result<Core, redb::Error> {
    let write = db.begin_write()?;
    write.open_table(STREAMS)?;
    write.open_table(ENTRIES)?;
    write.open_table(GROUPS)?;
    write.open_table(CURSORS)?;
    write.open_table(PENDING)?;
    write.commit()?;

    let read = db.begin_read()?;
    let mut core = Core::new();
    let mut named = Vec::new();
    for row in read.open_table(STREAMS)?.iter()? {
        let (name, value) = row?;
        let (number, ms, seq, len) = value.value();
        named.push((number, name.value().to_owned(), Stream::new(number, id(ms, seq), len)));
    }
    named.sort_by_key(|(number, ..)| *number);
    for (number, name, stream) in named {
        core.by_name.insert(name, number);
        core.streams.push(stream);
    }
    let entries = read.open_table(ENTRIES)?;
    let cursors = read.open_table(CURSORS)?;
    for row in read.open_table(GROUPS)?.iter()? {
        let (place, value) = row?;
        let (stream, number) = place.value();
        let name = value.value();
        let cursor = cursors.get((stream, number))?.map_or(EntryId::ZERO, |at| {
            let (ms, seq) = at.value();
            id(ms, seq)
        });
        let after = key(stream, cursor.next())..=key(stream, EntryId::MAX);
        let behind = u64::try_from(entries.range(after)?.count()).unwrap_or(u64::MAX);
        let Some(stream) = core.streams.get_mut(usize::from(stream)) else { continue };
        stream.groups_made = stream.groups_made.max(number + 1);
        stream.groups.insert(name.to_owned(), Group::new(number, cursor, behind));
    }
    load_pending(&read, &mut core)?;
    Ok(core)
}

fn load_pending(read: &redb::ReadTransaction, core: &mut Core) -> Result<(), redb::Error> {
    let since = Instant::now();
    for row in read.open_table(PENDING)?.iter()? {
        let (place, value) = row?;
        let (stream, number, ms, seq) = place.value();
        let (deliveries, consumer) = value.value();
        let pending = Pending { consumer: consumer.into(), since, deliveries };
        if let Some(group) = group_by_number(core, stream, number) {
            group.pending.insert(id(ms, seq), pending);
        }
    }
    Ok(())
}

fn group_by_number(core: &mut Core, stream: StreamNo, number: GroupNo) -> Option<&mut Group> {
    let stream = core.streams.get_mut(usize::from(stream))?;
    stream.groups.values_mut().find(|group| group.number == number)
}

/// Fields one after the other, each name and value behind its length.
pub(super) fn encode(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let size = fields.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
    let mut bytes = Vec::with_capacity(size);
    for (name, value) in fields {
        for part in [name, value] {
            let length = u32::try_from(part.len())
                .unwrap_or_else(|_| panic!("a field is far below 4 GiB: its size was checked"));
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

/// The fields again; what is torn is left out, and the entry is then refused as malformed.
pub(super) fn decode(mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while let Some((name, rest)) = part(bytes) {
        let Some((value, rest)) = part(rest) else { break };
        fields.push((name.to_vec(), value.to_vec()));
        bytes = rest;
    }
    fields
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_survive_their_encoding(fields in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..5)) {
            let borrowed: Vec<_> =
                fields.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
            prop_assert_eq!(decode(&encode(&borrowed)), fields);
        }

        #[test]
        fn any_bytes_can_be_decoded(bytes in any::<Vec<u8>>()) {
            decode(&bytes);
        }
    }
}
