//! The table against the program: every code that can be met has an entry, and no entry is for a
//! code that does not exist.

use std::collections::BTreeSet;

use nissa::{BreakerState, ControlRefused, SystemMode, WorkerState};
use urza::OpenError;

use super::*;
use crate::preflight;
use crate::settings::{DEFINITIONS, Problem};
use crate::supervisor::{Cause, Exit};

/// The codes of an enum's variants. A variant that is not listed does not compile.
macro_rules! variants {
    ($name:ident { $($variant:ident = $code:literal),+ $(,)? }) => {{
        #[allow(dead_code, reason = "it need only compile")]
        fn is_listed(value: &$name) {
            match value { $($name::$variant { .. } => {}),+ }
        }
        vec![$($code),+]
    }};
}

/// The codes that the program has, family by family.
fn existing(family: Family) -> Vec<&'static str> {
    match family {
        Family::Exit => {
            let _ = variants!(Exit {
                Clean = "0",
                Unavailable = "69",
                Software = "70",
                Configuration = "78",
            });
            let codes = [Exit::Clean, Exit::Unavailable, Exit::Software, Exit::Configuration];
            assert_eq!(codes.map(Exit::code), [0, 69, 70, 78]);
            assert_eq!(crate::cli::Failure::unusable("x").code(), 65);
            vec!["0", "2", "65", "69", "70", "78"]
        }
        Family::Check => preflight::CHECKS.to_vec(),
        Family::Setting => variants!(Problem {
            Unknown = "unknown",
            Value = "value",
            Syntax = "syntax",
            Unreadable = "unreadable",
            Twice = "twice",
            NotText = "not_text",
            Contradiction = "contradiction",
            NoEffect = "no_effect",
            OpenToAll = "open_to_all",
        }),
        Family::Restart => variants!(Cause {
            Returned = "returned",
            Failed = "failed",
            Panicked = "panicked",
            Hung = "hung",
            Operator = "operator",
            Parked = "parked",
        }),
        Family::State => {
            let mut states =
                variants!(SystemMode { Operational = "operational", Degraded = "degraded" });
            states.extend(variants!(WorkerState {
                Starting = "starting",
                Running = "running",
                BackingOff = "backing_off",
                Parked = "parked",
                Stopped = "stopped",
            }));
            states.extend(variants!(BreakerState {
                Closed = "closed",
                Open = "open",
                HalfOpen = "half_open",
            }));
            states
        }
        Family::Log => [oona::LogError::CODES, oona::BusError::CODES].concat(),
        Family::Refusal => oona::Refusal::ALL.map(oona::Refusal::label).to_vec(),
        Family::Signature => oona::Mark::ALL.map(oona::Mark::label).to_vec(),
        Family::Publish => {
            let mut codes = vec!["published", "rerouted", "spooled", "refused", "failed"];
            codes.extend(oona::RefusedBecause::ALL.map(oona::RefusedBecause::code));
            codes.extend(oona::PublishError::CODES);
            codes
        }
        Family::DeadLetter => {
            for text in [oona::NEVER_ACKNOWLEDGED, oona::RECEIVER_BUSY, oona::RECEIVER_GONE] {
                assert_eq!(find(text).len(), 1, "{text}");
            }
            vec![
                "letter_never_acknowledged",
                "letter_receiver_busy",
                "letter_receiver_gone",
                "letter_answer_not_taken",
                "letter_answer_not_sent",
            ]
        }
        Family::Replay => oona::ReplayError::CODES.to_vec(),
        Family::Control => variants!(ControlRefused {
            UnknownWorker = "worker_unknown",
            Stopping = "worker_stopping",
            Critical = "worker_critical",
        }),
        Family::Http => nissa::Refusal::ALL.iter().map(|refusal| refusal.as_str()).collect(),
        Family::Library => variants!(OpenError {
            Directory = "library_directory",
            Bucket = "library_bucket",
            Newer = "library_newer",
            Damaged = "library_damaged",
            Catalogue = "library_catalogue",
            Migrate = "library_migrate",
            NoSuchVersion = "library_version",
            Foreign = "library_foreign",
            Unreachable = "library_unreachable",
            Untrusted = "library_untrusted",
        }),
        Family::Kernel => {
            use kasmina::FetchFailure;
            let codes = variants!(FetchFailure {
                MissingArtifact = "missing_artifact",
                ArtifactNotFound = "artifact_not_found",
                ChecksumMismatch = "checksum_mismatch",
                Unavailable = "unavailable",
                Unreadable = "artifact_unreadable",
                DownloadFailed = "download_failed",
                Compiling = "compiling",
                Refused = "",
                TimedOut = "timed_out",
                PublishRefused = "publish_refused",
                BlueprintMismatch = "blueprint_mismatch",
                GuardMismatch = "guard_mismatch",
                IncompatibleSite = "incompatible_site",
                IncompatibleInput = "incompatible_input",
                Untrusted = "untrusted",
                OpenFailed = "open_failed",
                Quarantined = "",
                Cancelled = "cancelled",
            });
            let sent = [
                urza::MISSING_ARTIFACT,
                urza::ARTIFACT_NOT_FOUND,
                urza::CHECKSUM_MISMATCH,
                urza::UNAVAILABLE,
                urza::COMPILING,
            ];
            assert!(sent.iter().all(|reason| codes.contains(reason)));
            let told_apart_by_their_text =
                [urza::DEADLINE_EXCEEDED, urza::INCOMPATIBLE, urza::QUARANTINED];
            assert_eq!(
                FetchFailure::OpenFailed { detail: String::new() }.to_string(),
                "open_failed"
            );
            let codes = codes.into_iter().chain(told_apart_by_their_text);
            codes.filter(|code| !code.is_empty()).collect()
        }
        Family::Forge => {
            use tezzeret::Fault;
            let codes = variants!(Fault {
                Timeout = "Timeout",
                Panic = "Panic",
                Build = "Build",
                Interrupted = "Interrupted",
                Compile = "Compile",
                Library = "Library",
            });
            assert!(Fault::ALL.iter().all(|fault| codes.contains(&format!("{fault:?}").as_str())));
            codes
        }
        Family::Command => {
            use kasmina::Rejection;
            let _ = variants!(Rejection {
                VerifierUnavailable = "",
                MissingSignature = "",
                InvalidSignature = "",
                MissingCommandId = "",
                NonceReplayed = "",
                MissingTimestamp = "",
                IssuedInFuture = "",
                StaleCommand = "",
                LedgerFull = "",
            });
            Rejection::ALL.map(Rejection::code).to_vec()
        }
        Family::Policy => tamiyo::Rejection::ALL.map(tamiyo::Rejection::name).to_vec(),
        Family::Decision => tamiyo::Reason::ALL.iter().map(|reason| reason.name()).collect(),
        Family::Alert => nissa::alerts::RuleName::ALL.iter().map(|rule| rule.as_str()).collect(),
    }
}

#[test]
fn every_code_has_one_entry_and_every_entry_is_a_code() {
    for family in Family::ALL {
        let existing = existing(family);
        let known: Vec<&str> =
            all().filter(|code| code.family == family).map(|code| code.code).collect();
        let (wanted, found) =
            (BTreeSet::from_iter(existing.clone()), BTreeSet::from_iter(known.clone()));
        assert_eq!(wanted, found, "{family:?}");
        assert_eq!(known.len(), found.len(), "{family:?} has a code twice");
        assert_eq!(existing.len(), wanted.len(), "{family:?} has two things of one code");
    }
}

#[test]
fn every_entry_says_all_four_things() {
    for code in all() {
        for text in [code.title, code.meaning, code.cause, code.remedy] {
            assert!(!text.is_empty() && !text.contains(['|', '\n']), "{code:?}");
        }
        for text in [code.meaning, code.remedy] {
            assert!(text.ends_with('.'), "{text}");
        }
        assert!(!code.title.ends_with('.'), "{code:?}");
    }
}

/// A remedy that names a setting which does not exist helps nobody.
#[test]
fn the_settings_that_are_named_exist() {
    const OTHERS: [&str; 2] = ["ESPER_LEYLINE_SECRET_FILE", "WEATHERLIGHT_HTTP_TOKEN_FILE"];
    let prefixes =
        ["OONA_", "URZA_", "TEZZERET_", "TAMIYO_", "NISSA_", "TOLARIA_", "WEATHERLIGHT_", "ESPER_"];
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut seen = 0;
    for code in all() {
        for text in [code.meaning, code.cause, code.remedy] {
            for word in text.split(|c| !is_part(c)) {
                if !prefixes.iter().any(|prefix| word.starts_with(prefix)) {
                    continue;
                }
                // `OONA_*_STREAM` stands for several.
                let is_pattern = text.contains(&format!("{word}*"));
                let known = DEFINITIONS.iter().any(|row| row.env == word);
                assert!(known || is_pattern || OTHERS.contains(&word), "{word} in {code:?}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "the test looks at nothing: {seen}");
}

#[test]
fn a_word_finds_its_codes() {
    let codes = |word: &str| -> Vec<(Family, &str)> {
        find(word).into_iter().map(|code| (code.family, code.code)).collect()
    };
    let signature = [(Family::Refusal, "bad_signature"), (Family::Signature, "bad_signature")];
    assert_eq!(codes("bad_signature"), signature);
    assert_eq!(codes("Bad-Signature"), signature);
    assert_eq!(codes("signature/bad_signature"), signature[1..]);
    assert_eq!(codes("78"), [(Family::Exit, "78")]);
    assert_eq!(codes("misconfigured"), [(Family::Exit, "78")]);
    assert_eq!(codes("http port"), [(Family::Check, "http port")]);
    assert_eq!(codes("timeout"), [(Family::Forge, "Timeout")]);
    assert_eq!(codes("nonsense"), []);
    assert_eq!(like("bad_signatur").first(), Some(&"bad_signature"));
    assert!(like("unreachable").contains(&"log_unreachable"));
    assert!(like("qqqqq").is_empty());
}
