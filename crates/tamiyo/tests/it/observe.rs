//! Outcomes: reported when the effect is known, and never before.

use std::collections::BTreeSet;

use leyline::Stage;
use leyline::wire::{FieldReport, FieldReportOutcome as Outcome};
use tamiyo::{Config, EFFECT};

use crate::rig::{Rig, config};

/// Plays until `count` reports have come, at most 50 epochs.
fn reports(rig: &mut Rig, loss: f32, count: usize) -> Vec<FieldReport> {
    let mut found = Vec::new();
    for _ in 0..50 {
        found.extend(rig.epoch(loss).reports);
        if found.len() >= count {
            return found;
        }
    }
    panic!("{} reports in 50 epochs", found.len());
}

fn of<'a>(reports: &'a [FieldReport], command: &str) -> &'a FieldReport {
    reports.iter().find(|report| report.command_id == command).unwrap()
}

#[test]
fn a_germination_is_judged_by_its_effect_once_the_seed_is_live() {
    for (effect, outcome) in
        [(-0.2, Outcome::Success), (0.001, Outcome::Neutral), (0.04, Outcome::Regression)]
    {
        let mut rig = Rig::new(config());
        let command = rig.until_command(1.0).command.unwrap();
        for stage in [Stage::Germinated, Stage::Training, Stage::Blending, Stage::Shadowing] {
            rig.stage("a", stage);
            assert_eq!(rig.epoch(1.0).reports, [], "nothing is known in {stage:?}");
        }
        rig.stage("a", Stage::Probationary);
        rig.metric("a", EFFECT, effect);
        let reports = reports(&mut rig, 1.0, 1);
        let report = of(&reports, &command.command_id);
        assert_eq!(report.outcome(), outcome, "{effect}");
        assert_eq!(report.metrics["effect"], effect);
        assert_eq!(report.seed_id, "a");
        assert!(!report.blueprint_id.is_empty());
        assert_eq!(report.observation_window_epochs, 5);
        assert_eq!(report.tamiyo_policy_version, "tamiyo_linear_v1");
        assert_eq!(report.follow_up_actions.is_empty(), outcome != Outcome::Regression);
    }
}

#[test]
fn the_window_counts_epochs_of_a_live_seed() {
    let mut settings = config();
    settings.reports.window_epochs = 3;
    settings.growth.probation_epochs_min = 10;
    settings.growth.probation_epochs_max = 20;
    let mut rig = Rig::new(settings);
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    assert_eq!(rig.epoch(1.0).reports, []);
    assert_eq!(rig.epoch(1.0).reports.len(), 1);
}

#[test]
fn several_packets_of_one_epoch_are_one_epoch() {
    let mut settings = config();
    settings.reports.window_epochs = 3;
    let mut rig = Rig::new(settings);
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    for _ in 0..10 {
        let context = rig.context();
        assert_eq!(rig.policy.decide(&rig.state, &context).reports, []);
    }
}

#[test]
fn what_never_blended_is_aborted() {
    // The kernel was not to be had.
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.stage("a", Stage::Germinated);
    rig.epoch(1.0);
    rig.stage("a", Stage::Embargoed);
    assert_eq!(rig.epoch(1.0).reports[0].outcome(), Outcome::Aborted);
    // The command was not carried out at all.
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    assert_eq!(reports(&mut rig, 1.0, 1)[0].outcome(), Outcome::Aborted);
}

#[test]
fn a_seed_taken_away_is_no_success() {
    for (effect, outcome) in [(0.3, Outcome::Regression), (-0.3, Outcome::Neutral)] {
        let mut rig = Rig::new(config());
        rig.until_command(1.0);
        rig.stage("a", Stage::Germinated);
        rig.epoch(1.0);
        rig.stage("a", Stage::Blending);
        rig.metric("a", EFFECT, effect);
        rig.epoch(1.0);
        rig.stage("a", Stage::Culled);
        assert_eq!(rig.epoch(1.0).reports[0].outcome(), outcome, "{effect}");
    }
}

#[test]
fn keeping_and_culling_are_reported_too() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    rig.metric("a", EFFECT, -0.5);
    let keep = rig.until_command(1.0).command.unwrap();
    rig.stage("a", Stage::Fossilized);
    let found = rig.epoch(0.5).reports;
    assert_eq!(of(&found, &keep.command_id).outcome(), Outcome::Success);
}

#[test]
fn a_run_that_ends_reports_what_is_still_observed() {
    let mut rig = Rig::new(config());
    let command = rig.until_command(1.0).command.unwrap();
    rig.stage("a", Stage::Training);
    rig.epoch(1.0);
    let context = rig.context();
    let reports = rig.policy.finish(&rig.state, &context);
    assert_eq!(of(&reports, &command.command_id).outcome(), Outcome::Aborted);
    assert_eq!(rig.policy.finish(&rig.state, &context), []);
}

#[test]
fn ids_are_unique_and_ordered_by_time() {
    let mut rig = Rig::new(Config { ..config() });
    let mut found = Vec::new();
    for _ in 0..80 {
        found.extend(rig.epoch(1.0).reports.into_iter().map(|report| report.report_id));
    }
    assert!(found.len() > 3, "{found:?}");
    assert!(found.is_sorted(), "{found:?}");
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
}
