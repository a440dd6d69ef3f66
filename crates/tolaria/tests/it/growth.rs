//! What growth must do to the tasks of the demonstration.

use std::time::Duration;

use leyline::Message;
use leyline::ids::RunId;
use tokio_util::sync::CancellationToken;
use tolaria::data::Source;
use tolaria::{Config, Outcome, Prepared};

use crate::kitchen::{Served, good, interpreted, serve};

fn config(source: Source, seed: u64) -> Config {
    Config {
        epoch_time_min: Duration::ZERO,
        attach_after_epochs: 6,
        kernel_wait_max: Duration::from_secs(30),
        ..Config::new(RunId::from("run"), source, seed)
    }
}

fn run(source: Source, seed: u64) -> Served {
    serve(Prepared::load(config(source, seed)).unwrap(), good, &CancellationToken::new())
}

fn summary(outcome: &Outcome) -> String {
    let stages: Vec<String> = outcome
        .journeys
        .iter()
        .map(|journey| {
            let milestones: Vec<_> = journey
                .milestones
                .iter()
                .map(|m| format!("{}@{}", m.stage.name(), m.epoch))
                .collect();
            format!(
                "{} {} {} {:?} {:?}",
                journey.seed,
                journey.blueprint,
                milestones.join(" "),
                journey.losses,
                journey.reason
            )
        })
        .collect();
    format!(
        "{:?} before {:?} grown {:?} alone {:?} fixed {:?} rollbacks {} step {:.0} us hook {:.0} us\n  {}",
        outcome.end,
        outcome.before,
        outcome.grown,
        outcome.host_alone,
        outcome.fixed,
        outcome.rollbacks,
        outcome.step_us,
        outcome.hook_us,
        stages.join("\n  ")
    )
}

#[test]
fn spirals_are_learnt_by_growing_and_not_by_the_host_alone() {
    for seed in 1..=5 {
        let served = run(Source::Spirals(Default::default()), seed);
        assert_eq!(served.count("tolaria_stale_passes_total"), 0, "seed {seed}");
        let outcome = served.outcome.unwrap();
        println!("seed {seed}: {}", summary(&outcome));
        assert!(outcome.grown.accuracy >= 0.95, "seed {seed}: {}", summary(&outcome));
        assert!(
            outcome.host_alone.as_ref().unwrap().accuracy < 0.70,
            "seed {seed}: {}",
            summary(&outcome)
        );
    }
}

#[test]
fn xor_goes_from_half_to_whole() {
    for seed in 1..=5 {
        let outcome = run(Source::Xor, seed).outcome.unwrap();
        let alone = outcome.host_alone.as_ref().map(|figures| figures.accuracy);
        let found = (outcome.before.accuracy, alone, outcome.grown.accuracy);
        assert_eq!(found, (0.5, Some(0.5), 1.0), "seed {seed}: {}", summary(&outcome));
    }
}

/// What the forge found unsafe to plan is grown all the same, slower and with the same result.
#[test]
fn a_kernel_that_may_not_be_planned_is_grown_by_the_interpreter() {
    let prepared = || Prepared::load(config(Source::Xor, 1)).unwrap();
    let planned = run(Source::Xor, 1);
    let served = serve(prepared(), interpreted, &CancellationToken::new());
    assert_eq!(planned.count("tolaria_interpreted_passes_total"), 0);
    assert!(served.count("tolaria_interpreted_passes_total") > 5, "{}", served.counted);
    for served in [&planned, &served] {
        assert_eq!(served.count("tolaria_stale_passes_total"), 0);
    }
    let [planned, served] = [planned, served].map(|served| served.outcome.unwrap());
    assert_eq!(served.grown.accuracy, 1.0, "{}", summary(&served));
    assert_eq!(served.history.len(), planned.history.len());
    for (one, other) in served.history.iter().zip(&planned.history) {
        let difference = (one.validation_loss - other.validation_loss).abs();
        assert!(difference < 1e-3, "epoch {}: {difference}", one.epoch);
    }
}

#[test]
fn moons_are_learnt_better_than_by_a_line() {
    let outcome = run(Source::Moons(Default::default()), 1).outcome.unwrap();
    println!("{}", summary(&outcome));
    assert!(outcome.grown.accuracy > outcome.host_alone.as_ref().unwrap().accuracy + 0.05);
}

#[test]
fn the_same_seed_gives_the_same_curve() {
    let one = run(Source::Moons(Default::default()), 3).outcome.unwrap();
    let two = run(Source::Moons(Default::default()), 3).outcome.unwrap();
    assert!(one.is_repeatable() && two.is_repeatable());
    assert_eq!(one.history, two.history);
    assert_eq!(
        (one.host_alone_accuracy, one.fixed_accuracy),
        (two.host_alone_accuracy, two.fixed_accuracy)
    );
    let other = run(Source::Moons(Default::default()), 4).outcome.unwrap();
    assert_ne!(one.history, other.history);
}

#[test]
fn state_commands_and_reports_are_told() {
    let served = run(Source::Xor, 2);
    let outcome = served.outcome.unwrap();
    let states =
        served.sent.iter().filter(|sent| matches!(sent.message, Message::SystemState(_))).count();
    assert_eq!(states, outcome.history.len());
    let commands =
        served.sent.iter().filter(|sent| matches!(sent.message, Message::Command(_))).count();
    assert!(commands >= 1);
    assert_eq!(served.progress.phase, tolaria::Phase::Finished);
    assert_eq!(served.progress.epoch as usize, outcome.history.len());
}

/// Below 0.7 the observatory would raise an alert, in a run in which nothing is wrong.
#[test]
fn the_policy_sees_what_it_can_from_the_first_packet_on() {
    let served = run(Source::Xor, 2);
    let mut shares = Vec::new();
    for sent in &served.sent {
        let Message::Telemetry(packet) = &sent.message else { continue };
        let points = packet.metrics.iter();
        let coverage = points.filter(|point| point.name == "tamiyo.gnn.feature_coverage");
        shares.extend(coverage.map(|point| point.value));
    }
    assert!(shares.len() > 1 && shares.iter().all(|share| *share >= 0.7), "{shares:?}");
}

#[test]
fn the_report_stands_alone_and_escapes() {
    let mut prepared = Prepared::load(config(Source::Xor, 1)).unwrap();
    prepared.data.name = "<b>xor</b>".to_owned();
    let outcome = serve(prepared.clone(), good, &CancellationToken::new()).outcome.unwrap();
    let about = tolaria::report::About {
        prepared: &prepared,
        command: "weatherlight demo --task \"xor\" && echo <done>",
        version: "0.1.0",
        ended_unix_ms: 1_767_225_599_000,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.html");
    tolaria::report::write_html(&path, &about, &outcome).unwrap();
    let page = std::fs::read_to_string(&path).unwrap();
    for outside in ["http://", "https://", "<script", "src=", "<b>xor", "<done>", "NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }
    for inside in
        ["prefers-color-scheme", "fossilized", "BP009", "&lt;b&gt;xor", "Decision boundary"]
    {
        assert!(page.contains(inside), "{inside}");
    }
    for tag in ["svg", "figure", "table", "div", "main"] {
        let count = |pattern: String| page.matches(&pattern).count();
        assert_eq!(count(format!("<{tag}")), count(format!("</{tag}>")), "{tag}");
    }
    if let Some(keep) = std::env::var_os("TOLARIA_REPORT") {
        std::fs::copy(&path, keep).unwrap();
    }
}

#[test]
fn a_seed_goes_its_way_without_a_pause_and_without_hurting() {
    for seed in 1..=5 {
        let outcome = run(Source::Spirals(Default::default()), seed).outcome.unwrap();
        let journey = &outcome.journeys[0];
        let epoch =
            |name: &str| journey.milestones.iter().find(|m| m.stage.name() == name).unwrap().epoch;
        // Four epochs of blending, half an epoch of shadowing, eight of probation.
        assert_eq!(epoch("shadowing"), epoch("blending") + 4, "{}", summary(&outcome));
        assert_eq!(epoch("probationary"), epoch("shadowing") + 1, "{}", summary(&outcome));
        assert_eq!(epoch("fossilized"), epoch("probationary") + 7, "{}", summary(&outcome));
        let blending = epoch("blending") as usize;
        let before = outcome.history[blending - 1].validation_loss;
        for after in &outcome.history[blending..epoch("fossilized") as usize] {
            assert!(after.validation_loss < before, "seed {seed}, epoch {}", after.epoch);
        }
    }
}
