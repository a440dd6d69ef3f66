//! `weatherlight dlq`: what could not be handled, and bringing it back.

use clap::{Args, Subcommand};
use leyline::time::now_unix_ms;
use nissa::bus::{DeadLetterView, LETTERS_MAX, LetterQuery};
use oona::EntryId;
use serde_json::json;

use super::bus_desk::Desk;
use super::failure::Failure;
use super::table::{self, ago, plain};
use super::{Global, block_on};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List dead letters, oldest first
    #[command(
        after_help = "Examples:\n  weatherlight dlq list\n  weatherlight dlq list --stream kernel_requests --reason timed --since 2h"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
        /// Show at most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Go on behind this one
        #[arg(long, value_name = "ID")]
        after: Option<EntryId>,
    },
    /// Show one dead letter whole: message, attributes, history
    #[command(after_help = "Example: weatherlight dlq show 1700000000000-0 --raw")]
    Show {
        /// Its id, as `dlq list` shows it
        id: EntryId,
        /// Show its fields as they stand in the log, in hex, signature included
        #[arg(long)]
        raw: bool,
    },
    /// Send dead letters to their streams again
    ///
    /// Each is sealed anew (nonce, time and signature of its own, `oona-replayed-from` beside it) and
    /// appended in one step with its removal from the dead letters. One that no secret in force signed
    /// is refused.
    #[command(
        after_help = "Examples:\n  weatherlight dlq replay 1700000000000-0\n  weatherlight dlq replay --all --stream normal --dry-run"
    )]
    Replay {
        #[command(flatten)]
        choice: Choice,
        /// Only say what would be replayed
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove dead letters for good
    #[command(after_help = "Example: weatherlight dlq purge --all --reason \"no such run\" --yes")]
    Purge {
        #[command(flatten)]
        choice: Choice,
        /// Really remove them
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Only those that came from this stream
    #[arg(long, value_name = "STREAM")]
    stream: Option<String>,
    /// Only those whose reason holds these words
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only those of this type, such as field_report
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only those that died within this time: 90s, 30m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = age)]
    since: Option<u64>,
}

/// Single ones, or all that a filter lets through.
#[derive(Debug, Clone, Args)]
pub struct Choice {
    /// Ids, as `dlq list` shows them
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<EntryId>,
    /// All that the filters let through
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// With --all: at most so many, oldest first
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

/// Milliseconds from `90s`, `30m`, `2h`, `7d`.
fn age(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time; write 90s, 30m, 2h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let ms: u64 = match unit {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(ms).ok_or_else(wrong)
}

impl Filter {
    fn query(&self) -> Result<LetterQuery, Failure> {
        let word = |text: &Option<String>| text.as_ref().map(|text| text.replace('-', "_"));
        let query = LetterQuery {
            stream: word(&self.stream),
            reason: self.reason.clone(),
            kind: word(&self.kind),
            since_ms: self.since.map(|age| now_unix_ms().saturating_sub(age)),
            ..LetterQuery::default()
        };
        query.read().map_err(|error| Failure::configuration(error.to_string()))?;
        Ok(query)
    }

    fn is_empty(&self) -> bool {
        self.stream.is_none()
            && self.reason.is_none()
            && self.kind.is_none()
            && self.since.is_none()
    }
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    block_on(async {
        let desk = Desk::open(&settings).await?;
        match command {
            Command::List { filter, limit, after } => {
                list(&desk, filter, *limit, *after, global.json).await
            }
            Command::Show { id, raw } => show(&desk, *id, *raw, global.json).await,
            Command::Replay { choice, dry_run: true } => preview(&desk, choice, global.json).await,
            Command::Replay { choice, dry_run: false } => replay(&desk, choice, global.json).await,
            Command::Purge { choice, yes } => purge(&desk, choice, *yes, global.json).await,
        }
    })?
}

async fn list(
    desk: &Desk<'_>,
    filter: &Filter,
    limit: usize,
    after: Option<EntryId>,
    as_json: bool,
) -> Result<u8, Failure> {
    let query = LetterQuery { after: after.map(|id| id.to_string()), ..filter.query()? };
    let (letters, next) = find(desk, query, limit).await?;
    if as_json {
        table::print_json(&json!({ "letters": letters, "next": next }));
        return Ok(0);
    }
    let columns =
        ["id", "age", "from", "attempts", "type", "key", "signature", "replays", "reason"];
    let mut rows = table::with_columns(&columns);
    for letter in &letters {
        let told = |text: &Option<String>| plain(text.as_deref().unwrap_or("-"));
        rows.add_row([
            letter.entry.id.clone(),
            ago(Some(now_unix_ms().saturating_sub(letter.entry.at_ms))),
            plain(&letter.origin_stream),
            letter.attempts.to_string(),
            told(&letter.entry.kind),
            told(&letter.entry.key),
            letter.entry.mark.clone(),
            letter.replays.to_string(),
            plain(&letter.reason),
        ]);
    }
    table::print(&rows.to_string());
    match next {
        Some(next) => table::print(&format!("{} shown; more with --after {next}", letters.len())),
        None => table::print(&format!("{} dead letters", letters.len())),
    }
    Ok(0)
}

/// Up to `limit` dead letters, page by page, and where to go on.
async fn find(
    desk: &Desk<'_>,
    mut query: LetterQuery,
    limit: usize,
) -> Result<(Vec<DeadLetterView>, Option<String>), Failure> {
    let mut letters = Vec::new();
    while letters.len() < limit {
        query.count = Some(LETTERS_MAX.min(limit - letters.len()));
        let page = desk.letters(&query).await?;
        letters.extend(page.letters);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    Ok((letters, query.after))
}

async fn show(desk: &Desk<'_>, id: EntryId, raw: bool, as_json: bool) -> Result<u8, Failure> {
    let letter = desk.letter(id, raw).await?;
    if as_json {
        table::print_json(&letter);
        return Ok(0);
    }
    let entry = &letter.entry;
    let mut lines = vec![
        format!("dead letter  {}", entry.id),
        format!("died         {} ago", ago(Some(now_unix_ms().saturating_sub(entry.at_ms)))),
        format!("reason       {}", letter.reason),
        format!("attempts     {} by group {}", letter.attempts, letter.group),
        format!(
            "came from    {} {}",
            letter.origin_stream,
            letter.origin_entry.as_deref().unwrap_or("(unknown place)")
        ),
        format!("signature    {}", entry.mark),
        format!("type         {}", entry.kind.as_deref().unwrap_or("unreadable")),
    ];
    if letter.replays > 0 {
        let places = letter.replayed_from.join(", ");
        lines
            .push(format!("replayed     {} times before, after dying at {places}", letter.replays));
    }
    if let Some(reason) = &letter.cannot_replay {
        lines.push(format!("cannot be replayed: {reason}"));
    }
    let named = |(name, value): (&String, &String)| format!("  {name} = {value}");
    lines.push("attributes".to_owned());
    lines.extend(entry.attributes.iter().map(named));
    lines.push("message".to_owned());
    let body = serde_json::to_string_pretty(&entry.body)
        .unwrap_or_else(|error| panic!("a JSON value is text: {error}"));
    lines.extend(body.lines().map(|line| format!("  {line}")));
    if raw {
        lines.push("fields".to_owned());
        lines.extend(letter.raw.iter().map(|field| format!("  {} = {}", field.name, field.hex)));
    }
    table::print(&lines.iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n"));
    Ok(0)
}

/// The ids that are meant.
async fn chosen(desk: &Desk<'_>, choice: &Choice) -> Result<Vec<EntryId>, Failure> {
    if !choice.all {
        if !choice.filter.is_empty() {
            return Err(Failure::configuration("filters choose among all: add --all, without ids"));
        }
        return Ok(choice.ids.clone());
    }
    let (letters, _) = find(desk, choice.filter.query()?, choice.limit).await?;
    let id = |letter: &DeadLetterView| {
        letter.entry.id.parse().map_err(|error: oona::BadEntryId| Failure::software(&error))
    };
    letters.iter().map(id).collect()
}

async fn preview(desk: &Desk<'_>, choice: &Choice, as_json: bool) -> Result<u8, Failure> {
    let mut outcomes = Vec::new();
    for id in chosen(desk, choice).await? {
        let letter = desk.letter(id, false).await;
        outcomes.push(match letter {
            Ok(letter) => match letter.cannot_replay {
                None => Outcome::Would { id, stream: letter.origin_stream },
                Some(reason) => Outcome::Refused { id, reason },
            },
            Err(failure) => Outcome::Refused { id, reason: failure.to_string() },
        });
    }
    report(&outcomes, "would be replayed", as_json)
}

async fn replay(desk: &Desk<'_>, choice: &Choice, as_json: bool) -> Result<u8, Failure> {
    let mut outcomes = Vec::new();
    for id in chosen(desk, choice).await? {
        match desk.replay(id).await {
            Ok(replayed) => {
                outcomes.push(Outcome::Done { id, stream: replayed.stream, place: replayed.id });
            }
            // The others would fail alike; what was done is reported with the failure.
            Err(failure) if !failure.is_data() => {
                report(&outcomes, "replayed", as_json)?;
                return Err(failure);
            }
            Err(failure) => outcomes.push(Outcome::Refused { id, reason: failure.to_string() }),
        }
    }
    report(&outcomes, "replayed", as_json)
}

async fn purge(desk: &Desk<'_>, choice: &Choice, yes: bool, as_json: bool) -> Result<u8, Failure> {
    let ids = chosen(desk, choice).await?;
    if !yes {
        let count = ids.len();
        return Err(Failure::configuration(format!(
            "{count} dead letters would be removed for good; add --yes to do so"
        )));
    }
    let mut outcomes = Vec::new();
    for id in ids {
        let purged = desk.purge(id).await?;
        outcomes.push(match purged.removed {
            true => Outcome::Done { id, stream: String::new(), place: String::new() },
            false => Outcome::Refused { id, reason: format!("there is no dead letter {id}") },
        });
    }
    report(&outcomes, "purged", as_json)
}

/// What became of one dead letter.
enum Outcome {
    Done { id: EntryId, stream: String, place: String },
    Would { id: EntryId, stream: String },
    Refused { id: EntryId, reason: String },
}

impl Outcome {
    fn as_json(&self, deed: &str) -> serde_json::Value {
        match self {
            Self::Done { id, stream, place } if stream.is_empty() && place.is_empty() => {
                json!({ "dead_letter": id.to_string(), "outcome": deed })
            }
            Self::Done { id, stream, place } => json!({
                "dead_letter": id.to_string(), "outcome": deed, "stream": stream, "id": place,
            }),
            Self::Would { id, stream } => {
                json!({ "dead_letter": id.to_string(), "outcome": deed, "stream": stream })
            }
            Self::Refused { id, reason } => {
                json!({ "dead_letter": id.to_string(), "outcome": "refused", "reason": reason })
            }
        }
    }

    fn line(&self, deed: &str) -> String {
        match self {
            Self::Done { id, stream, .. } if stream.is_empty() => format!("{id} {deed}"),
            Self::Done { id, stream, place } => format!("{id} {deed}: {stream} {place}"),
            Self::Would { id, stream } => format!("{id} {deed}: {stream}"),
            Self::Refused { reason, .. } => format!("REFUSED {reason}"),
        }
    }
}

/// Prints every outcome; a refusal among them is a failure for programs.
fn report(outcomes: &[Outcome], deed: &str, as_json: bool) -> Result<u8, Failure> {
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused { .. }));
    let refused = refused.count();
    if as_json {
        table::print_json(&outcomes.iter().map(|one| one.as_json(deed)).collect::<Vec<_>>());
    } else {
        for outcome in outcomes {
            table::print(&plain(&outcome.line(deed)));
        }
        table::print(&format!("{} {deed}, {refused} refused", outcomes.len() - refused));
    }
    match refused {
        0 => Ok(0),
        refused => Err(Failure::unusable(format!("{refused} dead letters were refused"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_unit() {
        assert_eq!(age("90s"), Ok(90_000));
        assert_eq!(age("2h"), Ok(7_200_000));
        assert_eq!(age("7d"), Ok(604_800_000));
        for text in ["", "s", "7", "-1h", "7w", "99999999999999999999d", "5\u{20ac}"] {
            assert!(age(text).is_err(), "{text}");
        }
    }
}
