//! `weatherlight bundle`: what a report about a trouble needs, in one archive and without secrets.
//!
//! Every part is gathered on its own, with a time-out; what cannot be had becomes a file that says
//! why. So it works beside a service that runs, hangs or is down. `redact` takes out every secret
//! that is known here, whatever part it may have come into; `machine` looks at the system.

mod machine;
mod redact;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use leyline::time::now_unix_ms;
use nissa::bus::{DeadLetterView, LetterQuery};
use serde::Serialize;
use serde_json::{Value, json};

use self::redact::Redactor;
use super::bus_desk::Desk;
use super::failure::Failure;
use super::{Global, block_on, doctor, kernels, table};
use crate::client;
use crate::settings::{EsperSettings, Faults, Resolved};

/// How long one part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(10);
/// Dead letters whose headers are taken along.
const LETTERS_MAX: usize = 200;
/// What is asked of the running service: path, and the file it goes into.
const ANSWERS: [(&str, &str); 7] = [
    ("/healthz", "health.json"),
    ("/readyz", "ready.json"),
    ("/livez", "live.json"),
    ("/v1/state", "state.json"),
    ("/metrics/summary", "alerts.json"),
    ("/v1/sources", "sources.json"),
    ("/metrics", "metrics.txt"),
];

#[derive(Debug, Args)]
pub struct Options {
    /// Where to write it [default: weatherlight-bundle-TIME.tar.gz here]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// One file of the archive.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    name: String,
    content: Vec<u8>,
    /// Whether it holds why the part is missing.
    is_error: bool,
}

impl Part {
    fn new(name: &str, gathered: Result<Vec<u8>, String>) -> Self {
        match gathered {
            Ok(content) => Self { name: name.to_owned(), content, is_error: false },
            Err(why) => Self {
                name: format!("{name}.error.txt"),
                content: format!("{why}\n").into_bytes(),
                is_error: true,
            },
        }
    }

    fn json(name: &str, value: &impl Serialize) -> Self {
        let text = serde_json::to_vec_pretty(value).map_err(|error| error.to_string());
        Self::new(name, text)
    }
}

pub(super) fn run(global: &Global, options: &Options) -> Result<u8, Failure> {
    let name = format!("weatherlight-bundle-{}", stamp(now_unix_ms()));
    let path = options.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    // Before anything is gathered: a place that cannot be written is found at once.
    let file = create(&path)?;
    let resolved = global.resolve();
    let mut redactor = Redactor::of_environment(|name| std::env::var(name).ok());
    if let Ok(resolved) = &resolved {
        redactor.add(resolved);
    }
    let mut parts = block_on(gather(&resolved))?;
    for part in &mut parts {
        redactor.redact(&mut part.content);
    }
    write(file, &name, &parts).map_err(|error| {
        Failure::unavailable(format!("cannot write {}: {error}", path.display()))
    })?;
    report(global, &path, &parts);
    Ok(0)
}

fn create(path: &Path) -> Result<File, Failure> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        let path = path.display();
        let remedy = "name another with --output";
        Failure::configuration(format!("cannot make {path}: {error}; {remedy}"))
    })
}

fn report(global: &Global, path: &Path, parts: &[Part]) {
    if global.json {
        let part = |part: &Part| json!({ "name": part.name, "bytes": part.content.len(), "missing": part.is_error });
        let parts: Vec<Value> = parts.iter().map(part).collect();
        table::print_json(&json!({ "file": path, "parts": parts }));
        return;
    }
    let missing: Vec<&str> =
        parts.iter().filter(|part| part.is_error).map(|part| part.name.as_str()).collect();
    table::print(&format!("{}: {} parts", path.display(), parts.len()));
    if !missing.is_empty() {
        table::print(&format!("not to be had, and why stands in them: {}", missing.join(", ")));
    }
    table::print(
        "known secrets are masked and message contents are left out; look through it before you send it",
    );
}

/// Everything, in the order in which a reader wants it.
async fn gather(resolved: &Result<Resolved, Faults>) -> Vec<Part> {
    let mut parts = vec![Part::new("README.txt", Ok(README.as_bytes().to_vec())), about()];
    match resolved {
        Ok(resolved) => {
            parts.push(settings(resolved));
            parts.push(timed("doctor.json", doctor(resolved)).await);
            parts.extend(service(&resolved.settings).await);
            parts.push(timed("logs.json", logs(&resolved.settings)).await);
            parts.extend(bus(&resolved.settings).await);
            parts.push(timed("kernels.json", kernel_list(&resolved.settings)).await);
            parts.push(Part::new("files.txt", Ok(machine::files(&resolved.settings).into_bytes())));
            parts.push(Part::json("machine.json", &machine::facts(Some(&resolved.settings))));
        }
        Err(faults) => {
            parts.push(Part::new("settings.json", Err(faults.to_string())));
            parts.push(Part::json("machine.json", &machine::facts(None)));
        }
    }
    parts
}

async fn timed(name: &str, gather: impl Future<Output = Result<Vec<u8>, String>>) -> Part {
    let late = |_| Err(format!("not gathered within {} s", PART_TIMEOUT.as_secs()));
    Part::new(name, tokio::time::timeout(PART_TIMEOUT, gather).await.unwrap_or_else(late))
}

fn about() -> Part {
    Part::json(
        "about.json",
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "made_at_unix_ms": now_unix_ms(),
            "os": std::env::consts::OS,
            "architecture": std::env::consts::ARCH,
            "debug_build": cfg!(debug_assertions),
            "program": std::env::current_exe().ok(),
            "working_directory": std::env::current_dir().ok(),
        }),
    )
}

fn settings(resolved: &Resolved) -> Part {
    let row = |row: &crate::settings::InForce| {
        let (name, value) = (row.definition.env, &row.shown);
        json!({ "name": name, "value": value, "origin": row.origin.to_string() })
    };
    let settings: Vec<Value> = resolved.in_force.iter().map(row).collect();
    let warnings: Vec<String> = resolved.warnings.iter().map(ToString::to_string).collect();
    Part::json("settings.json", &json!({ "settings": settings, "warnings": warnings }))
}

async fn doctor(resolved: &Resolved) -> Result<Vec<u8>, String> {
    let findings = doctor::examine(resolved).await;
    serde_json::to_vec_pretty(&doctor::as_json(&findings)).map_err(|error| error.to_string())
}

/// What the service answers; all at once, so that one that hangs costs one time-out.
async fn service(settings: &EsperSettings) -> Vec<Part> {
    let ask = async |at: usize| {
        let (path, name) = ANSWERS[at];
        let asked = client::request(settings.http_addr, "GET", path, None).await;
        Part::new(
            name,
            match asked {
                Ok(answer) if (200..300).contains(&answer.status) || answer.status == 503 => {
                    Ok(answer.body.into_bytes())
                }
                Ok(answer) => Err(format!("status {}: {}", answer.status, answer.body)),
                Err(error) => Err(error.to_string()),
            },
        )
    };
    let (a, b, c, d, e, f, g) =
        tokio::join!(ask(0), ask(1), ask(2), ask(3), ask(4), ask(5), ask(6));
    vec![a, b, c, d, e, f, g]
}

/// The newest log lines that the service keeps; who may change it may read them.
async fn logs(settings: &EsperSettings) -> Result<Vec<u8>, String> {
    let Some(token) = &settings.http_token else {
        return Err("reading the service's log lines needs WEATHERLIGHT_HTTP_TOKEN, the same here and at the service; add those of your service manager (journalctl -u weatherlight)".to_owned());
    };
    let asked = client::request(settings.http_addr, "GET", "/v1/logs", Some(token)).await;
    match asked.map_err(|error| error.to_string())? {
        answer if answer.status == 200 => Ok(answer.body.into_bytes()),
        answer => Err(format!("status {}: {}", answer.status, answer.body)),
    }
}

async fn bus(settings: &EsperSettings) -> [Part; 2] {
    let standing = async {
        let desk = Desk::open(settings).await.map_err(|failure| failure.to_string())?;
        let standing = desk.standing().await.map_err(|failure| failure.to_string())?;
        serde_json::to_vec_pretty(&standing).map_err(|error| error.to_string())
    };
    let letters = async {
        let desk = Desk::open(settings).await.map_err(|failure| failure.to_string())?;
        let query = LetterQuery { count: Some(LETTERS_MAX), ..LetterQuery::default() };
        let found = desk.letters(&query).await.map_err(|failure| failure.to_string())?;
        let headers: Vec<Value> = found.letters.iter().map(header).collect();
        serde_json::to_vec_pretty(&headers).map_err(|error| error.to_string())
    };
    // One after the other: an embedded log that nobody holds is opened by one at a time.
    let standing = timed("bus.json", standing).await;
    [standing, timed("dead-letters.json", letters).await]
}

/// A dead letter without what it says.
fn header(letter: &DeadLetterView) -> Value {
    let entry = &letter.entry;
    json!({
        "id": entry.id,
        "at_ms": entry.at_ms,
        "type": entry.kind,
        "source": entry.source,
        "signature": entry.mark,
        "bytes": entry.bytes,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "origin_stream": letter.origin_stream,
        "origin_entry": letter.origin_entry,
        "group": letter.group,
        "replays": letter.replays,
        "cannot_replay": letter.cannot_replay,
    })
}

async fn kernel_list(settings: &EsperSettings) -> Result<Vec<u8>, String> {
    let records = kernels::records(settings).await.map_err(|failure| failure.to_string())?;
    let rows: Vec<Value> = records.iter().map(kernels::as_json).collect();
    serde_json::to_vec_pretty(&rows).map_err(|error| error.to_string())
}

fn write(file: File, root: &str, parts: &[Part]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(part.content.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(now_unix_ms() / 1000);
        archive.append_data(
            &mut header,
            format!("{root}/{}", part.name),
            part.content.as_slice(),
        )?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()
}

/// `20260131T235959Z` of Unix milliseconds.
fn stamp(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (Hinnant, "chrono-compatible low-level date
    // algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

const README: &str = "\
A support archive of Weatherlight, made by `weatherlight bundle`.

about.json         version and build of the program that made it
settings.json      settings in force and where each came from; secrets masked
doctor.json        findings of `weatherlight doctor`
health.json        the running service: workers with their latest ends, breakers, backlogs
ready.json live.json state.json alerts.json sources.json metrics.txt   its other endpoints
logs.json          the newest log lines that the service keeps
bus.json           streams, groups, consumers
dead-letters.json  headers of dead letters, without what the messages say
kernels.json       records of the library
files.txt          names and sizes of the files that the service keeps
machine.json       system, processors, memory, limits, disks

A part that could not be had is a file NAME.error.txt that says why.
Not in here: secrets, message contents, artifacts, and log lines older than the newest 500: those
are your service manager's (`journalctl -u weatherlight`).
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_the_date() {
        assert_eq!(stamp(0), "19700101T000000Z");
        assert_eq!(stamp(951_782_400_000), "20000229T000000Z");
        assert_eq!(stamp(1_700_000_000_123), "20231114T221320Z");
        assert_eq!(stamp(1_767_225_599_000), "20251231T235959Z");
    }

    #[test]
    fn a_part_that_is_missing_says_why() {
        let part = Part::new("bus.json", Err("no log".to_owned()));
        assert_eq!((part.name.as_str(), part.is_error), ("bus.json.error.txt", true));
        assert_eq!(part.content, b"no log\n");
    }

    #[test]
    fn an_archive_is_not_written_over_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b.tar.gz");
        let parts = [Part::new("a.txt", Ok(b"text".to_vec()))];
        write(create(&path).unwrap(), "root", &parts).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let unpacked = flate2::read::GzDecoder::new(File::open(&path).unwrap());
        let mut archive = tar::Archive::new(unpacked);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["root/a.txt"]);
        assert_eq!(create(&path).unwrap_err().code(), 78);
    }
}
