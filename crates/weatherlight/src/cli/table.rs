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
