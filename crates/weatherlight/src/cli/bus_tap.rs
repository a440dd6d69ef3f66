//! `weatherlight bus tap`: what travels on the bus, as it travels.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;
use nissa::bus::{EntryView, Places, kind_named};
use oona::Stream;

use super::bus_desk::Desk;
use super::failure::Failure;
use super::table::plain;
use crate::settings::EsperSettings;

/// How long one look waits for something to happen.
const WAIT: Duration = Duration::from_secs(2);
/// Characters of a body on a line.
const BODY_LEN_MAX: usize = 160;

/// What can be asked of it.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The stream to look at, by purpose or by its name in the log [default: all of them]
    #[arg(value_name = "STREAM")]
    stream: Option<String>,
    /// Begin with the oldest entries that still stand there instead of with what comes
    #[arg(long)]
    from_start: bool,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Only messages of this type, such as kernel_prefetch_request
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
}

/// Shows messages until told to end.
pub(super) async fn run(
    settings: &EsperSettings,
    options: &Options,
    as_json: bool,
) -> Result<u8, Failure> {
    let streams = streams(settings, options.stream.as_deref())?;
    if let Some(name) = &options.kind
        && kind_named(name).is_none()
    {
        let text = format!("there is no message type {name:?}; one is kernel_prefetch_request");
        return Err(Failure::configuration(text));
    }
    let desk = Desk::open(settings).await?;
    if !desk.is_live() && !options.from_start {
        return Err(Failure::unavailable(
            "no service runs on the embedded log, so nothing will happen on it; start one, or look at what it holds with --from-start",
        ));
    }
    let mut places = match options.from_start {
        true => Places::beginnings(&streams),
        false => desk.ends(&streams).await?,
    };
    let wait = if desk.is_live() { WAIT } else { Duration::ZERO };
    let mut left = options.count.unwrap_or(u64::MAX);
    while left > 0 {
        let seen = desk.watch(&mut places, wait).await?;
        if seen.entries.is_empty() && !desk.is_live() {
            break;
        }
        for entry in seen.entries.iter().filter(|entry| is_wanted(options, entry)) {
            let line = if as_json { json(entry) } else { line(entry) };
            // Whoever read this has gone.
            if left == 0 || writeln!(io::stdout().lock(), "{line}").is_err() {
                return Ok(0);
            }
            left -= 1;
        }
    }
    Ok(0)
}

fn streams(settings: &EsperSettings, asked: Option<&str>) -> Result<Vec<Stream>, Failure> {
    let Some(asked) = asked else { return Ok(Stream::ALL.to_vec()) };
    let names = crate::wiring::bus_config(settings).streams;
    let is_meant =
        |stream: &Stream| stream.label() == asked.replace('-', "_") || names.name(*stream) == asked;
    match Stream::ALL.into_iter().find(is_meant) {
        Some(stream) => Ok(vec![stream]),
        None => {
            let known = Stream::ALL.map(Stream::label).join(", ");
            Err(Failure::configuration(format!("there is no stream {asked:?}; they are {known}")))
        }
    }
}

fn is_wanted(options: &Options, entry: &EntryView) -> bool {
    let wanted = |name: &String| entry.kind == Some(name.replace('-', "_").to_ascii_lowercase());
    options.kind.as_ref().is_none_or(wanted)
}

fn json(entry: &EntryView) -> String {
    serde_json::to_string(entry).unwrap_or_else(|error| panic!("an entry serialises: {error}"))
}

/// One line, whatever the message says: what could move the cursor is not printed.
fn line(entry: &EntryView) -> String {
    let told = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mark = match entry.mark.as_str() {
        "current" => "verified",
        "previous" => "verified(previous secret)",
        "unsigned" => "UNSIGNED",
        _ => "BAD-SIGNATURE",
    };
    let mut body = entry.body.to_string();
    if let Some((end, _)) = body.char_indices().nth(BODY_LEN_MAX) {
        body.truncate(end);
        body.push_str("...");
    }
    plain(&format!(
        "{} {} {} {} {} {} {mark} {body}",
        clock(entry.at_ms),
        entry.stream,
        entry.id,
        told(&entry.kind),
        told(&entry.source),
        told(&entry.key),
    ))
}

/// Time of day in UTC.
fn clock(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_on_its_line() {
        let entry = EntryView {
            stream: "normal".to_owned(),
            id: "1700000000123-0".to_owned(),
            at_ms: 1_700_000_000_123,
            mark: "bad_signature".to_owned(),
            kind: Some("field_report".to_owned()),
            source: Some("evil\u{1b}[2J\nnormal 1-1 verified".to_owned()),
            key: None,
            trace_id: None,
            attributes: Default::default(),
            body: serde_json::json!({ "notes": format!("\u{9b}31m{}", "x".repeat(500)) }),
            bytes: 3,
        };
        let line = line(&entry);
        assert!(line.starts_with("22:13:20.123Z normal 1700000000123-0 field_report "), "{line}");
        assert!(line.contains(" BAD-SIGNATURE "), "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() < 350, "{line}");
    }
}
