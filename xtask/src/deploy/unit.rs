//! The systemd unit and its drop-ins.

use std::path::Path;

use anyhow::Result;

use super::known::Known;
use super::{read, seconds};

pub const UNIT: &str = "deploy/systemd/weatherlight.service";
pub const DROP_IN: &str = "deploy/systemd/weatherlight.service.d/redis.conf";

/// What a service one can trust must have, as `key=value`.
const PROMISES: [&str; 6] = [
    "Type=notify",
    "NotifyAccess=main",
    "Restart=on-failure",
    // What a wrong configuration ends with: starting again would change nothing.
    "RestartPreventExitStatus=78",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
];

pub fn faults(root: &Path, known: &Known) -> Result<Vec<String>> {
    let mut faults = faults_of_unit(&read(root, UNIT)?, known)?;
    faults.extend(variables(DROP_IN, &read(root, DROP_IN)?, known));
    Ok(faults)
}

fn faults_of_unit(text: &str, known: &Known) -> Result<Vec<String>> {
    let mut faults = variables(UNIT, text, known);
    for promise in PROMISES {
        if !text.lines().any(|line| line == promise) {
            faults.push(format!("{UNIT}: {promise} is missing"));
        }
    }
    let longer = [
        ("TimeoutStopSec", known.stop_s()?, "WEATHERLIGHT_DRAIN_TIMEOUT_S and closing the log"),
        ("WatchdogSec", known.seconds("WEATHERLIGHT_HEARTBEAT_BUDGET_S")?, "a heartbeat budget"),
    ];
    for (key, least, what) in longer {
        match value(text, key).and_then(seconds) {
            Some(given) if given > least => {}
            given => faults.push(format!(
                "{UNIT}: {key} must be longer than {what}, {least} s; it is {given:?}"
            )),
        }
    }
    Ok(faults)
}

/// Variables that are no settings, in `Environment=` lines.
fn variables(file: &str, text: &str, known: &Known) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Environment="))
        .filter_map(|line| Some(line.trim_matches('"').split_once('=')?.0))
        .filter_map(|name| known.variable(name))
        .map(|fault| format!("{file}: {fault}"))
        .collect()
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::known::tests::known;

    #[test]
    fn a_unit_that_promises_too_little_is_found() {
        let good = format!("{}\nTimeoutStopSec=20\nWatchdogSec=30\n", PROMISES.join("\n"));
        assert!(faults_of_unit(&good, &known()).unwrap().is_empty());
        for (from, to) in [
            ("TimeoutStopSec=20", "TimeoutStopSec=15"),
            ("WatchdogSec=30", "WatchdogSec=10"),
            ("Type=notify", "Type=simple"),
            ("WatchdogSec=30", "WatchdogSec=30\nEnvironment=OONA_TYPO=1"),
        ] {
            let bad = good.replace(from, to);
            assert_eq!(faults_of_unit(&bad, &known()).unwrap().len(), 1, "{to}");
        }
    }
}
