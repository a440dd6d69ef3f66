//! What is looked at before a single worker starts. All findings are reported at once, each with
//! what to do about it; a failed check starts nothing. `weatherlight doctor` runs the same checks.

mod clock;
mod directories;
mod limits;
mod redis_log;

use std::net::{SocketAddr, TcpListener};

use leyline::sign::SECRET_BYTES_MIN;

use crate::settings::{EsperSettings, SecretText};
use crate::supervisor::Exit;

/// Every check, here and in `weatherlight doctor`, by the name under which it is reported and
/// explained.
pub const CHECKS: [&str; 16] = [
    "settings",
    "secret",
    "previous secret",
    "secret file",
    "directory",
    "inodes",
    "open files",
    "clock",
    "log",
    "catalogue",
    "http port",
    "http token",
    "service",
    "spool",
    "dead letters",
    "replica",
];

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Good,
    /// The service starts, and a person should look at it.
    Warning,
    /// The configuration cannot be used: exit 78.
    Misconfigured,
    /// Something it needs is not there: exit 69.
    Unavailable,
}

impl Verdict {
    /// The word in a report.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Misconfigured => "misconfigured",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
}

impl Finding {
    /// Nothing to do.
    pub fn good(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, message: message.into(), remedy: String::new() }
    }

    /// Something to do.
    pub fn new(
        check: &'static str,
        verdict: Verdict,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, verdict, message: message.into(), remedy: remedy.into() }
    }
}

/// All findings of a preflight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// The exit the worst finding demands; `None` when the service may start.
    pub fn exit(&self) -> Option<Exit> {
        let any = |verdict| self.0.iter().any(|finding| finding.verdict == verdict);
        if any(Verdict::Misconfigured) {
            Some(Exit::Configuration)
        } else if any(Verdict::Unavailable) {
            Some(Exit::Unavailable)
        } else {
            None
        }
    }

    /// Drops the findings of a check that does not matter here.
    pub fn forget(&mut self, check: &str) {
        self.0.retain(|finding| finding.check != check);
    }

    /// What a person should look at though the service starts.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter().filter(|finding| finding.verdict == Verdict::Warning)
    }

    /// Everything that is not good, one line each with its remedy.
    pub fn report(&self) -> String {
        let lines = self.0.iter().filter(|finding| finding.verdict != Verdict::Good);
        let lines: Vec<String> = lines
            .map(|finding| {
                let Finding { check, verdict, message, remedy } = finding;
                format!("  {}: {check}: {message}; {remedy}", verdict.word())
            })
            .collect();
        lines.join("\n")
    }
}

/// Where the HTTP endpoint stands after the check.
#[derive(Debug)]
pub enum Port {
    /// Bound, and kept so that nobody else takes it before the service starts.
    Bound(TcpListener),
    /// Not to be had; a finding says so.
    Taken,
}

/// Runs every check. Creates the directories the service writes to, and binds its port.
pub async fn check(settings: &EsperSettings) -> (Findings, Port) {
    let mut findings = vec![secret("secret", settings.leyline_secret.as_ref())];
    if let Some(previous) = &settings.leyline_secret_previous {
        findings.push(secret("previous secret", Some(previous)));
    }
    findings.extend(directories::check(settings));
    findings.push(limits::open_files());
    findings.push(clock::alone());
    match &settings.redis_url {
        Some(url) => {
            let config = crate::wiring::bus_config(settings);
            findings.extend(redis_log::check(url.expose(), &config).await);
        }
        None => findings.push(Finding::good("log", "embedded, for this process alone")),
    }
    findings.push(catalogue(settings).await);
    let (finding, port) = http_port(settings.http_addr);
    findings.push(finding);
    findings.push(http_token(settings.http_token.as_ref()));
    (Findings(findings), port)
}

fn http_token(token: Option<&SecretText>) -> Finding {
    const CHECK: &str = "http token";
    match token {
        None => Finding::good(CHECK, "not set, so nothing can be changed over HTTP"),
        Some(token) if token.expose().len() < SECRET_BYTES_MIN => Finding::new(
            CHECK,
            Verdict::Misconfigured,
            format!("WEATHERLIGHT_HTTP_TOKEN is shorter than {SECRET_BYTES_MIN} bytes"),
            "make one with `openssl rand -hex 32`",
        ),
        Some(_) => Finding::good(CHECK, "set, and long enough"),
    }
}

fn secret(check: &'static str, secret: Option<&SecretText>) -> Finding {
    const REMEDY: &str = "set ESPER_LEYLINE_SECRET, or ESPER_LEYLINE_SECRET_FILE to a file that holds it, to at least 16 bytes, the same for every program on the bus (make one with `openssl rand -hex 32`)";
    match secret {
        None => Finding::new(
            check,
            Verdict::Misconfigured,
            "there is no secret to sign messages with",
            REMEDY,
        ),
        Some(secret) if secret.signing().is_weak() => Finding::new(
            check,
            Verdict::Misconfigured,
            format!("the secret is weak: shorter than {SECRET_BYTES_MIN} bytes"),
            REMEDY,
        ),
        Some(_) => Finding::good(check, "set, and long enough"),
    }
}

async fn catalogue(settings: &EsperSettings) -> Finding {
    const CHECK: &str = "catalogue";
    let url = &settings.urza_database_url;
    let remedy = "check URZA_DATABASE_URL; a catalogue that is broken may be moved away, the forge builds it again";
    let config = match crate::wiring::library_config(settings) {
        Ok(config) => config,
        Err(error) => {
            return Finding::new(CHECK, Verdict::Misconfigured, error.to_string(), remedy);
        }
    };
    let metrics = urza::Metrics::register(&mut prometheus_client::registry::Registry::default());
    match urza::Library::open(config, metrics).await {
        Ok(library) => {
            library.close().await;
            Finding::good(CHECK, format!("{} opens and is migrated", url.masked()))
        }
        Err(error) => {
            let error: &(dyn std::error::Error + 'static) = &error;
            Finding::new(CHECK, Verdict::Unavailable, crate::supervisor::chain(error), remedy)
        }
    }
}

fn http_port(address: SocketAddr) -> (Finding, Port) {
    const CHECK: &str = "http port";
    match TcpListener::bind(address) {
        Ok(listener) => {
            let finding = if address.ip().is_loopback() {
                Finding::good(CHECK, format!("{address} is free"))
            } else {
                Finding::new(
                    CHECK,
                    Verdict::Warning,
                    format!("{address} can be reached from other machines"),
                    "keep WEATHERLIGHT_HTTP_ADDR on 127.0.0.1, or put an authenticating proxy in front",
                )
            };
            (finding, Port::Bound(listener))
        }
        Err(error) => {
            let finding = Finding::new(
                CHECK,
                Verdict::Misconfigured,
                format!("cannot listen on {address}: {error}"),
                "stop what uses it, or set WEATHERLIGHT_HTTP_ADDR to another address",
            );
            (finding, Port::Taken)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_outranks_unavailability() {
        let finding = |verdict| Finding::new("x", verdict, "m", "r");
        let exit =
            |verdicts: &[Verdict]| Findings(verdicts.iter().map(|v| finding(*v)).collect()).exit();
        assert_eq!(exit(&[]), None);
        assert_eq!(exit(&[Verdict::Good, Verdict::Warning]), None);
        assert_eq!(exit(&[Verdict::Unavailable]), Some(Exit::Unavailable));
        let both = [Verdict::Unavailable, Verdict::Misconfigured];
        assert_eq!(exit(&both).map(Exit::code), Some(78));
    }

    #[test]
    fn a_missing_or_weak_secret_is_a_fault_that_names_the_remedy_and_not_the_secret() {
        assert_eq!(secret("secret", None).verdict, Verdict::Misconfigured);
        let weak = secret("secret", Some(&SecretText::new("hunter2")));
        assert_eq!(weak.verdict, Verdict::Misconfigured);
        let shown = format!("{weak:?}");
        assert!(shown.contains("ESPER_LEYLINE_SECRET") && !shown.contains("hunter2"), "{shown}");
        let good = secret("secret", Some(&SecretText::new("0123456789abcdef")));
        assert_eq!(good.verdict, Verdict::Good);
    }

    #[test]
    fn a_taken_port_is_a_fault() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (finding, port) = http_port(listener.local_addr().unwrap());
        assert_eq!(finding.verdict, Verdict::Misconfigured);
        assert!(matches!(port, Port::Taken));
    }
}
