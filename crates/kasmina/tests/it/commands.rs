//! Commands: what is rejected, what is refused, what is carried out.

use std::time::Duration;

use kasmina::{CommandError, Config, Effect, FetchFailure, Rejection};
use leyline::Stage;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    CircuitBreakerState, CommandCircuitBreaker, CommandOptimizerAdjustment, CommandType,
    SeedOperation, TelemetryLevel,
};

use crate::rig::{Rig, operation, rig, rig_with};

#[test]
fn a_rejected_command_does_nothing_and_is_an_error_event() {
    let mut rig = rig();
    let payload = operation(SeedOperation::SeedOpGerminate, "BP009");
    let mut forged = rig.command(CommandType::CommandSeed, Some(payload), |_| {});
    forged.target_seed_id = "s2".to_owned();
    let outcome = rig.manager.apply(&forged, rig.now);
    assert_eq!(outcome.unwrap_err(), CommandError::Rejected(Rejection::InvalidSignature));
    assert_eq!(rig.stage(), Stage::Dormant);
    let packets = rig.manager.drain_telemetry(rig.now);
    let event = &packets[0].packet.events[0];
    assert_eq!(event.description, "command_rejected");
    assert_eq!(event.level(), TelemetryLevel::Error);
    assert_eq!(event.attributes["reason"], "invalid_signature");
}

#[test]
fn a_command_is_carried_out_once() {
    let mut rig = rig();
    let payload = operation(SeedOperation::SeedOpGerminate, "BP009");
    let command = rig.command(CommandType::CommandSeed, Some(payload), |_| {});
    rig.manager.apply(&command, rig.now).unwrap();
    rig.operate(SeedOperation::SeedOpCancel).unwrap();
    let again = rig.manager.apply(&command, rig.now);
    assert_eq!(again.unwrap_err(), CommandError::Rejected(Rejection::NonceReplayed));
    assert_eq!(rig.stage(), Stage::Dormant);
}

#[test]
fn germination_without_a_blueprint_or_with_nan_is_refused() {
    let mut rig = rig();
    let blank = operation(SeedOperation::SeedOpGerminate, " ");
    let error = rig.apply(CommandType::CommandSeed, Some(blank), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "seed s1: gate g0_sanity failed: missing blueprint id");
    let mut nan = operation(SeedOperation::SeedOpGerminate, "BP009");
    if let Payload::SeedOperation(operation) = &mut nan {
        operation.parameters.insert("width".to_owned(), f32::NAN);
    }
    let error = rig.apply(CommandType::CommandSeed, Some(nan), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "seed s1: gate g0_sanity failed: parameter width invalid");
    assert_eq!(rig.stage(), Stage::Dormant);
}

/// Weakness 80: a pause without a target was ignored.
#[test]
fn a_command_must_say_for_which_seed() {
    let mut rig = rig();
    let nobody = |command: &mut leyline::wire::AdaptationCommand| command.target_seed_id.clear();
    let pause = rig.apply(CommandType::CommandPause, None, nobody);
    assert_eq!(pause.unwrap_err(), CommandError::MissingTarget);
    let payload = operation(SeedOperation::SeedOpGerminate, "BP009");
    let stranger = rig.apply(CommandType::CommandSeed, Some(payload.clone()), |command| {
        command.target_seed_id = "s9".to_owned();
    });
    assert_eq!(stranger.unwrap_err(), CommandError::UnknownSeed("s9".into()));
    let annotated = rig.apply(CommandType::CommandSeed, Some(payload), |command| {
        command.target_seed_id.clear();
        command.annotations.insert("seed_id".to_owned(), "s1".to_owned());
    });
    annotated.unwrap();
    assert_eq!(rig.stage(), Stage::Germinated);
}

/// The contract: `target_seed_id`, else the operation's parameter would be a number; other
/// kinds of commands are told apart and none is silently accepted.
#[test]
fn what_is_not_supported_says_so() {
    let mut rig = rig();
    for kind in [
        CommandType::CommandUnknown,
        CommandType::CommandRollback,
        CommandType::CommandStructuralPruning,
    ] {
        let error = rig.apply(kind, None, |_| {}).unwrap_err();
        assert!(matches!(error, CommandError::Unsupported(_)), "{kind:?}");
        let events = rig.events();
        assert!(events.contains(&("unsupported_command".to_owned(), TelemetryLevel::Warning)));
    }
    let mismatched = rig.apply(CommandType::CommandOptimizer, None, |_| {});
    assert_eq!(mismatched.unwrap_err(), CommandError::BadPayload("OPTIMIZER"));
}

#[test]
fn the_optimiser_is_adjusted_by_the_trainer() {
    let mut rig = rig();
    let adjustment = CommandOptimizerAdjustment {
        optimizer_id: "adam".to_owned(),
        hyperparameters: [("lr".to_owned(), 0.001)].into(),
    };
    let payload = Payload::OptimizerAdjustment(adjustment.clone());
    let effects = rig.apply(CommandType::CommandOptimizer, Some(payload), |_| {}).unwrap();
    assert!(matches!(&effects[..], [Effect::AdjustOptimizer(found)] if *found == adjustment));
    assert_eq!(rig.events(), [("optimizer_adjust".to_owned(), TelemetryLevel::Info)]);
}

#[test]
fn what_nobody_approved_or_is_quarantined_is_never_germinated() {
    let withheld = [("BP036", "approval_required"), ("BP045", "quarantine_only")];
    let config = Config {
        withheld: withheld.map(|(id, reason)| (id.into(), reason)).into(),
        ..Config::default()
    };
    let mut rig = rig_with(config, 8);
    for (id, reason) in withheld {
        let payload = operation(SeedOperation::SeedOpGerminate, id);
        let error = rig.apply(CommandType::CommandSeed, Some(payload), |_| {}).unwrap_err();
        assert_eq!(error, CommandError::Withheld { blueprint: id.into(), reason });
        assert!(error.to_string().contains("KARN_APPROVALS"), "{error}");
        assert_eq!(rig.stage(), Stage::Dormant);
        let events = rig.events();
        assert!(events.contains(&("germination_withheld".to_owned(), TelemetryLevel::Warning)));
    }
    rig.germinate();
}

fn breaker(state: CircuitBreakerState) -> Option<Payload> {
    Some(Payload::CircuitBreaker(CommandCircuitBreaker {
        desired_state: state as i32,
        rationale: "test".to_owned(),
    }))
}

#[test]
fn an_open_kernel_breaker_denies_germination() {
    let mut rig = rig();
    let kind = CommandType::CommandCircuitBreaker;
    rig.apply(kind, breaker(CircuitBreakerState::CircuitStateOpen), |_| {}).unwrap();
    let denied = rig.operate(SeedOperation::SeedOpGerminate).unwrap_err();
    assert_eq!(denied, CommandError::BreakerDenied { blueprint: "BP009".into() });
    assert_eq!(rig.stage(), Stage::Dormant, "denied, not embargoed");
    rig.wait(Duration::from_secs(60));
    rig.germinate();
    let invalid = rig.apply(kind, breaker(CircuitBreakerState::CircuitStateUnknown), |_| {});
    assert!(invalid.is_err());
    let names: Vec<String> = rig.events().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"breaker_command_invalid".to_owned()), "{names:?}");
}

#[test]
fn three_failed_fetches_open_the_breaker_and_time_closes_it() {
    let mut rig = rig();
    for _ in 0..3 {
        let order = rig.germinate();
        rig.answer(&order, Err(FetchFailure::Unavailable));
        rig.wait(Duration::from_secs(30));
        assert_eq!(rig.stage(), Stage::Dormant);
    }
    let denied = rig.operate(SeedOperation::SeedOpGerminate);
    assert!(matches!(denied, Err(CommandError::BreakerDenied { .. })), "{denied:?}");
    rig.wait(Duration::from_secs(60));
    let order = rig.germinate();
    rig.answer(&order, Ok(()));
    assert_eq!(rig.stage(), Stage::Training);
}

#[test]
fn fine_tuning_prolongs_a_stage() {
    let mut rig = Rig::grown_to(Stage::Training);
    for _ in 0..4 {
        rig.step(crate::rig::healthy());
    }
    rig.operate(SeedOperation::SeedOpFineTune).unwrap();
    assert_eq!(rig.step_until(Stage::Blending), 5);
    let refused = rig.operate(SeedOperation::SeedOpFineTune);
    assert!(matches!(refused, Err(CommandError::NotApplicable { stage: "blending", .. })));
}

#[test]
fn an_emergency_frees_what_waits() {
    let mut rig = Rig::grown_to(Stage::Blending);
    let effects = rig.apply(CommandType::CommandEmergency, None, |_| {}).unwrap();
    assert!(matches!(&effects[..], [Effect::EmergencyCleanup]));
    assert_eq!(rig.stage(), Stage::Blending);
    assert_eq!(rig.events(), [("emergency_cleanup".to_owned(), TelemetryLevel::Critical)]);
}
