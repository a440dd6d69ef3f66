//! Bringing the dead back: a dead letter is sealed anew and appended to the stream it came from, in
//! one step with its removal from the dead letters. A crash between leaves it in exactly one place.

use std::collections::BTreeMap;

use leyline::wire::{BusEnvelope, BusMessageType};

use crate::attributes;
use crate::bus::Bus;
use crate::dead_letter::{DeadLetter, Mark};
use crate::entry::EntryId;
use crate::error::LogError;
use crate::log::Replayed;
use crate::seal::Sealed;
use crate::stream::Stream;

/// Places remembered in [`attributes::REPLAYED_FROM`]; the oldest are forgotten.
const PLACES_MAX: usize = 8;

/// Why a dead letter was not replayed. It stays where it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It is no longer there.
    #[error("there is no dead letter {id}: it was replayed, purged or has expired")]
    NotFound {
        /// Its place.
        id: EntryId,
    },
    /// No secret in force signed it, and sealing it anew would vouch for it.
    #[error(
        "dead letter {id} is not replayed: {mark}; if its sender is trusted, put its secret into ESPER_LEYLINE_SECRET_PREVIOUS"
    )]
    NotVerified {
        /// Its place.
        id: EntryId,
        /// What its signature says.
        mark: Mark,
    },
    /// It cannot be read, so no handler could either.
    #[error("dead letter {id} is not replayed: it holds no message of the contract; purge it")]
    Undecodable {
        /// Its place.
        id: EntryId,
    },
    /// It came from a stream that this bus does not know.
    #[error(
        "dead letter {id} is not replayed: it came from stream {origin:?}, which no OONA_*_STREAM names here"
    )]
    UnknownOrigin {
        /// Its place.
        id: EntryId,
        /// Name of the stream it came from.
        origin: String,
    },
    /// The stream it came from does not carry its type; it would be refused there.
    #[error(
        "dead letter {id} is not replayed: {kind:?} does not travel on the {stream} stream; purge it"
    )]
    WrongStream {
        /// Its place.
        id: EntryId,
        /// The stream it came from.
        stream: Stream,
        /// Its type.
        kind: BusMessageType,
    },
    /// With the attributes of a replay it is too large; it would be refused.
    #[error(
        "dead letter {id} is not replayed: sealed anew it takes {bytes} bytes, at most {bytes_max} may travel (OONA_MAX_MESSAGE_BYTES)"
    )]
    Oversize {
        /// Its place.
        id: EntryId,
        /// Bytes of envelope and signature.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The log failed. Whether it was replayed shows in the list of dead letters.
    #[error(transparent)]
    Log(#[from] LogError),
}

crate::error::codes! {
    ReplayError {
        NotFound = "replay_not_found", NotVerified = "replay_not_verified",
        Undecodable = "replay_undecodable", UnknownOrigin = "replay_unknown_origin",
        WrongStream = "replay_wrong_stream", Oversize = "replay_oversize", Log = "replay_log",
    }
}

/// A dead letter that can be replayed: verified, sealed anew, not yet sent.
struct Revived {
    stream: Stream,
    sealed: Sealed,
}

impl Bus {
    /// Replays one dead letter: appends it to the stream it came from under a nonce and a time of
    /// its own, since the old ones would be refused as a replay or as stale, and removes it from the
    /// dead letters, both or neither. Says where it stands now.
    ///
    /// # Errors
    /// [`ReplayError`]; the dead letter then stays where it was, unless the log did not answer.
    pub async fn replay(&self, id: EntryId) -> Result<(Stream, EntryId), ReplayError> {
        let letter = self.dead_letter(id).await?.ok_or(ReplayError::NotFound { id })?;
        let Revived { stream, sealed } = self.revive(&letter)?;
        let (dead, origin) = (self.name(Stream::DeadLetter), self.name(stream));
        match self.0.log.replay(dead, id, origin, &sealed.fields()).await? {
            Replayed::Appended(entry) => {
                self.0.metrics.count_replayed(stream);
                tracing::info!(%stream, dead_letter = %id, %entry, "dead letter replayed");
                Ok((stream, entry))
            }
            // Somebody else was faster.
            Replayed::Gone => Err(ReplayError::NotFound { id }),
        }
    }

    /// Whether a dead letter could be replayed, without doing so. Says to which stream.
    ///
    /// # Errors
    /// [`ReplayError`], as for [`replay`](Self::replay).
    pub fn may_replay(&self, letter: &DeadLetter) -> Result<Stream, ReplayError> {
        self.revive(letter).map(|revived| revived.stream)
    }

    fn revive(&self, letter: &DeadLetter) -> Result<Revived, ReplayError> {
        let id = letter.entry.id;
        let mark = letter.entry.mark;
        if !mark.is_verified() {
            return Err(ReplayError::NotVerified { id, mark });
        }
        let envelope = letter.entry.envelope.as_ref().ok_or(ReplayError::Undecodable { id })?;
        let message = leyline::Message::decode(envelope.message_type, &envelope.payload)
            .map_err(|_| ReplayError::Undecodable { id })?;
        let named = |stream: &Stream| self.name(*stream) == letter.origin_stream;
        let stream = Stream::ALL
            .into_iter()
            .filter(|stream| *stream != Stream::DeadLetter)
            .find(named)
            .ok_or_else(|| ReplayError::UnknownOrigin {
                id,
                origin: letter.origin_stream.clone(),
            })?;
        let kind = message.message_type();
        if !stream.carries(kind) {
            return Err(ReplayError::WrongStream { id, stream, kind });
        }
        let envelope = BusEnvelope {
            message_type: envelope.message_type,
            payload: envelope.payload.clone(),
            attributes: revived_attributes(letter, &envelope.attributes),
        };
        let sealed = self.stamp(envelope, stream);
        let (bytes, bytes_max) = (sealed.len(), self.0.config.message_bytes_max);
        if bytes > bytes_max {
            return Err(ReplayError::Oversize { id, bytes, bytes_max });
        }
        Ok(Revived { stream, sealed })
    }
}

/// What was there stays; the nonce is new, and where it was is added. Time, stream and key come with
/// the stamp.
fn revived_attributes(
    letter: &DeadLetter,
    before: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut after = before.clone();
    after.extend([
        (attributes::ID.to_owned(), uuid::Uuid::now_v7().to_string()),
        (attributes::REPLAYS.to_owned(), (letter.replays() + 1).to_string()),
    ]);
    let mut places: Vec<&str> = before
        .get(attributes::REPLAYED_FROM)
        .map(|places| places.split(' ').collect())
        .unwrap_or_default();
    let place = letter.origin_entry.unwrap_or(letter.entry.id).to_string();
    places.push(&place);
    let places = &places[places.len().saturating_sub(PLACES_MAX)..];
    after.insert(attributes::REPLAYED_FROM.to_owned(), places.join(" "));
    after
}
