//! Looking into streams, and at what could not be handled.

use leyline::sign::Keyring;
use leyline::wire::BusEnvelope;

use crate::bus::Bus;
use crate::entry::{EntryId, Fields, RawEntry};
use crate::error::BusError;
use crate::log::dead;
use crate::stream::Stream;

/// An entry as it stands in a stream, seen from outside: nothing is consumed or acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Peeked {
    /// Its place.
    pub id: EntryId,
    /// Whether a secret in force signed it.
    pub verified: bool,
    /// The envelope, decoded whether verified or not; `None` where it cannot be.
    pub envelope: Option<BusEnvelope>,
    /// Every field of the entry, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An entry that could not be handled.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The entry, with its place in the dead-letter stream.
    pub entry: Peeked,
    /// What its handler said last.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// Name of the stream it came from.
    pub origin_stream: String,
    /// Its place there.
    pub origin_entry: Option<EntryId>,
    /// The group that gave it up.
    pub group: String,
}

impl Bus {
    /// Up to `count` entries of a stream after `after`, oldest first.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn peek(
        &self,
        stream: Stream,
        after: EntryId,
        count: usize,
    ) -> Result<Vec<Peeked>, BusError> {
        let entries = self.0.log.range(self.name(stream), after, count).await?;
        Ok(entries.into_iter().map(|(id, fields)| peeked(id, fields, &self.0.keyring)).collect())
    }

    /// Up to `count` dead letters after `after`, oldest first.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn dead_letters(
        &self,
        after: EntryId,
        count: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        let entries = self.peek(Stream::DeadLetter, after, count).await?;
        Ok(entries.into_iter().map(dead_letter).collect())
    }

    /// Removes a dead letter; `false` when there was none.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn remove_dead_letter(&self, id: EntryId) -> Result<bool, BusError> {
        Ok(self.0.log.delete(self.name(Stream::DeadLetter), id).await?)
    }
}

fn peeked(id: EntryId, fields: Fields, keyring: &Keyring) -> Peeked {
    let raw = RawEntry::new(id, fields.clone(), 0);
    let verified = match (&raw.payload, &raw.signature) {
        (Some(payload), Some(signature)) => keyring.verify(payload, signature).is_ok(),
        _ => false,
    };
    let envelope = raw.payload.and_then(|payload| prost::Message::decode(payload.as_slice()).ok());
    Peeked { id, verified, envelope, fields }
}

fn dead_letter(entry: Peeked) -> DeadLetter {
    let field = |name: &str| {
        let found = entry.fields.iter().rev().find(|(field, _)| field == name.as_bytes());
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    };
    DeadLetter {
        reason: field(dead::REASON),
        attempts: field(dead::ATTEMPTS).parse().unwrap_or(0),
        origin_stream: field(dead::ORIGIN),
        origin_entry: field(dead::ENTRY).parse().ok(),
        group: field(dead::GROUP),
        entry,
    }
}
