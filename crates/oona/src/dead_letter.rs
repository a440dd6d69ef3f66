//! Looking into streams, and at what could not be handled.

use std::time::Duration;

use leyline::sign::Keyring;
use leyline::wire::{BusEnvelope, BusMessageType};
use tokio::time::Instant;

use crate::attributes;
use crate::bus::Bus;
use crate::entry::{EntryId, Fields, RawEntry};
use crate::error::{BusError, LogError};
use crate::log::dead;
use crate::stream::Stream;

/// Entries read in one step of a search.
const PAGE: usize = 256;
/// Dead letters that one search looks at; the next goes on behind them.
const SEARCH_MAX: usize = 100_000;
/// Between two looks at streams where nothing happens.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Reason of a dead letter whose handler never came to an end, so that the log gave it up.
pub const NEVER_ACKNOWLEDGED: &str = "never acknowledged: its handler crashed or hung each time";
/// Reason of a dead letter from the emergency lane: who should have had it took nothing.
pub const RECEIVER_BUSY: &str = "its receiver is busy";
/// Reason of a dead letter from the emergency lane: who should have had it was not there.
pub const RECEIVER_GONE: &str = "its receiver is gone";

/// What an entry's signature says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The current secret signed it.
    Current,
    /// The previous secret signed it.
    Previous,
    /// It lacks payload or signature.
    Unsigned,
    /// No secret in force signed it.
    BadSignature,
}

impl Mark {
    /// Every mark.
    pub const ALL: [Self; 4] = [Self::Current, Self::Previous, Self::Unsigned, Self::BadSignature];

    /// Whether a secret in force signed it.
    pub fn is_verified(self) -> bool {
        matches!(self, Self::Current | Self::Previous)
    }

    /// How it is called where programs read it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
        }
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Current => "the current secret signed it",
            Self::Previous => "the previous secret signed it",
            Self::Unsigned => "it is not signed",
            Self::BadSignature => "no secret in force signed it",
        })
    }
}

/// An entry as it stands in a stream, seen from outside: nothing is consumed or acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Peeked {
    /// Its place.
    pub id: EntryId,
    /// What its signature says.
    pub mark: Mark,
    /// The envelope, decoded whether verified or not; `None` where it cannot be.
    pub envelope: Option<BusEnvelope>,
    /// Every field of the entry, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Peeked {
    /// The type that its envelope declares, where the contract has it.
    pub fn message_type(&self) -> Option<BusMessageType> {
        BusMessageType::try_from(self.envelope.as_ref()?.message_type).ok()
    }
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

impl DeadLetter {
    /// How often it was replayed before it died this time.
    pub fn replays(&self) -> u32 {
        let attributes = self.entry.envelope.as_ref().map(|envelope| &envelope.attributes);
        let told = attributes.and_then(|attributes| attributes.get(attributes::REPLAYS));
        told.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// Which dead letters are meant. What is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// The stream they came from.
    pub stream: Option<Stream>,
    /// Words in their reason, capitals or not.
    pub reason: Option<String>,
    /// Their message type.
    pub kind: Option<BusMessageType>,
    /// They died at this Unix millisecond or later.
    pub since_ms: Option<u64>,
}

/// A part of the dead letters that a filter lets through.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterPage {
    /// Oldest first.
    pub letters: Vec<DeadLetter>,
    /// Where to go on; `None` when there are no more.
    pub next: Option<EntryId>,
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
        let keyring = self.0.live.keyring();
        Ok(entries.into_iter().map(|(id, fields)| peeked(id, fields, &keyring)).collect())
    }

    /// The place of the newest entry of a stream; [`EntryId::ZERO`] when nothing stands there.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn end_of(&self, stream: Stream) -> Result<EntryId, BusError> {
        Ok(self.0.log.newest(self.name(stream)).await?.unwrap_or(EntryId::ZERO))
    }

    /// Waits up to `wait` for entries behind the given places, without a group: nobody's work is
    /// consumed. Up to `count` of each stream, by time; the places move behind what is returned.
    /// While nothing happens it looks four times a second, with one command for all streams.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn watch(
        &self,
        places: &mut [(Stream, EntryId)],
        count: usize,
        wait: Duration,
    ) -> Result<Vec<(Stream, Peeked)>, BusError> {
        let deadline = Instant::now() + wait;
        loop {
            let after: Vec<(&str, EntryId)> =
                places.iter().map(|(stream, id)| (self.name(*stream), *id)).collect();
            let found = self.0.log.read_after(&after, count).await?;
            let now = Instant::now();
            if !found.is_empty() || now >= deadline {
                let keyring = self.0.live.keyring();
                let mut entries = Vec::with_capacity(found.len());
                for (index, id, fields) in found {
                    let Some((stream, place)) = places.get_mut(index) else { continue };
                    *place = (*place).max(id);
                    entries.push((*stream, peeked(id, fields, &keyring)));
                }
                entries.sort_by_key(|(_, entry)| entry.id);
                return Ok(entries);
            }
            tokio::time::sleep(WATCH_INTERVAL.min(deadline - now)).await;
        }
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

    /// One dead letter.
    ///
    /// # Errors
    /// [`LogError`] when the log fails.
    pub async fn dead_letter(&self, id: EntryId) -> Result<Option<DeadLetter>, LogError> {
        let name = self.name(Stream::DeadLetter);
        let found = self.0.log.range(name, id.previous(), 1).await?.into_iter().next();
        let found = found.filter(|(place, _)| *place == id);
        Ok(found.map(|(id, fields)| dead_letter(peeked(id, fields, &self.0.live.keyring()))))
    }

    /// Up to `count` dead letters after `after` that the filter lets through. One search looks at
    /// 100 000 dead letters at most and then says where to go on.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn find_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: EntryId,
        count: usize,
    ) -> Result<DeadLetterPage, BusError> {
        let since = filter.since_ms.map(|ms| EntryId { ms, seq: 0 }.previous());
        let mut last = since.map_or(after, |since| since.max(after));
        let mut letters = Vec::new();
        let mut looked_at = 0;
        while looked_at < SEARCH_MAX {
            let page = self.dead_letters(last, PAGE).await?;
            if page.is_empty() {
                return Ok(DeadLetterPage { letters, next: None });
            }
            looked_at += page.len();
            for letter in page {
                if letters.len() == count {
                    return Ok(DeadLetterPage { letters, next: Some(last) });
                }
                last = letter.entry.id;
                if self.lets_through(filter, &letter) {
                    letters.push(letter);
                }
            }
        }
        Ok(DeadLetterPage { letters, next: Some(last) })
    }

    fn lets_through(&self, filter: &DeadLetterFilter, letter: &DeadLetter) -> bool {
        let told = letter.reason.to_lowercase();
        filter.stream.is_none_or(|stream| self.name(stream) == letter.origin_stream)
            && filter.reason.as_ref().is_none_or(|words| told.contains(&words.to_lowercase()))
            && filter.kind.is_none_or(|kind| letter.entry.message_type() == Some(kind))
            && filter.since_ms.is_none_or(|ms| letter.entry.id.ms >= ms)
    }

    /// Removes a dead letter; `false` when there was none.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn remove_dead_letter(&self, id: EntryId) -> Result<bool, BusError> {
        let removed = self.0.log.delete(self.name(Stream::DeadLetter), id).await?;
        if removed {
            tracing::info!(dead_letter = %id, "dead letter purged");
        }
        Ok(removed)
    }
}

fn peeked(id: EntryId, fields: Fields, keyring: &Keyring) -> Peeked {
    let raw = RawEntry::new(id, fields.clone(), 0);
    let mark = match (&raw.payload, &raw.signature) {
        (Some(payload), Some(signature)) => match keyring.verify(payload, signature) {
            Ok(key) if key == keyring.current_id() => Mark::Current,
            Ok(_) => Mark::Previous,
            Err(_) => Mark::BadSignature,
        },
        _ => Mark::Unsigned,
    };
    let envelope = raw.payload.and_then(|payload| prost::Message::decode(payload.as_slice()).ok());
    Peeked { id, mark, envelope, fields }
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
