//! Reads what Redis answers, in RESP2 and RESP3 alike. Payloads are moved, never copied.

use redis::Value;

use crate::entry::{EntryId, Fields, RawEntry};
use crate::log::GroupInfo;

/// A string, whatever kind of string it came as.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}

pub(super) fn entry_id(value: &Value) -> Option<EntryId> {
    text(value)?.parse().ok()
}

pub(super) fn items(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        Value::Nil => Some(Vec::new()),
        _ => None,
    }
}

/// Pairs, from a map or from a flat array.
pub(super) fn pairs(value: Value) -> Option<Vec<(Value, Value)>> {
    match value {
        Value::Map(pairs) => Some(pairs),
        other => {
            let mut flat = items(other)?.into_iter();
            let mut pairs = Vec::with_capacity(flat.len() / 2);
            while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
                pairs.push((name, value));
            }
            Some(pairs)
        }
    }
}

/// One `[id, [field, value, ...]]`; `None` inside for an entry that was deleted.
pub(super) fn entry(value: Value) -> Option<(EntryId, Option<Fields>)> {
    let mut parts = items(value)?.into_iter();
    let id = entry_id(&parts.next()?)?;
    let fields = match parts.next()? {
        Value::Nil => None,
        fields => Some(
            pairs(fields)?
                .into_iter()
                .map(|(name, value)| Some((bytes(name)?, bytes(value)?)))
                .collect::<Option<Fields>>()?,
        ),
    };
    Some((id, fields))
}

/// The entries of one stream in an answer to `XREADGROUP`, delivered for the first time.
pub(super) fn read(value: Value) -> Option<Vec<RawEntry>> {
    let streams = match value {
        Value::Nil => return Some(Vec::new()),
        Value::Map(streams) => streams.into_iter().map(|(_, entries)| entries).collect(),
        other => items(other)?
            .into_iter()
            .map(|stream| items(stream)?.into_iter().nth(1))
            .collect::<Option<Vec<_>>>()?,
    };
    let mut read = Vec::new();
    for entries in streams {
        for value in items(entries)? {
            let (id, fields) = entry(value)?;
            read.push(RawEntry::new(id, fields.unwrap_or_default(), 1));
        }
    }
    Some(read)
}

/// Entries of one stream, with its name.
pub(super) type OfStream = (String, Vec<(EntryId, Fields)>);

/// The entries in an answer to `XREAD`, with the names of their streams.
pub(super) fn by_stream(value: Value) -> Option<Vec<OfStream>> {
    let one = |(name, entries): (Value, Value)| {
        let whole = |value| entry(value).map(|(id, fields)| (id, fields.unwrap_or_default()));
        let entries = items(entries)?.into_iter().map(whole).collect::<Option<_>>()?;
        Some((text(&name)?.to_owned(), entries))
    };
    let streams = match value {
        Value::Nil => Vec::new(),
        Value::Map(streams) => streams,
        other => items(other)?
            .into_iter()
            .map(|stream| {
                let mut parts = items(stream)?.into_iter();
                Some((parts.next()?, parts.next()?))
            })
            .collect::<Option<Vec<_>>>()?,
    };
    streams.into_iter().map(one).collect()
}

/// The answer to `XINFO GROUPS`.
pub(super) struct Groups {
    pub(super) known: Vec<GroupInfo>,
    /// Groups whose lag the server does not know.
    pub(super) unknown: Vec<GroupInfo>,
}

pub(super) fn groups(value: Value) -> Option<Groups> {
    let mut groups = Groups { known: Vec::new(), unknown: Vec::new() };
    for value in items(value)? {
        match group(value)? {
            (info, Some(lag)) => groups.known.push(GroupInfo { lag, ..info }),
            (info, None) => groups.unknown.push(info),
        }
    }
    Some(groups)
}

fn group(value: Value) -> Option<(GroupInfo, Option<u64>)> {
    let mut info =
        GroupInfo { name: String::new(), last_delivered: EntryId::ZERO, pending: 0, lag: 0 };
    let mut lag = None;
    for (name, value) in pairs(value)? {
        match text(&name)? {
            "name" => info.name = text(&value)?.to_owned(),
            "pending" => info.pending = number(&value)?,
            "last-delivered-id" => info.last_delivered = entry_id(&value)?,
            "lag" => lag = number(&value),
            _ => {}
        }
    }
    Some((info, lag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn both_protocols_give_the_same_entries() {
        let fields = Value::Array(vec![bulk("payload"), bulk("p"), bulk("signature"), bulk("s")]);
        let entries = Value::Array(vec![Value::Array(vec![bulk("5-1"), fields])]);
        let second = Value::Array(vec![Value::Array(vec![bulk("stream"), entries.clone()])]);
        let third = Value::Map(vec![(bulk("stream"), entries)]);
        let expected = vec![RawEntry {
            id: EntryId { ms: 5, seq: 1 },
            payload: Some(b"p".to_vec()),
            signature: Some(b"s".to_vec()),
            deliveries: 1,
        }];
        assert_eq!(read(second), Some(expected.clone()));
        assert_eq!(read(third), Some(expected));
        assert_eq!(read(Value::Nil), Some(vec![]));
        assert_eq!(read(Value::Int(3)), None);
    }
}
