//! Bytes of the file: the fields of an entry, blocks of entries, and the changes in a frame of the
//! journal. Integers are little-endian. Whatever cannot be decoded is `None`, never a panic.

use std::sync::Arc;

use bytes::Bytes;

use super::nonces::{Claim, Owner};
use super::state::{Change, StreamNo};
use crate::entry::{EntryId, Fields};

/// Bytes that an entry takes in a block beside its fields: id (16), length (4).
pub(super) const ENTRY_HEAD_BYTES: usize = 20;

/// Fields one after the other, each name and value behind its length.
pub(super) fn encode_fields(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let size = fields.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
    let mut bytes = Vec::with_capacity(size);
    for (name, value) in fields {
        put_part(&mut bytes, name);
        put_part(&mut bytes, value);
    }
    bytes
}

/// The fields again; what is torn is left out, and the entry is then refused as malformed.
pub(super) fn decode_fields(mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while let Some(name) = part(&mut bytes) {
        let Some(value) = part(&mut bytes) else { break };
        fields.push((name.to_vec(), value.to_vec()));
    }
    fields
}

/// Adds an entry to a block.
pub(super) fn put_entry(block: &mut Vec<u8>, id: EntryId, value: &[u8]) {
    put_id(block, id);
    put_part(block, value);
}

/// The entries of a block, oldest first; an error when it is no block.
pub(super) fn block(mut bytes: &[u8]) -> impl Iterator<Item = Option<(EntryId, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let entry = entry(&mut bytes);
        if entry.is_none() {
            bytes = &[];
        }
        Some(entry)
    })
}

fn entry<'a>(bytes: &mut &'a [u8]) -> Option<(EntryId, &'a [u8])> {
    Some((id(bytes)?, part(bytes)?))
}

mod tag {
    pub(super) const NEW_STREAM: u8 = 1;
    pub(super) const NEW_GROUP: u8 = 2;
    pub(super) const REMOVE_GROUP: u8 = 3;
    pub(super) const APPEND: u8 = 4;
    pub(super) const CURSOR: u8 = 5;
    pub(super) const DELIVERED: u8 = 6;
    pub(super) const SETTLED: u8 = 7;
    pub(super) const TRIM: u8 = 8;
    pub(super) const DELETE: u8 = 9;
    pub(super) const CLAIM: u8 = 10;
}

/// Adds a change to the payload of a frame.
pub(super) fn put_change(to: &mut Vec<u8>, change: &Change) {
    match change {
        Change::NewStream { stream, name } => {
            put_head(to, tag::NEW_STREAM, *stream);
            put_part(to, name.as_bytes());
        }
        Change::NewGroup { stream, group, name } => {
            put_head(to, tag::NEW_GROUP, *stream);
            to.extend_from_slice(&group.to_le_bytes());
            put_part(to, name.as_bytes());
        }
        Change::RemoveGroup { stream, group } => {
            put_head(to, tag::REMOVE_GROUP, *stream);
            to.extend_from_slice(&group.to_le_bytes());
        }
        Change::Append { stream, id, value, .. } => {
            put_head(to, tag::APPEND, *stream);
            put_id(to, *id);
            put_part(to, value);
        }
        Change::Cursor { stream, group, at } => {
            put_head(to, tag::CURSOR, *stream);
            to.extend_from_slice(&group.to_le_bytes());
            put_id(to, *at);
        }
        Change::Delivered { stream, group, id, deliveries, to: consumer } => {
            put_head(to, tag::DELIVERED, *stream);
            to.extend_from_slice(&group.to_le_bytes());
            put_id(to, *id);
            to.extend_from_slice(&deliveries.to_le_bytes());
            put_part(to, consumer.as_bytes());
        }
        Change::Settled { stream, group, id } => {
            put_head(to, tag::SETTLED, *stream);
            to.extend_from_slice(&group.to_le_bytes());
            put_id(to, *id);
        }
        Change::Trim { stream, below, removed, bytes } => {
            put_head(to, tag::TRIM, *stream);
            put_id(to, *below);
            to.extend_from_slice(&removed.to_le_bytes());
            to.extend_from_slice(&bytes.to_le_bytes());
        }
        Change::Delete { stream, id, bytes } => {
            put_head(to, tag::DELETE, *stream);
            put_id(to, *id);
            to.extend_from_slice(&bytes.to_le_bytes());
        }
    }
}

/// Adds the claim of a nonce to the payload of a frame.
pub(super) fn put_claim(to: &mut Vec<u8>, (nonce, (stream, id)): &Claim) {
    put_head(to, tag::CLAIM, *stream);
    put_id(to, *id);
    put_part(to, nonce.as_bytes());
}

/// The changes and claims of a frame.
pub(super) fn decode_frame(mut bytes: &[u8]) -> Option<(Vec<Change>, Vec<Claim>)> {
    let (mut changes, mut claims) = (Vec::new(), Vec::new());
    let from = &mut bytes;
    while !from.is_empty() {
        let [tag] = take::<1>(from)?;
        let stream = StreamNo::from_le_bytes(take(from)?);
        changes.push(match tag {
            tag::NEW_STREAM => Change::NewStream { stream, name: text(from)? },
            tag::NEW_GROUP => Change::NewGroup { stream, group: u32(from)?, name: text(from)? },
            tag::REMOVE_GROUP => Change::RemoveGroup { stream, group: u32(from)? },
            tag::APPEND => Change::Append {
                stream,
                id: id(from)?,
                value: Bytes::copy_from_slice(part(from)?),
                owed: true,
                shown: false,
            },
            tag::CURSOR => Change::Cursor { stream, group: u32(from)?, at: id(from)? },
            tag::DELIVERED => Change::Delivered {
                stream,
                group: u32(from)?,
                id: id(from)?,
                deliveries: u32(from)?,
                to: text(from)?,
            },
            tag::SETTLED => Change::Settled { stream, group: u32(from)?, id: id(from)? },
            tag::TRIM => {
                Change::Trim { stream, below: id(from)?, removed: u64(from)?, bytes: u64(from)? }
            }
            tag::DELETE => Change::Delete { stream, id: id(from)?, bytes: u64(from)? },
            tag::CLAIM => {
                let owner: Owner = (stream, id(from)?);
                claims.push((text(from)?, owner));
                continue;
            }
            _ => return None,
        });
    }
    Some((changes, claims))
}

fn put_head(to: &mut Vec<u8>, tag: u8, stream: StreamNo) {
    to.push(tag);
    to.extend_from_slice(&stream.to_le_bytes());
}

fn put_id(to: &mut Vec<u8>, id: EntryId) {
    to.extend_from_slice(&id.ms.to_le_bytes());
    to.extend_from_slice(&id.seq.to_le_bytes());
}

fn put_part(to: &mut Vec<u8>, part: &[u8]) {
    let length = u32::try_from(part.len())
        .unwrap_or_else(|_| panic!("a field is far below 4 GiB: its size was checked"));
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(part);
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*taken)
}

fn u32(from: &mut &[u8]) -> Option<u32> {
    take(from).map(u32::from_le_bytes)
}

fn u64(from: &mut &[u8]) -> Option<u64> {
    take(from).map(u64::from_le_bytes)
}

fn id(from: &mut &[u8]) -> Option<EntryId> {
    Some(EntryId { ms: u64(from)?, seq: u64(from)? })
}

fn part<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = *from;
    let length = usize::try_from(u32(&mut rest)?).ok()?;
    let (part, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(part)
}

fn text(from: &mut &[u8]) -> Option<Arc<str>> {
    std::str::from_utf8(part(from)?).ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_id() -> impl Strategy<Value = EntryId> {
        (any::<u64>(), any::<u64>()).prop_map(|(ms, seq)| EntryId { ms, seq })
    }

    fn any_text() -> impl Strategy<Value = Arc<str>> {
        any::<String>().prop_map(Arc::from)
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let place = || (any::<u16>(), any::<u32>());
        prop_oneof![
            (any::<u16>(), any_text())
                .prop_map(|(stream, name)| Change::NewStream { stream, name }),
            (place(), any_text()).prop_map(|((stream, group), name)| Change::NewGroup {
                stream,
                group,
                name
            }),
            place().prop_map(|(stream, group)| Change::RemoveGroup { stream, group }),
            (any::<u16>(), any_id(), any::<Vec<u8>>()).prop_map(|(stream, id, value)| {
                Change::Append { stream, id, value: value.into(), owed: true, shown: false }
            }),
            (place(), any_id()).prop_map(|((stream, group), at)| Change::Cursor {
                stream,
                group,
                at
            }),
            (place(), any_id(), any::<u32>(), any_text()).prop_map(
                |((stream, group), id, deliveries, to)| Change::Delivered {
                    stream,
                    group,
                    id,
                    deliveries,
                    to
                }
            ),
            (place(), any_id()).prop_map(|((stream, group), id)| Change::Settled {
                stream,
                group,
                id
            }),
            (any::<u16>(), any_id(), any::<u64>(), any::<u64>()).prop_map(
                |(stream, below, removed, bytes)| Change::Trim { stream, below, removed, bytes }
            ),
            (any::<u16>(), any_id(), any::<u64>()).prop_map(|(stream, id, bytes)| Change::Delete {
                stream,
                id,
                bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn fields_survive_their_encoding(fields in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..5)) {
            let borrowed: Vec<_> =
                fields.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
            prop_assert_eq!(decode_fields(&encode_fields(&borrowed)), fields);
        }

        #[test]
        fn frames_survive_their_encoding(
            changes in prop::collection::vec(any_change(), 0..10),
            claims in prop::collection::vec((any_text(), (any::<u16>(), any_id())), 0..10),
        ) {
            let mut bytes = Vec::new();
            changes.iter().for_each(|change| put_change(&mut bytes, change));
            claims.iter().for_each(|claim| put_claim(&mut bytes, claim));
            prop_assert_eq!(decode_frame(&bytes), Some((changes, claims)));
        }

        #[test]
        fn any_bytes_can_be_decoded(bytes in any::<Vec<u8>>()) {
            decode_fields(&bytes);
            decode_frame(&bytes);
            block(&bytes).for_each(drop);
        }

        #[test]
        fn a_frame_cut_short_is_noticed_or_a_prefix(changes in prop::collection::vec(any_change(), 1..5), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            changes.iter().for_each(|change| put_change(&mut bytes, change));
            bytes.truncate(cut.index(bytes.len()));
            if let Some((decoded, _)) = decode_frame(&bytes) {
                prop_assert!(changes.starts_with(&decoded));
            }
        }
    }
}
