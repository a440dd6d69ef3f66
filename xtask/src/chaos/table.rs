//! The table: on the terminal, as JSON, and in `docs/reliability.md`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::rows::{Ran, Row};

const PAGE: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- chaos: written by `cargo xtask chaos --write`; do not edit -->\n";
const END: &str = "<!-- chaos end -->\n";

/// One finished row.
#[derive(Debug)]
pub struct Line {
    /// Which.
    pub row: Row,
    /// With which seed.
    pub seed: u64,
    /// What came out; an error is a trial that could not be brought to its end.
    pub ran: Result<Ran>,
}

impl Line {
    /// Whether it ran and kept every promise.
    pub fn is_good(&self) -> bool {
        matches!(&self.ran, Ok(Ran::Done(outcome)) if outcome.is_good())
    }

    /// Whether this machine could run it.
    pub fn was_run(&self) -> bool {
        !matches!(self.ran, Ok(Ran::NotRun(_)))
    }

    fn cells(&self) -> Vec<String> {
        let outcome = match &self.ran {
            Ok(Ran::Done(outcome)) => outcome,
            Ok(Ran::NotRun(why)) => {
                return vec![self.row.what.to_owned(), format!("not run: {why}")];
            }
            Err(error) => return vec![self.row.what.to_owned(), format!("FAILED: {error:#}")],
        };
        let tally = &outcome.tally;
        let note = outcome.note.as_ref().map(|note| format!(" ({note})"));
        let mut cells = vec![format!("{}{}", self.row.what, note.unwrap_or_default())];
        let numbers = [
            tally.accepted,
            tally.answered,
            tally.twice,
            outcome.refused,
            tally.again,
            tally.forgotten,
            tally.lost,
        ];
        cells.extend(numbers.map(|number| number.to_string()));
        cells.push(shown(tally.first));
        cells.push(shown(tally.all));
        cells
    }

    /// Its row of the page.
    fn markdown(&self) -> String {
        let mut cells = self.cells();
        cells.resize(10, String::new());
        format!("| {} |", cells.join(" | "))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let mut value = json!({ "row": self.row.name, "what": self.row.what, "seed": self.seed, "good": self.is_good() });
        match &self.ran {
            Ok(Ran::NotRun(why)) => value["not_run"] = json!(why),
            Err(error) => value["failed"] = json!(format!("{error:#}")),
            Ok(Ran::Done(outcome)) => {
                let tally = &outcome.tally;
                value["tally"] = json!({
                    "sent": tally.sent, "accepted": tally.accepted, "answered": tally.answered,
                    "answered_twice": tally.twice, "refused": outcome.refused, "sent_to_be_refused": outcome.to_refuse,
                    "asked_again": tally.again, "lost_by_redis": tally.forgotten, "lost": tally.lost,
                    "wrong": tally.wrong, "untimely": tally.untimely, "unserved": tally.unserved,
                    "first_answer_ms": tally.first.map(ms), "all_answered_ms": tally.all.map(ms),
                    "kills": outcome.kills, "unasked_ends": outcome.crashes, "boot_ms": outcome.boot.map(ms), "note": outcome.note,
                });
            }
        }
        value
    }

    /// One line for the terminal.
    pub fn text(&self) -> String {
        let verdict = match (self.was_run(), self.is_good()) {
            (false, _) => "not run",
            (true, true) => "good",
            (true, false) => "FAILED",
        };
        let detail = match &self.ran {
            Ok(Ran::NotRun(why)) => why.clone(),
            Err(error) => format!("{error:#}"),
            Ok(Ran::Done(outcome)) => {
                let tally = &outcome.tally;
                let mut text = format!(
                    "sent {}, accepted {}, answered {}, twice {}, refused {} of {}, asked again {}, lost by Redis {}, LOST {}, \
                     first answer {}, all {}, kills {}",
                    tally.sent,
                    tally.accepted,
                    tally.answered,
                    tally.twice,
                    outcome.refused,
                    outcome.to_refuse,
                    tally.again,
                    tally.forgotten,
                    tally.lost,
                    shown(tally.first),
                    shown(tally.all),
                    outcome.kills,
                );
                for (number, name) in [
                    (tally.wrong, "WRONG"),
                    (tally.untimely, "UNTIMELY"),
                    (tally.unserved, "UNSERVED"),
                ] {
                    if number > 0 {
                        text.push_str(&format!(", {name} {number}"));
                    }
                }
                if let Some(note) = &outcome.note {
                    text.push_str(&format!(", {note}"));
                }
                if let Some(why) = &outcome.unsettled {
                    text.push_str(&format!(", NOT AT REST: {why}"));
                }
                if !outcome.crashes.is_empty() {
                    text.push_str(&format!(
                        ", service ended by itself: {}",
                        outcome.crashes.join(", ")
                    ));
                }
                text
            }
        };
        format!("{verdict:8}{:26}{detail}", self.row.name)
    }
}

/// How a run was made.
#[derive(Debug)]
pub struct Circumstances {
    /// Seed of the run.
    pub seed: u64,
    /// `release` or `dev`.
    pub profile: String,
    /// The commit.
    pub commit: String,
    /// The day.
    pub date: String,
    /// Processor and cores.
    pub machine: String,
    /// The server's version.
    pub redis: String,
}

/// The whole table as Markdown.
pub fn markdown(lines: &[Line], run: &Circumstances) -> String {
    let mut text = format!(
        "Run of {} on commit {}, seed {}, `{}` build, {}, {}.\n\n\
         | Fault | requests accepted | answered | answered twice | refused | asked again | lost by Redis | **lost** | first answer after | all answered after |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        run.date, run.commit, run.seed, run.profile, run.machine, run.redis,
    );
    for line in lines {
        text.push_str(&line.markdown());
        text.push('\n');
    }
    text
}

/// Puts the table into the page.
pub fn write(root: &Path, table: &str) -> Result<()> {
    replace(root, |_| Ok(table.to_owned()))
}

/// Puts single rows in the place of those that the page has.
pub fn write_rows(root: &Path, lines: &[Line]) -> Result<()> {
    replace(root, |table| {
        let mut rows: Vec<String> = table.lines().map(str::to_owned).collect();
        for line in lines {
            let begin = format!("| {}", line.row.what);
            let row = rows.iter_mut().find(|row| row.starts_with(&begin));
            *row.with_context(|| format!("the page has no row {}", line.row.name))? =
                line.markdown();
        }
        Ok(rows.join("\n") + "\n")
    })
}

fn replace(root: &Path, change: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let path = root.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("no {PAGE}"))?;
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?)));
    let (head, (table, tail)) =
        parts.with_context(|| format!("{PAGE} has no place for the table: {BEGIN}{END}"))?;
    fs::write(&path, format!("{head}{BEGIN}{}{END}{tail}", change(table)?))?;
    println!("wrote {PAGE}");
    Ok(())
}

fn shown(time: Option<Duration>) -> String {
    match time {
        None => "-".to_owned(),
        Some(time) if time < Duration::from_secs(1) => format!("{} ms", time.as_millis()),
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    #[test]
    fn what_was_not_run_is_not_passed() {
        let line = Line { row: ROWS[0], seed: 1, ran: Ok(Ran::NotRun("no root".to_owned())) };
        assert!(!line.is_good() && !line.was_run());
        assert!(line.cells()[1].contains("not run: no root"));
        let line = Line { row: ROWS[0], seed: 1, ran: Err(anyhow::anyhow!("it broke")) };
        assert!(!line.is_good() && line.was_run());
        assert!(line.text().contains("it broke") && line.text().starts_with("FAILED"));
    }

    #[test]
    fn times_are_shown_with_their_unit() {
        assert_eq!(shown(Some(Duration::from_millis(870))), "870 ms");
        assert_eq!(shown(Some(Duration::from_millis(1250))), "1.2 s");
        assert_eq!(shown(None), "-");
    }
}
