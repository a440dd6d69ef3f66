//! Deterministic serialisation as every protobuf implementation has it: fields by number, map
//! entries by key, and both halves of a map entry written even when they are defaults.
//!
//! `prost` orders fields and (with ordered maps) entries, but leaves a default key or value out of
//! a map entry, where the C++, Python and Go encoders write it. A signature over a re-encoded
//! command would therefore not match theirs; this module puts the left-out halves back.
//!
//! "By key" has two readings in the field, which differ where one key is the beginning of another
//! (`alpha_vec`, `alpha_vec_len`): see [`Order`].

use std::cmp::Ordering;

use prost::encoding::{WireType, decode_varint, encode_varint};

/// How map entries are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// By the keys' bytes; a key stands before its continuations. C++, Java, Go and Python's own
    /// encoder; what we sign.
    Lexical,
    /// By the keys' bytes, but a key stands after its continuations. `upb`, which is behind
    /// Python's default encoder, PHP and Ruby (seen in 7.36).
    PrefixLast,
}

impl Order {
    fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        let common = a.len().min(b.len());
        match self {
            Self::Lexical => a.cmp(b),
            Self::PrefixLast => a[..common].cmp(&b[..common]).then(b.len().cmp(&a.len())),
        }
    }
}

/// Which fields of a message are maps or messages that contain maps.
pub(crate) struct Schema {
    /// Field number and what its entries hold.
    pub(crate) maps: &'static [(u32, Value)],
    /// Field number and the message's own schema.
    pub(crate) messages: &'static [(u32, &'static Schema)],
}

/// The value half of a map entry whose key is a string.
#[derive(Clone, Copy)]
pub(crate) enum Value {
    Float,
    Text,
    Message(&'static Schema),
}

pub(crate) static COMMAND: Schema = Schema {
    maps: &[(20, Value::Text)],
    messages: &[(10, &SEED_OPERATION), (11, &OPTIMIZER_ADJUSTMENT), (13, &STRUCT)],
};
static SEED_OPERATION: Schema = Schema { maps: &[(3, Value::Float)], messages: &[] };
static OPTIMIZER_ADJUSTMENT: Schema = Schema { maps: &[(2, Value::Float)], messages: &[] };
/// `google.protobuf.Struct`, `Value` and `ListValue`, which nest.
static STRUCT: Schema = Schema { maps: &[(1, Value::Message(&VALUE))], messages: &[] };
static VALUE: Schema = Schema { maps: &[], messages: &[(5, &STRUCT), (6, &LIST)] };
static LIST: Schema = Schema { maps: &[], messages: &[(1, &VALUE)] };

/// Rewrites what `prost` encoded into the canonical form.
///
/// # Panics
/// When the bytes are not what `prost` encodes; they never come from outside.
pub(crate) fn canonical(encoded: &[u8], schema: &Schema, order: Order) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len() + 16);
    let mut fields = Fields(encoded).peekable();
    while let Some(field) = fields.next() {
        let number = field.number;
        let map = schema.maps.iter().find(|(mapped, _)| *mapped == number);
        let message = schema.messages.iter().find(|(nested, _)| *nested == number);
        match (map, message, field.body) {
            (Some((_, value)), _, Some(body)) => {
                let mut entries = vec![entry(body, *value, order)];
                while let Some(next) = fields.next_if(|next| next.number == number) {
                    entries.push(entry(next.body.unwrap_or_default(), *value, order));
                }
                entries.sort_by(|(a, _), (b, _)| order.compare(a, b));
                for (_, entry) in entries {
                    put(&mut out, number, &entry);
                }
            }
            (None, Some((_, inner)), Some(body)) => {
                put(&mut out, number, &canonical(body, inner, order));
            }
            _ => out.extend_from_slice(field.raw),
        }
    }
    out
}

/// The key and the whole entry with both halves.
fn entry(body: &[u8], value: Value, order: Order) -> (&[u8], Vec<u8>) {
    let mut key: &[u8] = &[];
    let mut raw_value: Option<Field<'_>> = None;
    for field in Fields(body) {
        match field.number {
            1 => key = field.body.unwrap_or_default(),
            _ => raw_value = Some(field),
        }
    }
    let mut out = Vec::with_capacity(body.len() + 8);
    put(&mut out, 1, key);
    match (value, raw_value) {
        (Value::Message(schema), field) => {
            let body = field.and_then(|field| field.body).unwrap_or_default();
            put(&mut out, 2, &canonical(body, schema, order));
        }
        (Value::Float | Value::Text, Some(field)) => out.extend_from_slice(field.raw),
        (Value::Float, None) => out.extend_from_slice(&[0x15, 0, 0, 0, 0]),
        (Value::Text, None) => out.extend_from_slice(&[0x12, 0]),
    }
    (key, out)
}

fn put(out: &mut Vec<u8>, number: u32, body: &[u8]) {
    encode_varint(u64::from(number << 3 | WireType::LengthDelimited as u32), out);
    encode_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}

struct Field<'a> {
    number: u32,
    /// Tag, length and content as they stood.
    raw: &'a [u8],
    /// The content of a length-delimited field.
    body: Option<&'a [u8]>,
}

/// The fields of one encoded message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self.0;
        let mut rest = whole;
        let tag = varint(&mut rest);
        let body = match tag & 7 {
            0 => {
                varint(&mut rest);
                None
            }
            1 => {
                rest = &rest[8..];
                None
            }
            2 => {
                let length = usize::try_from(varint(&mut rest)).unwrap_or(usize::MAX);
                let (body, after) = rest.split_at(length);
                rest = after;
                Some(body)
            }
            5 => {
                rest = &rest[4..];
                None
            }
            other => panic!("prost encodes no wire type {other}"),
        };
        self.0 = rest;
        let number = u32::try_from(tag >> 3).unwrap_or(u32::MAX);
        Some(Field { number, raw: &whole[..whole.len() - rest.len()], body })
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    decode_varint(bytes).unwrap_or_else(|_| panic!("prost encodes whole varints"))
}
