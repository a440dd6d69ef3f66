//! Every rule watches something that somebody produces.

use std::collections::BTreeMap;
use std::path::Path;

use nissa::Thresholds;
use nissa::alerts::{Condition, table};

/// Names that alerts may rely on, with the crate that produces each. A producer that renames one
/// changes this list in the same commit.
const PRODUCED: [(&str, &str); 14] = [
    ("bsds_hazard_critical", "tamiyo"),
    ("bsds_hazard_high", "tamiyo"),
    ("emergency_signal", "nissa"),
    ("kasmina.isolation.violations", "kasmina"),
    ("nissa.slo.burn_over_limit", "nissa"),
    ("kasmina.breaker.state", "kasmina"),
    ("oona.queue_depth_normal", "nissa"),
    ("tezzeret.breaker.state", "tezzeret"),
    ("tamiyo.blueprint.risk", "tamiyo"),
    ("tamiyo.gnn.feature_coverage", "tamiyo"),
    ("tezzeret.jobs.retried", "tezzeret"),
    ("tezzeret.mode.conservative", "tezzeret"),
    ("tolaria.epoch_hook.latency_ms", "tolaria"),
    ("weatherlight.tasks.backing_off", "weatherlight"),
];

#[test]
fn every_rule_has_a_producer() {
    let produced: BTreeMap<_, _> = PRODUCED.into();
    for rule in table(&Thresholds::default()) {
        assert!(produced.contains_key(rule.metric), "nobody produces {}", rule.metric);
    }
}

/// The source text of a crate, without its tests directory.
fn sources(of: &str) -> String {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("src")];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}

/// The list above is not taken on trust: the name stands in its producer's source. A crate that
/// sends no telemetry yet is let off until it names its first metric.
#[test]
fn every_producer_names_what_it_produces() {
    for (name, producer) in PRODUCED.iter().filter(|(_, producer)| *producer != "nissa") {
        let text = sources(producer);
        let sends_telemetry = text.contains("TelemetryPacket");
        let named = text.contains(&format!("\"{name}\""));
        assert!(named || !sends_telemetry, "{producer} does not produce {name}");
    }
}

#[test]
fn every_name_is_watched_and_every_rule_is_told_to_somebody() {
    let rules = table(&Thresholds::default());
    for (name, _) in PRODUCED {
        assert!(rules.iter().any(|rule| rule.metric == name), "no rule watches {name}");
    }
    for rule in &rules {
        assert!(!rule.routes.is_empty(), "{} is told to nobody", rule.name);
        let same = rules.iter().filter(|other| other.name == rule.name).count();
        assert_eq!(same, 1, "{} stands twice", rule.name);
    }
}

#[test]
fn thresholds_come_from_the_settings() {
    let thresholds = Thresholds { elevated_risk: 0.55, ..Thresholds::default() };
    let rules = table(&thresholds);
    assert!(rules.iter().any(|rule| rule.condition == Condition::AtLeast(0.55)));
}
