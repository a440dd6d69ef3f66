//! One entry of a stream, decoded; and watching streams as they grow.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use leyline::Message;
use leyline::wire::BusEnvelope;
use oona::{Bus, BusError, EntryId, Peeked, Stream, TraceContext, attributes};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::{body, key, kind_name};

/// Entries of one stream in one answer.
pub const ENTRIES_MAX: usize = 32;
/// Bytes of payload in one answer, but for a single entry that is larger. Decoded they take a few
/// times as many.
const ENTRIES_BYTES_MAX: usize = 1 << 20;
/// Longest wait for something to happen.
pub const WAIT_MAX: Duration = Duration::from_secs(4);

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryView {
    /// The stream, by its purpose: `kernel_requests`.
    pub stream: String,
    /// Its place in the stream.
    pub id: String,
    /// Unix milliseconds when it was appended.
    pub at_ms: u64,
    /// What its signature says: `current`, `previous`, `unsigned`, `bad_signature`.
    pub mark: String,
    /// Its type; absent where the envelope cannot be read.
    pub kind: Option<String>,
    /// The subsystem that sent it, by its own word.
    pub source: Option<String>,
    /// Its request, run or own id.
    pub key: Option<String>,
    /// The trace it belongs to.
    pub trace_id: Option<String>,
    /// The envelope's attributes.
    pub attributes: BTreeMap<String, String>,
    /// What it says; null where it cannot be read.
    pub body: Value,
    /// Bytes of all its fields.
    pub bytes: usize,
}

impl EntryView {
    pub(super) fn of(stream: Stream, entry: &Peeked) -> Self {
        let bytes = bytes(entry);
        let envelope = entry.envelope.clone().unwrap_or_default();
        let message = match &entry.envelope {
            Some(BusEnvelope { message_type, payload, .. }) => {
                Message::decode(*message_type, payload).ok()
            }
            None => None,
        };
        let told = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            stream: stream.label().to_owned(),
            id: entry.id.to_string(),
            at_ms: entry.id.ms,
            mark: entry.mark.label().to_owned(),
            kind: message.as_ref().map(|message| kind_name(message.message_type())),
            source: envelope.attributes.get(attributes::SOURCE).and_then(|text| told(text)),
            key: message.as_ref().and_then(|message| told(key(message))),
            trace_id: TraceContext::of(&envelope.attributes).map(TraceContext::trace_id),
            body: message.as_ref().map_or(Value::Null, body),
            attributes: envelope.attributes,
            bytes,
        }
    }
}

fn bytes(entry: &Peeked) -> usize {
    entry.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// How far somebody has read, as text: `normal@1700000000000-0,policy@0-0`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places(pub Vec<(Stream, EntryId)>);

impl Places {
    /// The end of these streams as they stand now.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn ends(bus: &Bus, streams: &[Stream]) -> Result<Self, BusError> {
        let mut places = Vec::with_capacity(streams.len());
        for stream in streams {
            places.push((*stream, bus.end_of(*stream).await?));
        }
        Ok(Self(places))
    }

    /// The beginning of these streams.
    pub fn beginnings(streams: &[Stream]) -> Self {
        Self(streams.iter().map(|stream| (*stream, EntryId::ZERO)).collect())
    }
}

impl std::fmt::Display for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (stream, id)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{stream}@{id}")?;
        }
        Ok(())
    }
}

/// The text names no places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no places; they look like normal@1700000000000-0,policy@0-0")]
pub struct BadPlaces;

impl FromStr for Places {
    type Err = BadPlaces;

    fn from_str(text: &str) -> Result<Self, BadPlaces> {
        let mut places: Vec<(Stream, EntryId)> = Vec::new();
        for part in text.split(',') {
            let (name, id) = part.split_once('@').ok_or(BadPlaces)?;
            let stream = Stream::ALL.into_iter().find(|stream| stream.label() == name);
            let stream = stream.ok_or(BadPlaces)?;
            if places.iter().any(|(named, _)| *named == stream) {
                return Err(BadPlaces);
            }
            places.push((stream, id.parse().map_err(|_| BadPlaces)?));
        }
        Ok(Self(places))
    }
}

/// What happened on the bus behind some places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntriesView {
    /// By time.
    pub entries: Vec<EntryView>,
    /// The places to ask with next.
    pub after: String,
}

/// Waits for entries behind `places`, up to `wait` and no longer than [`WAIT_MAX`]. Nobody's work is
/// consumed.
///
/// # Errors
/// [`BusError::Log`] when the log fails.
pub async fn watch(
    bus: &Bus,
    places: &Places,
    count: usize,
    wait: Duration,
) -> Result<EntriesView, BusError> {
    let mut after = places.clone();
    let mut moved = places.0.clone();
    let count = count.clamp(1, ENTRIES_MAX);
    let found = bus.watch(&mut moved, count, wait.min(WAIT_MAX)).await?;
    let (mut entries, mut sum) = (Vec::with_capacity(found.len()), 0_usize);
    for (stream, entry) in &found {
        sum = sum.saturating_add(bytes(entry));
        if sum > ENTRIES_BYTES_MAX && !entries.is_empty() {
            break;
        }
        entries.push(EntryView::of(*stream, entry));
        if let Some(place) = after.0.iter_mut().find(|(named, _)| named == stream) {
            place.1 = entry.id;
        }
    }
    Ok(EntriesView { entries, after: after.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_their_text() {
        let places = Places::beginnings(&Stream::ALL);
        assert_eq!(places.to_string().parse(), Ok(places));
        for text in ["", "normal", "normal@", "nowhere@0-0", "normal@0-0,normal@1-0"] {
            assert_eq!(text.parse::<Places>(), Err(BadPlaces), "{text}");
        }
    }
}
