//! Sealing: the attributes go in, the signature goes on. The envelope's bytes are written in one
//! pass, without the strings and the map that a `BusEnvelope` needs: every publish comes by here.

use leyline::sign::Keyring;
use leyline::wire::BusMessageType;
use prost::encode_length_delimiter;
use rand::RngCore as _;

use crate::attributes;
use crate::entry::{PAYLOAD, SIGNATURE, digits};

/// Bytes that the attributes take, generously; more only costs a copy.
const ATTRIBUTES_LEN: usize = 320;

/// Tags of the wire format: field number and kind of each field that is written here.
mod tag {
    pub(super) const ENVELOPE_TYPE: u8 = 1 << 3;
    pub(super) const ENVELOPE_PAYLOAD: u8 = 2 << 3 | 2;
    pub(super) const ENVELOPE_ATTRIBUTE: u8 = 3 << 3 | 2;
    pub(super) const NAME: u8 = 1 << 3 | 2;
    pub(super) const VALUE: u8 = 2 << 3 | 2;
}

/// A signed envelope, ready to append.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: String,
}

impl Sealed {
    /// As the log takes it.
    pub(crate) fn fields(&self) -> [(&[u8], &[u8]); 2] {
        [(PAYLOAD.as_bytes(), &self.payload), (SIGNATURE.as_bytes(), self.signature.as_bytes())]
    }

    /// Bytes of both fields.
    pub(crate) fn len(&self) -> usize {
        self.payload.len() + self.signature.len()
    }
}

/// What is to be sealed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unsealed<'a> {
    pub(crate) kind: BusMessageType,
    pub(crate) payload: &'a [u8],
    pub(crate) source: &'a str,
    /// Name of the stream in the log.
    pub(crate) stream: &'a str,
    pub(crate) traceparent: Option<&'a str>,
    /// Attributes beside Oona's own, in the order of their names.
    pub(crate) attributes: &'a [(&'a str, &'a str)],
    /// When it is sent, Unix milliseconds.
    pub(crate) now_ms: u64,
}

/// Puts the attributes in and signs: exactly these bytes are sent and verified.
pub(crate) fn seal(keyring: &Keyring, unsealed: Unsealed<'_>) -> Sealed {
    // From the thread's own generator: asking the system for ten bytes costs more than the HMAC.
    let mut random = [0; 10];
    rand::rng().fill_bytes(&mut random);
    let payload = envelope(keyring.current_id().as_str(), unsealed, random);
    let signature = keyring.sign(&payload);
    Sealed { payload, signature }
}

/// The bytes of a `BusEnvelope`, as its generated code writes them: attributes in the order of
/// their names.
fn envelope(key_id: &str, unsealed: Unsealed<'_>, random: [u8; 10]) -> Vec<u8> {
    let now_ms = unsealed.now_ms;
    let id = uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid();
    let (mut id_text, mut ms_text) = ([0; 36], [0; 20]);
    let mut bytes = Vec::with_capacity(unsealed.payload.len() + ATTRIBUTES_LEN);
    let kind = usize::try_from(unsealed.kind as i32).unwrap_or(0);
    if kind != 0 {
        bytes.push(tag::ENVELOPE_TYPE);
        length(kind, &mut bytes);
    }
    if !unsealed.payload.is_empty() {
        bytes.push(tag::ENVELOPE_PAYLOAD);
        length(unsealed.payload.len(), &mut bytes);
        bytes.extend_from_slice(unsealed.payload);
    }
    let (before, after) = {
        let place = unsealed.attributes.partition_point(|(name, _)| *name < attributes::ID);
        unsealed.attributes.split_at(place)
    };
    before.iter().for_each(|(name, value)| attribute(name, value, &mut bytes));
    attribute(attributes::ID, id.hyphenated().encode_lower(&mut id_text), &mut bytes);
    attribute(attributes::ISSUED_AT_MS, digits(now_ms, &mut ms_text), &mut bytes);
    attribute(attributes::KEY_ID, key_id, &mut bytes);
    attribute(attributes::SOURCE, unsealed.source, &mut bytes);
    attribute(attributes::STREAM, unsealed.stream, &mut bytes);
    let place = after.partition_point(|(name, _)| *name < attributes::TRACEPARENT);
    let (between, after) = after.split_at(place);
    between.iter().for_each(|(name, value)| attribute(name, value, &mut bytes));
    if let Some(traceparent) = unsealed.traceparent {
        attribute(attributes::TRACEPARENT, traceparent, &mut bytes);
    }
    after.iter().for_each(|(name, value)| attribute(name, value, &mut bytes));
    bytes
}

fn attribute(name: &str, value: &str, bytes: &mut Vec<u8>) {
    let field = |text: &str| 1 + prost::length_delimiter_len(text.len()) + text.len();
    let value_len = if value.is_empty() { 0 } else { field(value) };
    bytes.push(tag::ENVELOPE_ATTRIBUTE);
    length(field(name) + value_len, bytes);
    bytes.push(tag::NAME);
    length(name.len(), bytes);
    bytes.extend_from_slice(name.as_bytes());
    if !value.is_empty() {
        bytes.push(tag::VALUE);
        length(value.len(), bytes);
        bytes.extend_from_slice(value.as_bytes());
    }
}

/// A variable-length integer.
fn length(length: usize, bytes: &mut Vec<u8>) {
    encode_length_delimiter(length, bytes)
        .unwrap_or_else(|_| unreachable!("a vector grows as needed"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use leyline::wire::BusEnvelope;
    use proptest::prelude::*;
    use prost::Message as _;

    proptest! {
        #[test]
        fn the_bytes_are_those_of_the_generated_code(
            payload in proptest::collection::vec(any::<u8>(), 0..700),
            source in ".{0,200}",
            stream in ".{0,20}",
            traceparent in proptest::option::of("[0-9a-f-]{0,60}"),
            now_ms: u64,
            random: [u8; 10],
            number in 0..22,
            more in proptest::collection::btree_map("[a-n][a-z-]{0,9}|p[a-z-]{0,9}|u[a-z]{0,9}", ".{0,20}", 0..4),
        ) {
            let more: Vec<(&str, &str)> =
                more.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let now_ms = now_ms >> 16;
            let Ok(kind) = BusMessageType::try_from(number) else { return Ok(()) };
            let traceparent = traceparent.as_deref();
            let unsealed = Unsealed {
                kind, payload: &payload, source: &source, stream: &stream, traceparent, now_ms,
                attributes: &more,
            };
            let written = envelope("0123abcd", unsealed, random);
            let id = uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid();
            let mut attributes = std::collections::BTreeMap::from([
                (attributes::ID.to_owned(), id.to_string()),
                (attributes::ISSUED_AT_MS.to_owned(), now_ms.to_string()),
                (attributes::SOURCE.to_owned(), source.clone()),
                (attributes::STREAM.to_owned(), stream.clone()),
                (attributes::KEY_ID.to_owned(), "0123abcd".to_owned()),
            ]);
            if let Some(traceparent) = traceparent {
                attributes.insert(attributes::TRACEPARENT.to_owned(), traceparent.to_owned());
            }
            attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let envelope = BusEnvelope { message_type: kind as i32, payload, attributes };
            prop_assert_eq!(written, envelope.encode_to_vec());
        }
    }

    #[test]
    fn a_nonce_is_a_uuid_of_version_7_and_never_the_same() {
        let keyring = Keyring::new(&leyline::sign::Secret::new("a secret that tests know"), None);
        let unsealed = Unsealed {
            kind: BusMessageType::SystemState,
            payload: b"p",
            source: "test",
            stream: "s",
            traceparent: None,
            attributes: &[],
            now_ms: 1_700_000_000_000,
        };
        let id = || {
            let sealed = seal(&keyring, unsealed);
            let envelope = BusEnvelope::decode(sealed.payload.as_slice()).unwrap();
            envelope.attributes[attributes::ID].parse::<uuid::Uuid>().unwrap()
        };
        let (first, second) = (id(), id());
        assert_eq!(first.get_version_num(), 7);
        assert_ne!(first, second);
    }
}
