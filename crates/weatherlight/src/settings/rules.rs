//! What must hold between settings. Each rule is one small pure function; the crates judge what is
//! theirs alone.

use std::time::Duration;

use super::fault::{Fault, Origin, Party, Problem};
use super::resolve::InForce;
use super::table::EsperSettings;
use crate::wiring;

/// A rule says what is wrong and what to do. The settings that it names are those it is about, and
/// are shown with their values and where those came from.
type Rule = fn(&EsperSettings) -> Option<String>;

/// What must hold: else the settings are refused.
const DEMANDS: &[Rule] =
    &[claims_outlast_heartbeats, budget_outlasts_heartbeats, streams_have_names_of_their_own];

/// What a person should look at: the settings can be used all the same.
const ADVICE: &[Rule] = &[
    previous_secret_differs,
    drain_is_long_enough,
    drain_is_short_enough,
    seeds_wait_for_the_forge,
    errors_outlast_the_telemetry_interval,
    redis_settings_need_redis,
    certificates_need_encryption,
];

/// Open requests of the endpoint and what trainers have not published are given this long.
const DRAIN_MIN: Duration = Duration::from_secs(2);
/// What a stop takes beyond the drain, at most: the log is left tidy.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// systemd's stop time-out where a unit names none (`DefaultTimeoutStopSec`).
const SYSTEMD_STOP: Duration = Duration::from_secs(90);
/// For how long the service's own packets call an error recent.
const ERROR_IS_RECENT: Duration = Duration::from_secs(60);

/// Every contradiction, with the settings it is about. Pure.
pub(super) fn contradictions(settings: &EsperSettings, in_force: &[InForce]) -> Vec<Fault> {
    let mut messages: Vec<String> = DEMANDS.iter().filter_map(|rule| rule(settings)).collect();
    let has_doubles = streams_have_names_of_their_own(settings).is_some();
    messages.extend(
        of_the_crates(settings)
            .into_iter()
            // The rule here names the streams; that of the crate only says that there are two.
            .filter(|message| !(has_doubles && message.starts_with("OONA_*_STREAM gives"))),
    );
    messages.into_iter().map(|message| fault(message, in_force)).collect()
}

/// What can be used and should be looked at. Pure.
pub(super) fn advice(settings: &EsperSettings, in_force: &[InForce]) -> Vec<Fault> {
    ADVICE.iter().filter_map(|rule| rule(settings)).map(|text| fault(text, in_force)).collect()
}

/// The settings that a sentence names are those it is about.
fn fault(message: String, in_force: &[InForce]) -> Fault {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named: Vec<&str> = message.split(|c: char| !is_name(c)).collect();
    let parties: Vec<Party> = in_force
        .iter()
        .filter(|row| named.contains(&row.definition.env))
        .map(|row| Party {
            name: row.definition.env,
            shown: row.shown.clone(),
            origin: row.origin.clone(),
        })
        .collect();
    // What somebody wrote is what somebody can correct.
    let written = parties.iter().find(|party| party.origin != Origin::Default);
    let origin = written.map_or(Origin::Together, |party| party.origin.clone());
    Fault { origin, problem: Problem::Contradiction { message, parties } }
}

/// What each crate finds in its own settings.
fn of_the_crates(settings: &EsperSettings) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    messages.extend(wiring::bus_config(settings).check().iter().map(ToString::to_string));
    messages.extend(wiring::library_config(settings).err().map(|fault| fault.to_string()));
    messages.extend(wiring::policy_config(settings).check().iter().map(ToString::to_string));
    messages.extend(wiring::ingest_config(settings).check().iter().map(ToString::to_string));
    let trusted = wiring::trusted_keys(settings).err();
    messages.extend(trusted.map(|fault| format!("KASMINA_TRUSTED_KEYS: {fault}")));
    let signing = wiring::signing_key(settings).err();
    messages.extend(signing.map(|fault| format!("TEZZERET_SIGNING_KEY: {fault}")));
    let forge = wiring::forge_config(settings).check().err().unwrap_or_default();
    messages.extend(forge.iter().map(ToString::to_string));
    messages
}

fn claims_outlast_heartbeats(settings: &EsperSettings) -> Option<String> {
    let least = 3 * oona::Heartbeat::INTERVAL;
    (settings.oona_claim_idle <= least).then(|| {
        format!(
            "OONA_CLAIM_IDLE_MS must be above three heartbeats ({least:?}), else the entries of a \
             consumer that lives are taken over"
        )
    })
}

fn budget_outlasts_heartbeats(settings: &EsperSettings) -> Option<String> {
    let least = 2 * oona::Heartbeat::INTERVAL;
    (settings.heartbeat_budget < least).then(|| {
        format!(
            "WEATHERLIGHT_HEARTBEAT_BUDGET_S must be at least two heartbeats ({least:?}), else \
             healthy workers look hung"
        )
    })
}

fn streams_have_names_of_their_own(settings: &EsperSettings) -> Option<String> {
    let names = [
        ("OONA_NORMAL_STREAM", &settings.oona_normal_stream),
        ("OONA_EMERGENCY_STREAM", &settings.oona_emergency_stream),
        ("OONA_TELEMETRY_STREAM", &settings.oona_telemetry_stream),
        ("OONA_POLICY_STREAM", &settings.oona_policy_stream),
        ("OONA_KERNEL_REQUEST_STREAM", &settings.oona_kernel_request_stream),
        ("OONA_KERNEL_READY_STREAM", &settings.oona_kernel_ready_stream),
        ("OONA_KERNEL_ERROR_STREAM", &settings.oona_kernel_error_stream),
        ("OONA_DEAD_LETTER_STREAM", &settings.oona_dead_letter_stream),
    ];
    let is_double = |position: usize| {
        names.iter().enumerate().any(|(other, (_, name))| {
            other != position && Some(name) == names.get(position).map(|(_, name)| name)
        })
    };
    let doubles: Vec<&str> = (0..names.len())
        .filter(|&at| is_double(at))
        .filter_map(|at| Some(names.get(at)?.0))
        .collect();
    (!doubles.is_empty())
        .then(|| format!("{} must not name one stream; give each its own", doubles.join(" and ")))
}

fn previous_secret_differs(settings: &EsperSettings) -> Option<String> {
    let previous = settings.leyline_secret_previous.as_ref()?;
    (settings.leyline_secret.as_ref() == Some(previous)).then(|| {
        "ESPER_LEYLINE_SECRET_PREVIOUS is the same as ESPER_LEYLINE_SECRET, so that nothing is being \
         rotated; remove it, or keep the old secret there"
            .to_owned()
    })
}

fn drain_is_long_enough(settings: &EsperSettings) -> Option<String> {
    (settings.drain_timeout < DRAIN_MIN).then(|| {
        format!(
            "WEATHERLIGHT_DRAIN_TIMEOUT_S is below the {DRAIN_MIN:?} that open requests and \
             unpublished reports are given; they may be cut off"
        )
    })
}

fn drain_is_short_enough(settings: &EsperSettings) -> Option<String> {
    (settings.drain_timeout + CLOSE_MAX >= SYSTEMD_STOP).then(|| {
        format!(
            "WEATHERLIGHT_DRAIN_TIMEOUT_S and the {CLOSE_MAX:?} after it reach systemd's own stop \
             time-out of {SYSTEMD_STOP:?}; set TimeoutStopSec in the unit above both together"
        )
    })
}

fn seeds_wait_for_the_forge(settings: &EsperSettings) -> Option<String> {
    let forge = settings.tezzeret_deadline.saturating_mul(settings.tezzeret_attempts_max);
    (settings.kasmina_fetch_deadline < forge).then(|| {
        format!(
            "KASMINA_FETCH_DEADLINE_S is below TEZZERET_DEADLINE_S times TEZZERET_ATTEMPTS_MAX \
             ({forge:?}): seeds are given up while their kernel may still be compiled"
        )
    })
}

fn errors_outlast_the_telemetry_interval(settings: &EsperSettings) -> Option<String> {
    (settings.telemetry_interval > ERROR_IS_RECENT).then(|| {
        format!(
            "WEATHERLIGHT_TELEMETRY_INTERVAL_S is above {ERROR_IS_RECENT:?}: an error is no longer \
             recent when the next packet would tell of it"
        )
    })
}

fn redis_settings_need_redis(settings: &EsperSettings) -> Option<String> {
    if settings.redis_url.is_some() {
        return None;
    }
    let given = [
        ("REDIS_PASSWORD", settings.redis_password.is_some()),
        ("OONA_REDIS_CA_FILE", settings.oona_redis_ca_file.is_some()),
        ("OONA_REDIS_CERT_FILE", settings.oona_redis_cert_file.is_some()),
        ("OONA_REDIS_KEY_FILE", settings.oona_redis_key_file.is_some()),
    ];
    let given: Vec<&str> =
        given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    (!given.is_empty())
        .then(|| format!("{} without REDIS_URL: the embedded log is used", given.join(", ")))
}

fn certificates_need_encryption(settings: &EsperSettings) -> Option<String> {
    let url = settings.redis_url.as_ref()?;
    let has_files =
        settings.oona_redis_ca_file.is_some() || settings.oona_redis_cert_file.is_some();
    (has_files && !url.expose().starts_with("rediss")).then(|| {
        "OONA_REDIS_CA_FILE and OONA_REDIS_CERT_FILE have no effect: REDIS_URL does not begin with \
         rediss, so the connection is not encrypted"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, resolve};
    use super::*;

    fn sources(overrides: &[&str]) -> Sources {
        let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
        Sources { overrides, ..Sources::default() }
    }

    /// The settings are refused by one fault that names exactly these.
    #[track_caller]
    fn refused(overrides: &[&str], expected: &[&str]) {
        let faults = resolve(&sources(overrides)).unwrap_err();
        let [Fault { problem: Problem::Contradiction { parties, .. }, .. }] = faults.0.as_slice()
        else {
            panic!("{faults}");
        };
        assert_eq!(
            parties.iter().map(|party| party.name).collect::<Vec<_>>(),
            expected,
            "{faults}"
        );
    }

    /// The settings are taken, with one warning that names exactly these, or none.
    #[track_caller]
    fn warned(overrides: &[&str], expected: &[&str]) {
        let warnings = resolve(&sources(overrides)).unwrap().warnings;
        let mut named: Vec<&str> = Vec::new();
        for warning in &warnings {
            let Problem::Contradiction { parties, .. } = &warning.problem else {
                panic!("{warning}");
            };
            named.extend(parties.iter().map(|party| party.name));
        }
        assert_eq!(named, expected, "{warnings:?}");
    }

    #[test]
    fn claims_come_after_three_heartbeats() {
        refused(&["OONA_CLAIM_IDLE_MS=3000"], &["OONA_CLAIM_IDLE_MS"]);
        warned(&["OONA_CLAIM_IDLE_MS=3001"], &[]);
    }

    #[test]
    fn the_budget_is_two_heartbeats_or_more() {
        let settings = resolve(&sources(&[])).unwrap().settings;
        let of = |budget_ms| {
            let heartbeat_budget = Duration::from_millis(budget_ms);
            budget_outlasts_heartbeats(&EsperSettings { heartbeat_budget, ..settings.clone() })
        };
        assert!(of(1999).is_some() && of(2000).is_none());
    }

    #[test]
    fn streams_that_share_a_name_are_named() {
        refused(
            &["OONA_POLICY_STREAM=one", "OONA_TELEMETRY_STREAM=one"],
            &["OONA_TELEMETRY_STREAM", "OONA_POLICY_STREAM"],
        );
        refused(&["OONA_POLICY_STREAM=oona.normal"], &["OONA_NORMAL_STREAM", "OONA_POLICY_STREAM"]);
    }

    #[test]
    fn a_contradiction_says_values_and_places() {
        let faults = resolve(&sources(&["OONA_BACKPRESSURE_THRESHOLD=20000"])).unwrap_err();
        let text = faults.to_string();
        for expected in [
            "command line --set: OONA_BACKPRESSURE_THRESHOLD does not lie between",
            "OONA_BACKPRESSURE_THRESHOLD=20000 (command line --set)",
            "OONA_QUEUE_DEPTH_MAX=10000 (default)",
            "OONA_EMERGENCY_THRESHOLD unset",
        ] {
            assert!(text.contains(expected), "{expected}\nmissing in\n{text}");
        }
    }

    #[test]
    fn a_previous_secret_that_is_the_current_one_rotates_nothing() {
        let current = "ESPER_LEYLINE_SECRET=the secret of all programs";
        let names = ["ESPER_LEYLINE_SECRET", "ESPER_LEYLINE_SECRET_PREVIOUS"];
        warned(&[current, "ESPER_LEYLINE_SECRET_PREVIOUS=the secret of all programs"], &names);
        warned(&[current, "ESPER_LEYLINE_SECRET_PREVIOUS=a former secret of all"], &[]);
    }

    #[test]
    fn a_drain_has_a_least_and_a_greatest_length() {
        for (seconds, expected) in [("1", 1), ("2", 0), ("84", 0), ("85", 1)] {
            let drain = format!("WEATHERLIGHT_DRAIN_TIMEOUT_S={seconds}");
            warned(&[&drain], &["WEATHERLIGHT_DRAIN_TIMEOUT_S"][..expected]);
        }
    }

    #[test]
    fn a_seed_waits_as_long_as_the_forge_may_take() {
        let names = ["TEZZERET_DEADLINE_S", "TEZZERET_ATTEMPTS_MAX", "KASMINA_FETCH_DEADLINE_S"];
        warned(&["TEZZERET_DEADLINE_S=91"], &names);
        warned(&["TEZZERET_DEADLINE_S=90"], &[]);
    }

    #[test]
    fn packets_come_while_an_error_is_recent() {
        let name = "WEATHERLIGHT_TELEMETRY_INTERVAL_S";
        warned(&[&format!("{name}=61")], &[name]);
        warned(&[&format!("{name}=60")], &[]);
    }

    #[test]
    fn settings_of_redis_are_of_no_use_without_it() {
        warned(&["REDIS_PASSWORD=hunter2"], &["REDIS_URL", "REDIS_PASSWORD"]);
        warned(&["REDIS_PASSWORD=hunter2", "REDIS_URL=redis://h"], &[]);
        let files = ["REDIS_URL=redis://h", "OONA_REDIS_CA_FILE=ca.pem"];
        let names = ["REDIS_URL", "OONA_REDIS_CA_FILE", "OONA_REDIS_CERT_FILE"];
        warned(&files, &names);
        warned(&["REDIS_URL=rediss://h", "OONA_REDIS_CA_FILE=ca.pem"], &[]);
    }

    #[test]
    fn the_defaults_need_no_advice() {
        warned(&[], &[]);
    }
}
