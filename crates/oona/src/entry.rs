//! Entries as they stand in a log.

use std::fmt;
use std::str::FromStr;

/// The field that holds the envelope's bytes.
pub(crate) const PAYLOAD: &str = "payload";
/// The field that holds the signature over them.
pub(crate) const SIGNATURE: &str = "signature";

/// Identifies an entry within its stream: the Unix millisecond when it was appended, and its
/// number within that millisecond. Later entries have greater ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EntryId {
    /// Unix milliseconds of the append, by the log's clock.
    pub ms: u64,
    /// Number within the millisecond.
    pub seq: u64,
}

impl EntryId {
    /// Before every entry.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };
    /// After every entry.
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The greatest id before this one; [`ZERO`](Self::ZERO) has none and stays.
    pub fn previous(self) -> Self {
        match (self.ms, self.seq.checked_sub(1)) {
            (ms, Some(seq)) => Self { ms, seq },
            (0, None) => Self::ZERO,
            (ms, None) => Self { ms: ms - 1, seq: u64::MAX },
        }
    }

    /// The smallest id after this one.
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// A number in decimal, without allocating.
pub(crate) fn digits(number: u64, text: &mut [u8; 20]) -> &str {
    let mut rest = number;
    let mut begin = text.len();
    loop {
        begin -= 1;
        text[begin] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    std::str::from_utf8(&text[begin..]).unwrap_or_default()
}

/// The text of an id, without allocating.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdText {
    text: [u8; 41],
    length: usize,
}

impl IdText {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

impl From<EntryId> for IdText {
    fn from(id: EntryId) -> Self {
        let (mut text, mut buffer) = ([0; 41], [0; 20]);
        let ms = digits(id.ms, &mut buffer);
        let dash = ms.len();
        text[..dash].copy_from_slice(ms.as_bytes());
        text[dash] = b'-';
        let seq = digits(id.seq, &mut buffer);
        let length = dash + 1 + seq.len();
        text[dash + 1..length].copy_from_slice(seq.as_bytes());
        Self { text, length }
    }
}

/// The text is no entry id, which looks like `1700000000000-0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no entry id; one looks like 1700000000000-0")]
pub struct BadEntryId;

impl FromStr for EntryId {
    type Err = BadEntryId;

    fn from_str(text: &str) -> Result<Self, BadEntryId> {
        let (ms, seq) = text.split_once('-').ok_or(BadEntryId)?;
        Ok(Self {
            ms: ms.parse().map_err(|_| BadEntryId)?,
            seq: seq.parse().map_err(|_| BadEntryId)?,
        })
    }
}

/// An entry's fields, in order.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry as a consumer reads it: the two fields that matter, if it has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawEntry {
    pub(crate) id: EntryId,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) signature: Option<Vec<u8>>,
    /// How often it has been delivered, this time included.
    pub(crate) deliveries: u32,
}

impl RawEntry {
    pub(crate) fn new(id: EntryId, fields: Fields, deliveries: u32) -> Self {
        let (mut payload, mut signature) = (None, None);
        for (name, value) in fields {
            match name.as_slice() {
                b"payload" => payload = Some(value),
                b"signature" => signature = Some(value),
                _ => {}
            }
        }
        Self { id, payload, signature, deliveries }
    }

    /// Bytes of both fields.
    pub(crate) fn size(&self) -> usize {
        let size = |field: &Option<Vec<u8>>| field.as_ref().map_or(0, Vec::len);
        size(&self.payload) + size(&self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_and_order_by_time() {
        for id in [EntryId::ZERO, EntryId { ms: 1_700_000_000_000, seq: 7 }, EntryId::MAX] {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(IdText::from(id).as_bytes(), id.to_string().as_bytes());
        }
        for text in ["", "1", "1-", "-1", "a-b", "1-2-3"] {
            assert_eq!(text.parse::<EntryId>(), Err(BadEntryId), "{text}");
        }
        let id = EntryId { ms: 5, seq: u64::MAX };
        assert_eq!(id.next(), EntryId { ms: 6, seq: 0 });
        for id in [id, EntryId { ms: 5, seq: 0 }, EntryId { ms: 5, seq: 3 }] {
            assert_eq!(id.next().previous(), id);
        }
        assert_eq!(EntryId::ZERO.previous(), EntryId::ZERO);
    }
}
