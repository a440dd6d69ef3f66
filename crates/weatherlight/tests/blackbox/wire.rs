//! The wire contract written a second time, by hand, so that a mistake in the service's own
//! encoding cannot hide: protobuf fields, the envelope, the signature.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

pub const SECRET: &str = "a secret for the black-box test";

/// One decoded protobuf field.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    Number(u64),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

pub fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out
}

/// Every field of a message: number and value.
pub fn fields(mut message: &[u8]) -> Vec<(u64, Field)> {
    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        panic!("a varint has at most ten bytes");
    }
    let mut out = Vec::new();
    while !message.is_empty() {
        let tag = take_varint(&mut message);
        let value = match tag & 7 {
            0 => Field::Number(take_varint(&mut message)),
            2 => {
                let length = take_varint(&mut message) as usize;
                let (body, rest) = message.split_at(length);
                message = rest;
                Field::Bytes(body.to_vec())
            }
            5 => {
                let (body, rest) = message.split_at(4);
                message = rest;
                Field::Fixed32(body.try_into().unwrap())
            }
            other => panic!("unexpected wire type {other}"),
        };
        out.push((tag >> 3, value));
    }
    out
}

/// The text of a field, empty when absent.
pub fn text(fields: &[(u64, Field)], number: u64) -> String {
    fields
        .iter()
        .find_map(|(found, value)| match value {
            Field::Bytes(bytes) if *found == number => {
                Some(String::from_utf8(bytes.clone()).unwrap())
            }
            _ => None,
        })
        .unwrap_or_default()
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn sign(payload: &[u8]) -> String {
    sign_with(SECRET, payload)
}

pub fn sign_with(secret: &str, payload: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(payload);
    STANDARD.encode(mac.finalize().into_bytes())
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a `BusEnvelope` around a payload, without attributes.
pub fn envelope(message_type: u64, payload: &[u8]) -> Vec<u8> {
    [number(1, message_type), bytes(2, payload)].concat()
}

/// A prefetch request as an older program sends it: no attributes, its id is its nonce.
pub fn prefetch_request(request_id: &str, blueprint: &str, issued_at_ms: u64) -> Vec<u8> {
    let issued =
        [number(1, issued_at_ms / 1000), number(2, issued_at_ms % 1000 * 1_000_000)].concat();
    let request = [
        bytes(1, request_id.as_bytes()),
        bytes(2, blueprint.as_bytes()),
        bytes(3, b"black-box-run"),
        bytes(4, &issued),
    ]
    .concat();
    envelope(6, &request)
}

/// A kernel was compiled and stored.
pub fn catalog_update(blueprint: &str) -> Vec<u8> {
    let update = [bytes(1, blueprint.as_bytes()), bytes(3, b"0123")].concat();
    envelope(9, &update)
}

/// The answer to a prefetch request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Ready { request: String, blueprint: String, path: String, checksum: String, guard: String },
    Failed { request: String, blueprint: String, reason: String },
    CatalogUpdate { blueprint: String },
}

/// Verifies and decodes one stream entry of the two answer streams.
pub fn answer(payload: &[u8], signature: &[u8]) -> Answer {
    assert_eq!(sign(payload).as_bytes(), signature, "an answer is signed over the bytes as sent");
    let outer = fields(payload);
    let kind = match &outer[0] {
        (1, Field::Number(kind)) => *kind,
        other => panic!("an envelope begins with its message type, not {other:?}"),
    };
    let body = outer
        .iter()
        .find_map(|(number, value)| match value {
            Field::Bytes(body) if *number == 2 => Some(fields(body)),
            _ => None,
        })
        .expect("an envelope has a payload");
    match kind {
        7 => Answer::Ready {
            request: text(&body, 1),
            blueprint: text(&body, 2),
            path: text(&body, 3),
            checksum: text(&body, 4),
            guard: text(&body, 5),
        },
        8 => Answer::Failed {
            request: text(&body, 1),
            blueprint: text(&body, 2),
            reason: text(&body, 3),
        },
        9 => Answer::CatalogUpdate { blueprint: text(&body, 1) },
        other => panic!("message type {other} does not belong on an answer stream"),
    }
}
