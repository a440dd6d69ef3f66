//! Dead letters: listed, shown whole, replayed, purged.

use oona::{Bus, BusError, DeadLetter, DeadLetterFilter, EntryId, LogError, ReplayError, Stream};
use serde::{Deserialize, Serialize};

use super::body::kind_named;
use super::entry::EntryView;

/// Dead letters in one answer.
pub const LETTERS_MAX: usize = 200;

/// One field of an entry, in hex.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldView {
    /// Its name as text.
    pub name: String,
    /// Its value.
    pub hex: String,
}

/// One dead letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterView {
    /// The message, with its place among the dead letters.
    pub entry: EntryView,
    /// What its handler said last.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// Name of the stream it came from.
    pub origin_stream: String,
    /// Its place there.
    pub origin_entry: Option<String>,
    /// The group that gave it up.
    pub group: String,
    /// How often it was replayed before.
    pub replays: u32,
    /// Where it died before, the latest last.
    pub replayed_from: Vec<String>,
    /// Why it cannot be replayed; absent when it can.
    pub cannot_replay: Option<String>,
    /// Its fields as they stand in the log; only when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw: Vec<FieldView>,
}

/// A part of the dead letters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLettersView {
    /// Oldest first.
    pub letters: Vec<DeadLetterView>,
    /// Ask with this as `after` for the next ones; absent when there are no more.
    pub next: Option<String>,
}

/// Where a replayed dead letter stands now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayedView {
    /// Its place among the dead letters until now.
    pub dead_letter: String,
    /// The stream it went back to.
    pub stream: String,
    /// Its place there.
    pub id: String,
}

/// What became of a purge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PurgedView {
    /// The dead letter.
    pub dead_letter: String,
    /// Whether it was there.
    pub removed: bool,
}

/// Which dead letters are asked for. What is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterQuery {
    /// The stream they came from: `normal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Words in their reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Their type: `field_report`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// They died at this Unix millisecond or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Behind this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

/// A query that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// No such stream.
    #[error("there is no stream {0:?}; they are {known}", known = Stream::ALL.map(Stream::label).join(", "))]
    Stream(String),
    /// No such type.
    #[error("there is no message type {0:?}; one is kernel_prefetch_request")]
    Kind(String),
    /// No such place.
    #[error("{0:?} is no entry id; one looks like 1700000000000-0")]
    Id(String),
}

impl LetterQuery {
    /// Reads the words.
    ///
    /// # Errors
    /// [`BadQuery`] that says which word is wrong.
    pub fn read(&self) -> Result<(DeadLetterFilter, EntryId), BadQuery> {
        let stream = match &self.stream {
            None => None,
            Some(name) => {
                let found = Stream::ALL.into_iter().find(|stream| stream.label() == name);
                Some(found.ok_or_else(|| BadQuery::Stream(name.clone()))?)
            }
        };
        let kind = match &self.kind {
            None => None,
            Some(name) => Some(kind_named(name).ok_or_else(|| BadQuery::Kind(name.clone()))?),
        };
        let after = match &self.after {
            None => EntryId::ZERO,
            Some(id) => id.parse().map_err(|_| BadQuery::Id(id.clone()))?,
        };
        let reason = self.reason.clone();
        Ok((DeadLetterFilter { stream, reason, kind, since_ms: self.since_ms }, after))
    }
}

/// Lists dead letters.
///
/// # Errors
/// [`BusError::Log`] when the log fails.
pub async fn letters(
    bus: &Bus,
    filter: &DeadLetterFilter,
    after: EntryId,
    count: usize,
) -> Result<DeadLettersView, BusError> {
    let page = bus.find_dead_letters(filter, after, count.clamp(1, LETTERS_MAX)).await?;
    let letters = page.letters.iter().map(|letter| view(bus, letter)).collect();
    Ok(DeadLettersView { letters, next: page.next.map(|id| id.to_string()) })
}

/// Shows one, with its fields as they are when `raw` is asked for.
///
/// # Errors
/// [`LogError`] when the log fails.
pub async fn letter(bus: &Bus, id: EntryId, raw: bool) -> Result<Option<DeadLetterView>, LogError> {
    let Some(letter) = bus.dead_letter(id).await? else { return Ok(None) };
    let mut view = view(bus, &letter);
    if raw {
        let field = |(name, value): &(Vec<u8>, Vec<u8>)| FieldView {
            name: String::from_utf8_lossy(name).into_owned(),
            hex: value.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        view.raw = letter.entry.fields.iter().map(field).collect();
    }
    Ok(Some(view))
}

/// Replays one.
///
/// # Errors
/// As for [`Bus::replay`].
pub async fn replay(bus: &Bus, id: EntryId) -> Result<ReplayedView, ReplayError> {
    let (stream, entry) = bus.replay(id).await?;
    Ok(ReplayedView {
        dead_letter: id.to_string(),
        stream: stream.label().to_owned(),
        id: entry.to_string(),
    })
}

/// Removes one.
///
/// # Errors
/// [`BusError::Log`] when the log fails.
pub async fn purge(bus: &Bus, id: EntryId) -> Result<PurgedView, BusError> {
    let removed = bus.remove_dead_letter(id).await?;
    Ok(PurgedView { dead_letter: id.to_string(), removed })
}

fn view(bus: &Bus, letter: &DeadLetter) -> DeadLetterView {
    let entry = EntryView::of(Stream::DeadLetter, &letter.entry);
    let places = entry.attributes.get(oona::attributes::REPLAYED_FROM);
    DeadLetterView {
        replayed_from: places
            .map(|places| places.split(' ').map(str::to_owned).collect())
            .unwrap_or_default(),
        reason: letter.reason.clone(),
        attempts: letter.attempts,
        origin_stream: letter.origin_stream.clone(),
        origin_entry: letter.origin_entry.map(|id| id.to_string()),
        group: letter.group.clone(),
        replays: letter.replays(),
        cannot_replay: bus.may_replay(letter).err().map(|error| error.to_string()),
        raw: Vec::new(),
        entry,
    }
}
