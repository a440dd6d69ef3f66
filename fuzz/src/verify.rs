//! An honest entry, tampered with: fields exchanged, doubled and cut, bytes flipped before or after
//! the signature was made, signed with one secret or another, for one stream or another.

use std::collections::BTreeMap;

use leyline::sign::{Keyring, Secret};
use leyline::wire::{
    AdaptationCommand, BusEnvelope, EmergencySignal, KernelArtifactError, KernelArtifactReady,
    KernelCatalogUpdate, KernelPrefetchRequest, SystemStatePacket, TelemetryPacket,
};
use leyline::{Message, time};
use oona::judge::Judgement;
use oona::{Config, EntryId, Stream, attributes};
use prost::Message as _;

use super::bytes::Bytes;
use super::envelope::compare;
use super::oracle::{self, CURRENT, Fields, PREVIOUS};

const FOREIGN_SECRET: &str = "a secret that nobody gave us";

/// # Panics
/// When an entry is admitted that nobody signed, or a verdict is not the expected one.
pub fn run(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let id = EntryId { ms: 1_700_000_000_000 + u64::from(bytes.byte()), seq: 0 };
    let stream = Stream::ALL[bytes.choice(Stream::ALL.len())];
    let accept_legacy = bytes.byte() & 1 == 1;
    let signed = Signed::choose(&mut bytes, stream, oracle::config(accept_legacy), id.ms);
    let fields = signed.tampered(&mut bytes);
    let verdict = compare(stream, accept_legacy, id, &fields);
    if let Judgement::Admitted { .. } = verdict {
        let payload = fields.iter().rev().find(|(name, _)| name == b"payload");
        let trusted = signed.by_us && payload.is_some_and(|(_, bytes)| *bytes == signed.payload);
        assert!(trusted, "admitted what nobody signed");
    }
}

/// What an honest or another sender signed.
struct Signed {
    payload: Vec<u8>,
    signature: Vec<u8>,
    by_us: bool,
}

impl Signed {
    fn choose(bytes: &mut Bytes<'_>, stream: Stream, config: &Config, now_ms: u64) -> Self {
        let mut envelope = envelope(bytes, stream, config, now_ms);
        if bytes.choice(8) == 7 {
            envelope.message_type = i32::from(bytes.byte()) - 2;
        }
        let mut payload = envelope.encode_to_vec();
        if bytes.choice(8) == 7 {
            flip(bytes, &mut payload);
        }
        let (secret, by_us) = match bytes.choice(8) {
            7 => (FOREIGN_SECRET, false),
            6 => (PREVIOUS, true),
            _ => (CURRENT, true),
        };
        let signature = Keyring::new(&Secret::new(secret), None).sign(&payload).into_bytes();
        Self { payload, signature, by_us }
    }

    /// The entry's fields after up to eight tamperings.
    fn tampered(&self, bytes: &mut Bytes<'_>) -> Fields {
        let mut fields = vec![
            (b"payload".to_vec(), self.payload.clone()),
            (b"signature".to_vec(), self.signature.clone()),
        ];
        for _ in 0..bytes.choice(9) {
            if fields.is_empty() {
                break;
            }
            let index = bytes.choice(fields.len());
            match bytes.choice(9) {
                0 => flip(bytes, &mut fields[index].1),
                1 => fields[index].1.truncate(usize::from(bytes.short())),
                2 => drop(fields.remove(index)),
                3 => {
                    let copy = fields[index].clone();
                    fields.push(copy);
                }
                4 => fields.swap(0, index),
                5 => {
                    let more = bytes.choice(64);
                    fields[index].1.extend_from_slice(bytes.take(more));
                }
                6 => {
                    fields[index].0 =
                        [&b"payload"[..], b"signature", b"other"][bytes.choice(3)].to_vec()
                }
                7 => {
                    let length = bytes.choice(64);
                    fields.push((b"signature".to_vec(), bytes.take(length).to_vec()));
                }
                _ => fields[index].1.resize(usize::from(bytes.short()) % 4096, b'A'),
            }
        }
        fields
    }
}

/// Exchanges one byte.
fn flip(bytes: &mut Bytes<'_>, of: &mut [u8]) {
    let at = usize::from(bytes.short());
    let mask = bytes.byte();
    if !of.is_empty() {
        let at = at % of.len();
        of[at] ^= mask;
    }
}

fn envelope(bytes: &mut Bytes<'_>, stream: Stream, config: &Config, now_ms: u64) -> BusEnvelope {
    let text = ["", "a", "run-1", "r-1"][bytes.choice(4)];
    let text =
        if bytes.choice(16) == 15 { "n".repeat(510 + bytes.choice(4)) } else { text.to_owned() };
    let issued_ms = issued(bytes, now_ms);
    let stamped = bytes.byte() & 1 == 1;
    let message = message(bytes, text.clone(), stamped.then_some(issued_ms));
    let mut attributes = BTreeMap::new();
    let present = bytes.byte();
    if present & 1 == 0 {
        let other = Stream::ALL[bytes.choice(Stream::ALL.len())];
        let named = if present & 16 == 0 { stream } else { other };
        attributes.insert(attributes::STREAM.to_owned(), config.streams.name(named).to_owned());
    }
    if present & 2 == 0 {
        attributes.insert(attributes::ID.to_owned(), text);
    }
    if present & 4 == 0 {
        let text = match bytes.choice(12) {
            11 => String::from_utf8_lossy(bytes.take(3)).into_owned(),
            _ => issued_ms.to_string(),
        };
        attributes.insert(attributes::ISSUED_AT_MS.to_owned(), text);
    }
    if present & 8 == 8 {
        attributes.insert("filler".to_owned(), "x".repeat(usize::from(bytes.byte()) * 10));
    }
    BusEnvelope {
        message_type: message.message_type() as i32,
        payload: message.encode_payload(),
        attributes,
    }
}

/// Times on both sides of every limit.
fn issued(bytes: &mut Bytes<'_>, now_ms: u64) -> u64 {
    let near = u64::from(bytes.byte() % 3);
    match bytes.choice(6) {
        0 => now_ms,
        1 => now_ms - 60_001 + near,
        2 => now_ms - 300_001 + near,
        3 => now_ms + 4_999 + near,
        4 => near,
        _ => u64::MAX - near,
    }
}

fn message(bytes: &mut Bytes<'_>, name: String, issued_ms: Option<u64>) -> Message {
    let issued_at = issued_ms.map(time::timestamp);
    match bytes.choice(8) {
        0 => SystemStatePacket { training_run_id: name, ..Default::default() }.into(),
        1 => AdaptationCommand { command_id: name, issued_at, ..Default::default() }.into(),
        2 => TelemetryPacket { timestamp: issued_at, ..Default::default() }.into(),
        3 => EmergencySignal { run_id: name, triggered_at: issued_at, ..Default::default() }.into(),
        4 => KernelPrefetchRequest { request_id: name, issued_at, ..Default::default() }.into(),
        5 => KernelArtifactReady { request_id: name, ..Default::default() }.into(),
        6 => KernelArtifactError { request_id: name, ..Default::default() }.into(),
        _ => KernelCatalogUpdate { blueprint_id: name, ..Default::default() }.into(),
    }
}
