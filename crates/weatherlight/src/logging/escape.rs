//! Text that comes from outside, made harmless: it can neither begin a line of its own, nor move a
//! terminal's cursor, nor turn the direction of what is read.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The texts of libraries in C are not always what they are said to be: SQLite quotes a damaged
/// catalogue byte for byte, and its error arrives as a `str` all the same. Such bytes become U+FFFD.
fn sound(text: &str) -> Cow<'_, str> {
    String::from_utf8_lossy(text.as_bytes())
}

/// Whether a character may not stand in a line as it is: control characters (C0, DEL, C1), line and
/// paragraph separators, what turns the direction of writing, and what has no width.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// Appends text of a line that a person reads.
pub(super) fn push_text(line: &mut String, text: &str) {
    let text = &*sound(text);
    for character in text.chars() {
        match character {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            harmful if is_harmful(harmful) => {
                // A String takes everything.
                let _ = write!(line, "\\u{{{:x}}}", u32::from(harmful));
            }
            harmless => line.push(harmless),
        }
    }
}

/// Appends the value of a field: in quotes where its end would not be clear otherwise.
pub(super) fn push_value(line: &mut String, text: &str) {
    let text = &*sound(text);
    let needs_quotes = |character: char| {
        character.is_whitespace() || matches!(character, '"' | '=' | '\\') || is_harmful(character)
    };
    if !text.is_empty() && !text.contains(needs_quotes) {
        return line.push_str(text);
    }
    line.push('"');
    push_text(line, &text.replace('\\', "\\\\").replace('"', "\\\""));
    line.push('"');
}

/// Appends a JSON string. It is valid JSON, and as harmless on a terminal as the text form.
pub(super) fn push_json(line: &mut String, text: &str) {
    let text = &*sound(text);
    line.push('"');
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            harmful if is_harmful(harmful) => {
                let _ = write!(line, "\\u{:04x}", u32::from(harmful));
            }
            harmless => line.push(harmless),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(push: fn(&mut String, &str), text: &str) -> String {
        let mut line = String::new();
        push(&mut line, text);
        line
    }

    #[test]
    fn a_forged_line_and_a_terminal_sequence_stay_text() {
        let hostile = "id\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[2J\u{9b}31m\u{202e}";
        assert_eq!(
            of(push_text, hostile),
            "id\\n2026-01-01T00:00:00.000Z ERROR forged\\u{1b}[2J\\u{9b}31m\\u{202e}"
        );
        assert_eq!(of(push_value, "plain-1.2"), "plain-1.2");
        assert_eq!(of(push_value, ""), "\"\"");
        assert_eq!(of(push_value, "a \"b\" \\n"), "\"a \\\"b\\\" \\\\n\"");
    }

    proptest! {
        #[test]
        fn no_line_holds_what_does_harm(text in any::<String>()) {
            for push in [push_text, push_value, push_json] {
                prop_assert!(!of(push, &text).contains(is_harmful));
            }
        }

        #[test]
        fn json_reads_back(text in any::<String>()) {
            let read: String = serde_json::from_str(&of(push_json, &text)).unwrap();
            prop_assert_eq!(read, text);
        }
    }
}
