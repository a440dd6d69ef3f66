//! `weatherlight doctor`: the checks of a start, and a look at what runs already, without a start.

use std::path::Path;
use std::time::Duration;

use nissa::Health;
use nissa::bus::StandingView;
use serde_json::{Value, json};

use super::bus_desk::Desk;
use super::failure::Failure;
use super::picture::Figures;
use super::table::{ago, plain};
use super::{Global, block_on, table};
use crate::client::{self, ClientError};
use crate::preflight::{self, Finding, Findings, Verdict};
use crate::settings::{EsperSettings, Fault, Problem, Resolved};

/// How long the log may take to tell how it stands.
const STANDING_TIMEOUT: Duration = Duration::from_secs(5);
/// A consumer heard of within this time lives.
const LIVING_MS: u64 = 30_000;

pub(super) fn run(global: &Global) -> Result<u8, Failure> {
    let resolved = global.load()?;
    let findings = block_on(examine(&resolved))?;
    if global.json {
        table::print_json(&as_json(&findings));
    } else {
        let mut rows = table::with_columns(&["check", "verdict", "finding", "what to do"]);
        for finding in &findings.0 {
            let (verdict, message) = (finding.verdict.word(), plain(&finding.message));
            rows.add_row([finding.check, verdict, &message, &plain(&finding.remedy)]);
        }
        table::print(&rows.to_string());
        table::print(&summary(&findings));
    }
    Ok(findings.exit().map_or(0, |exit| exit.code()))
}

/// Every finding as programs read it.
pub(super) fn as_json(findings: &Findings) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.word(),
            "message": finding.message,
            "remedy": finding.remedy,
        })
    };
    json!(findings.0.iter().map(finding).collect::<Vec<_>>())
}

/// The last line.
fn summary(findings: &Findings) -> String {
    let count = |verdict| findings.0.iter().filter(|finding| finding.verdict == verdict).count();
    let faults = count(Verdict::Misconfigured) + count(Verdict::Unavailable);
    let (all, warnings) = (findings.0.len(), count(Verdict::Warning));
    let end = match findings.exit() {
        None if warnings == 0 => "nothing to do".to_owned(),
        None => "a start would succeed".to_owned(),
        Some(exit) => format!("a start would fail with exit code {}", exit.code()),
    };
    format!("{all} findings, {warnings} warnings, {faults} faults: {end}")
}

/// Who answers where the service should be.
#[derive(Debug)]
enum Answering {
    /// A Weatherlight.
    Service { health: Box<Health>, figures: Option<Figures> },
    /// Nobody listens.
    Nobody,
    /// Something that is none, or that does not answer.
    Stranger(String),
}

/// Looks at everything; beside a running service too, which it does not disturb.
pub(super) async fn examine(resolved: &Resolved) -> Findings {
    let settings = &resolved.settings;
    let answering = who_answers(settings).await;
    let (Findings(checked), port) = preflight::check(settings).await;
    drop(port);

    let mut findings: Vec<Finding> = resolved.warnings.iter().map(warning).collect();
    findings.extend(checked.into_iter().map(|finding| beside(finding, &answering, settings)));
    findings.extend(service(&answering, settings));
    findings.extend(spool(&answering, settings));
    findings.extend(log(settings, &answering, &findings).await);
    Findings(findings)
}

/// What the settings warn of, with what to do.
fn warning(fault: &Fault) -> Finding {
    let (check, remedy) = match &fault.problem {
        Problem::OpenToAll { path, .. } => ("secret file", format!("chmod 600 {path}")),
        Problem::NoEffect { .. } => ("settings", "remove it".to_owned()),
        _ => ("settings", "correct or remove it".to_owned()),
    };
    Finding::new(check, Verdict::Warning, fault.to_string(), remedy)
}

async fn who_answers(settings: &EsperSettings) -> Answering {
    let address = settings.http_addr;
    match client::request(address, "GET", "/healthz", None).await {
        Ok(answer) => match serde_json::from_str(&answer.body) {
            Ok(health) => {
                let metrics = client::request(address, "GET", "/metrics", None).await.ok();
                let figures = metrics.map(|metrics| Figures::read(&metrics.body));
                Answering::Service { health: Box::new(health), figures }
            }
            Err(error) => Answering::Stranger(format!(
                "what answers at {address} is no Weatherlight of this version: {error}"
            )),
        },
        Err(ClientError::Unreachable { .. }) => Answering::Nobody,
        Err(error) => Answering::Stranger(error.to_string()),
    }
}

/// A port that is taken by the very service is no fault.
fn beside(finding: Finding, answering: &Answering, settings: &EsperSettings) -> Finding {
    let is_taken = finding.check == "http port" && finding.verdict == Verdict::Misconfigured;
    let address = settings.http_addr;
    match answering {
        Answering::Service { health, .. } if is_taken => Finding::good(
            "http port",
            format!("{address} is that of the running service, version {}", health.version),
        ),
        _ => finding,
    }
}

fn service(answering: &Answering, settings: &EsperSettings) -> Vec<Finding> {
    const CHECK: &str = "service";
    let address = settings.http_addr;
    let health = match answering {
        Answering::Nobody => return vec![Finding::good(CHECK, format!("none runs at {address}"))],
        Answering::Stranger(what) => {
            return vec![Finding::new(
                CHECK,
                Verdict::Warning,
                what.clone(),
                "if it should be the service, it is hung: read its log and restart it; else let WEATHERLIGHT_HTTP_ADDR name the service's address",
            )];
        }
        Answering::Service { health, .. } => health,
    };
    let mut findings = Vec::new();
    let mut warn = |message: String, remedy: &str| {
        findings.push(Finding::new(CHECK, Verdict::Warning, message, remedy));
    };
    let ours = env!("CARGO_PKG_VERSION");
    if health.version != ours {
        warn(
            format!("the running service is version {}, this program is {ours}", health.version),
            "restart the service to put this version to work",
        );
    }
    let wanted_log = if settings.redis_url.is_some() { "redis" } else { "embedded" };
    if health.log != wanted_log {
        warn(
            format!(
                "the running service uses the {} log, these settings the {wanted_log} one",
                health.log
            ),
            "run this with the service's own settings, or restart the service",
        );
    }
    for reason in &health.reasons {
        warn(
            format!("the running service is not ready: {reason}"),
            "mend what it names; `weatherlight status` shows more",
        );
    }
    for lost in &health.lost {
        warn(
            format!("the running service lost a function: {lost}"),
            "mend what it names; a parked worker then needs `weatherlight workers restart NAME`",
        );
    }
    if findings.is_empty() {
        let up = ago(Some((health.uptime_s.max(0.0) * 1e3) as u64));
        findings.push(Finding::good(
            CHECK,
            format!("runs at {address} for {up}, ready, of this version"),
        ));
    }
    findings
}

/// What waits on disk for the log: counted by the service while one runs, else by its files.
fn spool(answering: &Answering, settings: &EsperSettings) -> Vec<Finding> {
    const CHECK: &str = "spool";
    let Some(config) = crate::wiring::bus_config(settings).spool else { return Vec::new() };
    let waiting = match answering {
        Answering::Service { figures: Some(figures), .. } if figures.spooled > 0.0 => {
            Some(format!("{} messages wait on disk for the log", figures.spooled))
        }
        Answering::Service { figures: Some(_), .. } => None,
        _ => match files(&config.directory, "spool") {
            (0, _) => None,
            (count, bytes) => Some(format!(
                "{count} files ({} KiB) in {} hold messages that were not sent",
                bytes / 1024,
                config.directory.display()
            )),
        },
    };
    vec![match waiting {
        Some(message) => Finding::new(
            CHECK,
            Verdict::Warning,
            message,
            "bring the log back; the running or the next service sends them in their order. Do not delete them",
        ),
        None => Finding::good(CHECK, "empty"),
    }]
}

/// Files with this extension, and their bytes.
fn files(directory: &Path, extension: &str) -> (u64, u64) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries
        .filter(|entry| entry.path().extension().is_some_and(|found| found == extension))
        .filter_map(|entry| entry.metadata().ok())
        .map(|about| about.len());
    sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
}

/// What stands on the bus. Opens the log, or asks the service that holds it; consumes nothing.
async fn log(settings: &EsperSettings, answering: &Answering, before: &[Finding]) -> Vec<Finding> {
    const CHECK: &str = "log";
    let is_usable = |finding: &Finding| {
        !matches!(finding.check, "log" | "secret" | "previous secret")
            || matches!(finding.verdict, Verdict::Good | Verdict::Warning)
    };
    if !before.iter().all(is_usable) {
        return Vec::new();
    }
    if settings.redis_url.is_none() && !settings.state_dir.join("oona/log.redb").exists() {
        return vec![Finding::good(CHECK, "the embedded log does not exist yet; a start makes it")];
    }
    let look = async {
        let desk = Desk::open(settings).await?;
        Ok((desk.standing().await?, matches!(desk, Desk::Service(_))))
    };
    let looked: Result<_, Failure> = tokio::time::timeout(STANDING_TIMEOUT, look)
        .await
        .unwrap_or_else(|_| Err(Failure::unavailable("it gives no answer in time")));
    let (standing, is_held) = match looked {
        Ok(looked) => looked,
        Err(failure) => {
            let remedy = match (failure.word(), answering) {
                ("bus_locked", Answering::Nobody) => {
                    "the process that holds it does not listen at WEATHERLIGHT_HTTP_ADDR: run this with its settings, or stop it"
                }
                ("bus_locked", _) => "wait until the service has booted, or read its log",
                _ => "see `weatherlight explain log`",
            };
            let verdict = Verdict::Unavailable;
            return vec![Finding::new(CHECK, verdict, failure.to_string(), remedy)];
        }
    };
    let mut findings = Vec::new();
    if is_held {
        findings.push(Finding::good(
            CHECK,
            "the running service holds the embedded log and answers for it",
        ));
    }
    findings.push(dead_letters(&standing));
    findings.extend(replica(&standing, settings));
    findings
}

fn dead_letters(standing: &StandingView) -> Finding {
    const CHECK: &str = "dead letters";
    let found = standing.streams.iter().find(|stream| stream.stream == "dead_letter");
    match found {
        Some(stream) if stream.length > 0 => Finding::new(
            CHECK,
            Verdict::Warning,
            format!("{}, the newest {} old", stream.length, ago(stream.newest_age_ms)),
            "`weatherlight dlq list` shows why; then `dlq replay` or `dlq purge`",
        ),
        _ => Finding::good(CHECK, "none"),
    }
}

/// Each observer needs a group of its own, else each sees a part.
fn replica(standing: &StandingView, settings: &EsperSettings) -> Option<Finding> {
    let group = crate::wiring::ingest_config(settings).group();
    let living = standing
        .streams
        .iter()
        .flat_map(|stream| stream.groups.iter().filter(|found| found.name == group))
        .map(|group| {
            let lives = |age: Option<u64>| age.is_some_and(|age| age < LIVING_MS);
            group.consumers.iter().filter(|consumer| lives(consumer.heartbeat_age_ms)).count()
        })
        .max()?;
    (living > 1).then(|| {
        Finding::new(
            "replica",
            Verdict::Warning,
            format!("{living} services observe as {group}, so each sees only a part"),
            "give each service its own NISSA_REPLICA",
        )
    })
}

#[cfg(test)]
mod tests {
    use nissa::bus::{ConsumerView, GroupView, StreamView};

    use super::*;
    use crate::settings::{Sources, resolve};

    fn settings(overrides: &[String]) -> Resolved {
        resolve(&Sources { overrides: overrides.to_vec(), ..Sources::default() }).unwrap()
    }

    fn stream(name: &str, length: u64, groups: Vec<GroupView>) -> StreamView {
        StreamView {
            stream: name.to_owned(),
            name: name.to_owned(),
            durability: String::new(),
            length,
            oldest_age_ms: None,
            newest_age_ms: (length > 0).then_some(3_000),
            groups,
        }
    }

    fn standing(streams: Vec<StreamView>) -> StandingView {
        StandingView { log: "redis".to_owned(), server: None, now_ms: 0, streams, keys: Vec::new() }
    }

    #[test]
    fn dead_letters_are_a_warning_with_their_commands() {
        assert_eq!(dead_letters(&standing(vec![])).verdict, Verdict::Good);
        let found = dead_letters(&standing(vec![stream("dead_letter", 3, vec![])]));
        assert_eq!(
            (found.verdict, found.message.as_str()),
            (Verdict::Warning, "3, the newest 3.0 s old")
        );
        assert!(found.remedy.contains("dlq list"));
    }

    #[test]
    fn two_living_observers_of_one_name_are_found() {
        let observers = |ages: &[Option<u64>]| {
            let consumer = |age: &Option<u64>| ConsumerView {
                name: "c".to_owned(),
                pending: 0,
                heartbeat_age_ms: *age,
            };
            let group = GroupView {
                name: "nissa-service".to_owned(),
                pending: 0,
                lag: 0,
                redelivered: 0,
                oldest_pending_age_ms: None,
                consumers: ages.iter().map(consumer).collect(),
            };
            standing(vec![stream("normal", 0, vec![group])])
        };
        let settings = settings(&[]).settings;
        let warned = |ages: &[Option<u64>]| replica(&observers(ages), &settings).is_some();
        assert!(!warned(&[Some(1_000)]));
        assert!(!warned(&[Some(1_000), Some(600_000), None]), "the dead do not count");
        assert!(warned(&[Some(1_000), Some(2_000)]));
    }

    #[test]
    fn a_service_of_another_version_or_that_lost_something_is_told() {
        let found = |health: Health| {
            let answering = Answering::Service { health: Box::new(health), figures: None };
            let mut said = service(&answering, &settings(&[]).settings).into_iter();
            said.next().map(|finding| (finding.verdict, finding.message)).unwrap()
        };
        let ready = || Health {
            reasons: Vec::new(),
            ready: true,
            ..Health::booting(env!("CARGO_PKG_VERSION"), "embedded")
        };
        assert_eq!(found(ready()).0, Verdict::Good);
        let (verdict, message) = found(Health { version: "0.0.1".to_owned(), ..ready() });
        assert!(verdict == Verdict::Warning && message.contains("0.0.1"), "{message}");
        let (verdict, message) = found(Health { lost: vec!["compiling".to_owned()], ..ready() });
        assert!(verdict == Verdict::Warning && message.contains("compiling"), "{message}");
        let stranger = service(&Answering::Stranger("silence".to_owned()), &settings(&[]).settings);
        assert_eq!(stranger[0].verdict, Verdict::Warning);
    }

    #[test]
    fn what_waits_in_the_spool_is_counted_by_its_files_while_nobody_runs() {
        let directory = tempfile::tempdir().unwrap();
        let state = format!("WEATHERLIGHT_STATE_DIR={}", directory.path().display());
        let redis = "REDIS_URL=redis://127.0.0.1:1".to_owned();
        let settings = settings(&[state, redis]).settings;
        assert_eq!(spool(&Answering::Nobody, &settings)[0].verdict, Verdict::Good);
        let path = directory.path().join("oona/spool");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("a.spool"), [0; 4096]).unwrap();
        let found = spool(&Answering::Nobody, &settings);
        assert_eq!(found[0].verdict, Verdict::Warning);
        assert!(found[0].message.contains("1 files (4 KiB)"), "{found:?}");
        let figures = Some(Figures { spooled: 7.0, ..Figures::default() });
        let answering =
            Answering::Service { health: Box::new(Health::booting("1", "redis")), figures };
        assert!(spool(&answering, &settings)[0].message.contains("7 messages"));
    }

    #[tokio::test]
    async fn every_finding_is_of_a_check_that_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut resolved = settings(&[
            format!("WEATHERLIGHT_STATE_DIR={}", at("var")),
            format!("URZA_ARTIFACT_DIR={}", at("artifacts")),
            format!("URZA_DATABASE_URL=sqlite:///{}", at("catalog.db")),
            format!("TAMIYO_POLICY_DIR={}", at("policies")),
            format!("WEATHERLIGHT_HTTP_ADDR={port}"),
            "ESPER_LEYLINE_SECRET=a secret of the tests, long enough".to_owned(),
        ]);
        let sources = Sources {
            environment: vec![("OONA_NONSENSE".to_owned(), "1".to_owned())],
            ..Sources::default()
        };
        resolved.warnings = resolve(&sources).unwrap().warnings;
        let findings = examine(&resolved).await;
        assert_eq!(findings.exit(), None, "{}", findings.report());
        for finding in &findings.0 {
            assert!(preflight::CHECKS.contains(&finding.check), "{finding:?}");
            assert_eq!(finding.remedy.is_empty(), finding.verdict == Verdict::Good, "{finding:?}");
        }
        let told = as_json(&findings);
        assert_eq!(told[0]["check"], "settings");
        assert!(told[0]["message"].as_str().unwrap().contains("OONA_NONSENSE"));
        assert!(
            summary(&findings).contains("1 warnings, 0 faults: a start would succeed"),
            "{}",
            summary(&findings)
        );
    }
}
