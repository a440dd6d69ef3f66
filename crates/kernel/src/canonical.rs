//! Canonical JSON: sorted keys, no white space, one spelling of every number.

use serde::Serialize;
use serde_json::Value;

/// The canonical JSON of `value`: the same value gives the same bytes, whatever the order of its fields.
///
/// # Errors
/// What `serde_json` says, for a map whose keys are not strings.
pub fn to_canonical_json<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    write_value(&serde_json::to_value(value)?, ",", ":", &mut text)?;
    Ok(text)
}

/// Writes `value` with sorted keys and the given separators.
pub(crate) fn write_value(
    value: &Value,
    comma: &str,
    colon: &str,
    text: &mut String,
) -> Result<(), serde_json::Error> {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            text.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { comma });
                text.push_str(&serde_json::to_string(key)?);
                text.push_str(colon);
                write_value(&map[key], comma, colon, text)?;
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { comma });
                write_value(item, comma, colon, text)?;
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&serde_json::to_string(value)?);
        }
    }
    Ok(())
}
