//! What is said of an artifact beyond its columns: JSON by name, beside the record.

use std::collections::BTreeMap;

use serde_json::Value;

/// JSON by name. The names in use are `safety`, `execution`, `difference` and `signature`.
pub type Extras = BTreeMap<String, Value>;

/// Longest name of an extra, in bytes.
const NAME_LEN_MAX: usize = 64;
/// Most that the extras of one record may take as JSON, in bytes.
const BYTES_MAX: usize = 256 << 10;

/// Extras that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtrasError {
    /// A name of another form.
    #[error(
        "{name:?} is no name of an extra; use 1 to {NAME_LEN_MAX} lower-case letters, digits, '_', '-' or '.'"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// More than a record takes.
    #[error("the extras of one artifact take at most {max} bytes of JSON, these take {found}")]
    Size {
        /// The bound.
        max: usize,
        /// Bytes of these.
        found: usize,
    },
}

/// The extras as canonical JSON: names in order at every depth, no blanks.
///
/// # Errors
/// [`ExtrasError`] when they cannot be kept.
pub(crate) fn canonical(extras: &Extras) -> Result<String, ExtrasError> {
    let is_name_byte = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.')
    };
    for name in extras.keys() {
        if name.is_empty() || NAME_LEN_MAX < name.len() || !name.bytes().all(is_name_byte) {
            return Err(ExtrasError::Name { name: name.clone() });
        }
    }
    let sorted: BTreeMap<&String, Value> =
        extras.iter().map(|(name, value)| (name, in_order(value))).collect();
    let text = serde_json::to_string(&sorted)
        .unwrap_or_else(|_| unreachable!("a map of names to JSON is always JSON"));
    if BYTES_MAX < text.len() {
        return Err(ExtrasError::Size { max: BYTES_MAX, found: text.len() });
    }
    Ok(text)
}

/// The same with the names of every object in order, whatever order the parser kept.
pub(crate) fn in_order(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let sorted: BTreeMap<&String, &Value> = object.iter().collect();
            sorted.into_iter().map(|(name, value)| (name.clone(), in_order(value))).collect()
        }
        Value::Array(items) => items.iter().map(in_order).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_extras_are_the_same_text() {
        let extras = Extras::from([
            (
                "safety".to_owned(),
                json!({ "risk": 0.5, "hazard": { "z": 1, "a": [ { "y": 1, "b": 2 } ] } }),
            ),
            ("execution".to_owned(), json!("plan")),
        ]);
        assert_eq!(
            canonical(&extras).unwrap(),
            r#"{"execution":"plan","safety":{"hazard":{"a":[{"b":2,"y":1}],"z":1},"risk":0.5}}"#
        );
    }

    #[test]
    fn what_is_refused_and_why() {
        for name in ["", "Safety", "a b", &"x".repeat(65)] {
            let refused = canonical(&Extras::from([(name.to_owned(), Value::Null)]));
            assert_eq!(refused, Err(ExtrasError::Name { name: name.to_owned() }));
        }
        let large = Value::String("x".repeat(BYTES_MAX));
        let refused = canonical(&Extras::from([("large".to_owned(), large)]));
        assert!(matches!(refused, Err(ExtrasError::Size { .. })), "{refused:?}");
    }
}
