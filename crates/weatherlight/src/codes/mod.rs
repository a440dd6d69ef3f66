//! Every stable code that the program shows, logs, counts or answers with: what it means, where it
//! comes from and what to do. `weatherlight explain` and `docs/errors.md` are made of this table.
//!
//! One file per family of codes. A word may belong to several families (`stale` is a message on the
//! bus and, as `stale_update`, a policy): `family/code` names one of them.

mod alerts;
mod bus;
mod http;
mod kernels;
mod page;
mod policy;
mod process;
mod settings;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use page::page;

/// Likeness from which a known code is suggested for an unknown one.
const LIKENESS_MIN: f64 = 0.8;

/// Where a code belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// How a command or the service ended.
    Exit,
    /// A check of `weatherlight doctor` and of every start.
    Check,
    /// What is wrong with a setting.
    Setting,
    /// Why a worker ended.
    Restart,
    /// A state of a worker, a breaker or the service.
    State,
    /// The log behind the bus failed.
    Log,
    /// Why an entry of the bus was refused by its reader.
    Refusal,
    /// What an entry's signature says.
    Signature,
    /// What became of a publish.
    Publish,
    /// Why a message became a dead letter.
    DeadLetter,
    /// Why a dead letter was not replayed.
    Replay,
    /// Why the supervisor did not do what an operator asked for.
    Control,
    /// Why a request over HTTP was refused.
    Http,
    /// The library of kernels could not be opened.
    Library,
    /// Why a kernel was not to be had.
    Kernel,
    /// Why an attempt of the forge failed.
    Forge,
    /// Why a command for a seed was rejected.
    Command,
    /// Why a policy update was refused.
    Policy,
    /// Why the policy decided as it did.
    Decision,
    /// A rule of the alerts.
    Alert,
}

impl Family {
    /// Every family, in the order in which they are listed.
    pub const ALL: [Self; 20] = [
        Self::Exit,
        Self::Check,
        Self::Setting,
        Self::Restart,
        Self::State,
        Self::Log,
        Self::Refusal,
        Self::Signature,
        Self::Publish,
        Self::DeadLetter,
        Self::Replay,
        Self::Control,
        Self::Http,
        Self::Library,
        Self::Kernel,
        Self::Forge,
        Self::Command,
        Self::Policy,
        Self::Decision,
        Self::Alert,
    ];

    /// Its word in `family/code`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Check => "check",
            Self::Setting => "setting",
            Self::Restart => "restart",
            Self::State => "state",
            Self::Log => "log",
            Self::Refusal => "refusal",
            Self::Signature => "signature",
            Self::Publish => "publish",
            Self::DeadLetter => "dead_letter",
            Self::Replay => "replay",
            Self::Control => "control",
            Self::Http => "http",
            Self::Library => "library",
            Self::Kernel => "kernel",
            Self::Forge => "forge",
            Self::Command => "command",
            Self::Policy => "policy",
            Self::Decision => "decision",
            Self::Alert => "alert",
        }
    }

    /// What its codes are about, and where they are seen.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Exit => "How a command or the service ended: its exit code.",
            Self::Check => {
                "What `weatherlight doctor` and every start look at; the word before each finding."
            }
            Self::Setting => {
                "What is wrong with a setting, as `weatherlight config check` says it."
            }
            Self::Restart => {
                "Why a worker ended: `weatherlight workers show NAME` and `recent_restarts` in /healthz."
            }
            Self::State => "States of workers, breakers and the service, in `status` and /healthz.",
            Self::Log => "The log behind the bus (Redis or the embedded one) failed or refused.",
            Self::Refusal => {
                "Why a reader refused an entry of the bus: label `reason` of `oona_refused_total`. A refused entry is acknowledged and never retried."
            }
            Self::Signature => "What an entry's signature says, in `bus tap` and `dlq show`.",
            Self::Publish => {
                "What became of a publish: label `outcome` of `oona_publish_total`, and why."
            }
            Self::DeadLetter => "Why a message became a dead letter, in `weatherlight dlq list`.",
            Self::Replay => "Why `weatherlight dlq replay` left a dead letter where it was.",
            Self::Control => "Why the supervisor did not do what an operator asked for.",
            Self::Http => {
                "Why a request over HTTP was refused: `reason` in the answer, label of `nissa_http_refused_total`."
            }
            Self::Library => "Why the library of kernels did not open.",
            Self::Kernel => {
                "Why a request for a kernel was answered with an error, or a fetch failed: `reason` of KernelArtifactError and of a seed's events."
            }
            Self::Forge => {
                "Why an attempt to compile failed: label `reason` of `tezzeret_failed_attempts_total`."
            }
            Self::Command => {
                "Why a command for a seed was rejected before anything of it was executed."
            }
            Self::Policy => "Why a policy update was refused; the policy in force stays.",
            Self::Decision => {
                "Why the policy did what it did, in commands, events and field reports. Not errors."
            }
            Self::Alert => {
                "Rules that raise an alert, on the page, in /metrics/summary and `weatherlight top`."
            }
        }
    }
}

/// One code and all there is to say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Code {
    /// Where it belongs.
    pub family: Family,
    /// The code as it is shown, logged and counted.
    pub code: &'static str,
    /// Other words by which people meet it.
    pub also: &'static [&'static str],
    /// It in a few words.
    pub title: &'static str,
    /// What it says about the world.
    pub meaning: &'static str,
    /// What it usually comes from.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

const fn row(
    family: Family,
    code: &'static str,
    title: &'static str,
    meaning: &'static str,
    cause: &'static str,
    remedy: &'static str,
) -> Code {
    Code { family, code, also: &[], title, meaning, cause, remedy }
}

const fn also(also: &'static [&'static str], code: Code) -> Code {
    Code { also, ..code }
}

/// Every code, in the order of the families.
pub fn all() -> impl Iterator<Item = &'static Code> {
    let tables = [
        process::CODES,
        settings::CODES,
        bus::CODES,
        http::CODES,
        kernels::CODES,
        policy::CODES,
        alerts::CODES,
    ];
    let rows = move |family| {
        tables.into_iter().flatten().filter(move |code: &&Code| code.family == family)
    };
    Family::ALL.into_iter().flat_map(rows)
}

/// The codes that a word names: `code`, `family/code`, or another word for it.
pub fn find(word: &str) -> Vec<&'static Code> {
    let wanted = word.trim().to_ascii_lowercase();
    let (family, wanted) = match wanted.split_once('/') {
        Some((family, code)) => (Some(family.to_owned()), code.to_owned()),
        None => (None, wanted),
    };
    let wanted = wanted.replace([' ', '-'], "_");
    let same = |word: &str| word.to_ascii_lowercase().replace([' ', '-'], "_") == wanted;
    all()
        .filter(|code| family.as_ref().is_none_or(|family| code.family.word() == *family))
        .filter(|code| same(code.code) || code.also.iter().any(|word| same(word)))
        .collect()
}

/// Known codes like an unknown one, the likest first.
pub fn like(word: &str) -> Vec<&'static str> {
    let wanted = word.trim().to_ascii_lowercase().replace([' ', '-'], "_");
    let wanted = wanted.rsplit('/').next().unwrap_or_default();
    let mut found: Vec<(f64, &str)> = all()
        .map(|code| {
            let likeness = strsim::jaro_winkler(&code.code.to_ascii_lowercase(), wanted);
            let holds = wanted.len() > 3 && code.code.contains(wanted);
            (if holds { likeness.max(0.9) } else { likeness }, code.code)
        })
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let mut codes: Vec<&str> = found.into_iter().map(|(_, code)| code).collect();
    codes.dedup();
    codes.truncate(3);
    codes
}
