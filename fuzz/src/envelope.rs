//! Whoever knows the secret may still send nonsense: the bytes are a payload, correctly signed.

use leyline::Message;
use leyline::wire::BusEnvelope;
use oona::judge::Judgement;
use oona::{EntryId, Stream};
use prost::Message as _;

use super::oracle::{self, Fields};

/// When the entries of the corpus were appended.
pub const APPENDED: EntryId = EntryId { ms: 1_700_000_000_000, seq: 3 };

/// # Panics
/// When what is decoded does not survive its encoding, or a verdict is not the expected one.
pub fn run(bytes: &[u8]) {
    decoded_survives_its_encoding(bytes);
    let signature = oracle::signers()[0].sign(bytes).into_bytes();
    let fields = vec![(b"payload".to_vec(), bytes.to_vec()), (b"signature".to_vec(), signature)];
    for stream in Stream::ALL {
        for accept_legacy in [false, true] {
            compare(stream, accept_legacy, APPENDED, &fields);
        }
    }
}

fn decoded_survives_its_encoding(bytes: &[u8]) {
    let Ok(envelope) = BusEnvelope::decode(bytes) else { return };
    let again = envelope.encode_to_vec();
    assert_eq!(BusEnvelope::decode(again.as_slice()).as_ref(), Ok(&envelope));
    let Ok(message) = Message::decode(envelope.message_type, &envelope.payload) else { return };
    // Compared as bytes: a float that is no number equals nothing.
    let first = message.encode_payload();
    let second = Message::decode(envelope.message_type, &first)
        .unwrap_or_else(|error| panic!("what we encode we can read: {error}"));
    assert_eq!(second.encode_payload(), first);
}

/// Judges an entry and demands the verdict that the oracle expects.
///
/// # Panics
/// When the verdicts differ.
pub fn compare(stream: Stream, accept_legacy: bool, id: EntryId, fields: &Fields) -> Judgement {
    let expected = oracle::expect(stream, accept_legacy, id, fields);
    let found = oracle::judge(stream, accept_legacy).judge(id, fields.clone());
    let same = match (&expected, &found) {
        (Err(None), Judgement::Foreign) => true,
        (Err(Some(reason)), Judgement::Refused(found)) => reason == found,
        (Ok(nonce), Judgement::Admitted { nonce: found, .. }) => nonce == found,
        _ => false,
    };
    assert!(same, "on {stream}: expected {expected:?}, found {found:?}");
    found
}
