//! Tables and JSON on standard output.

use std::io::{self, Write as _};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// Columns of a table that no terminal limits.
const WIDTH_WITHOUT_TERMINAL: u16 = 140;

/// An empty table with these columns, in the one style used everywhere.
pub(crate) fn with_columns(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(WIDTH_WITHOUT_TERMINAL);
    }
    table.set_header(columns.iter().copied());
    table
}

/// Prints to standard output. A reader that has gone (`| head`) is no failure.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end());
}

/// Prints a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value);
    print(&text.unwrap_or_else(|error| panic!("what is printed serialises: {error}")));
}

/// The text without anything that could move the cursor or reverse the direction of a terminal:
/// what senders wrote is shown to operators.
pub(crate) fn plain(text: &str) -> String {
    let is_plain = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_plain(c) { c } else { '\u{fffd}' }).collect()
}

/// A time span for people; a dash for none.
pub(crate) fn ago(ms: Option<u64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms @ 0..10_000) => format!("{}.{} s", ms / 1000, ms / 100 % 10),
        Some(ms @ 10_000..120_000) => format!("{} s", ms / 1000),
        Some(ms @ 120_000..7_200_000) => format!("{} min", ms / 60_000),
        Some(ms @ 7_200_000..172_800_000) => format!("{} h", ms / 3_600_000),
        Some(ms) => format!("{} d", ms / 86_400_000),
    }
}
