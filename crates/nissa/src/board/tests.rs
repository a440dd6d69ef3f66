//! What the board makes of messages, one transition at a time.

use std::collections::BTreeMap;

use leyline::Message;
use leyline::wire::{
    KernelArtifactError, KernelArtifactReady, KernelPrefetchRequest, SeedLifecycleStage, SeedState,
    SystemStatePacket, TelemetryEvent, TelemetryLevel, TelemetryPacket,
};
use tokio::time::Instant;

use super::{Board, Now, Received, RequestState};
use crate::config::IngestConfig;

fn board() -> Board {
    Board::new(Now::read(), &IngestConfig::default())
}

fn say(board: &mut Board, at_ms: u64, message: impl Into<Message>) {
    let attributes = BTreeMap::from([("oona-issued-at-ms".to_owned(), at_ms.to_string())]);
    let now = Now { mono: Instant::now(), unix_ms: at_ms };
    board.apply(now, Received { message: &message.into(), attributes: &attributes });
}

fn state(epoch: u32, made_at: u64, stage: SeedLifecycleStage) -> SystemStatePacket {
    SystemStatePacket {
        current_epoch: epoch,
        timestamp_ns: made_at,
        training_run_id: "run".to_owned(),
        validation_loss: epoch as f32,
        seed_states: vec![SeedState {
            seed_id: "s".to_owned(),
            stage: stage.into(),
            metrics: [("alpha".to_owned(), 0.25)].into(),
            ..SeedState::default()
        }],
        ..SystemStatePacket::default()
    }
}

fn epochs(board: &Board) -> Vec<u32> {
    board.runs.newest().unwrap().points.iter().map(|point| point.epoch).collect()
}

#[test]
fn a_stage_begins_with_the_first_epoch_that_reports_it() {
    use SeedLifecycleStage as S;
    let mut board = board();
    let stages = [S::SeedStageDormant, S::SeedStageDormant, S::SeedStageTraining];
    for (epoch, stage) in (0..).zip(stages) {
        say(&mut board, 1, state(epoch, u64::from(epoch) + 1, stage));
    }
    let seed = &board.runs.newest().unwrap().seeds["s"];
    let spans: Vec<_> = seed.spans.iter().map(|span| (span.stage, span.from_epoch)).collect();
    assert_eq!(spans, [("dormant", 0), ("training", 2)]);
    assert_eq!((seed.stage, seed.alpha), ("training", Some(0.25)));
}

#[test]
fn several_packets_of_an_epoch_are_one_point() {
    let mut board = board();
    for made_at in 1..4 {
        say(&mut board, 1, state(7, made_at, SeedLifecycleStage::SeedStageDormant));
    }
    assert_eq!(epochs(&board), [7]);
}

#[test]
fn a_run_that_goes_back_forgets_what_it_undid() {
    let mut board = board();
    for (epoch, made_at) in [(0, 1), (1, 2), (2, 3), (1, 4)] {
        say(&mut board, 1, state(epoch, made_at, SeedLifecycleStage::SeedStageDormant));
    }
    assert_eq!(epochs(&board), [0, 1]);
    assert_eq!(board.runs.newest().unwrap().epoch, 1);
}

#[test]
fn a_late_packet_fills_its_gap_and_nothing_else() {
    let mut board = board();
    for (epoch, made_at) in [(0, 1), (2, 3), (1, 2)] {
        say(&mut board, 1, state(epoch, made_at, SeedLifecycleStage::SeedStageDormant));
    }
    assert_eq!(epochs(&board), [0, 1, 2]);
    assert_eq!(board.runs.newest().unwrap().epoch, 2);
}

#[test]
fn a_long_history_thins_its_older_half_and_keeps_both_ends() {
    let mut board = board();
    for epoch in 0..10_000 {
        let made_at = u64::from(epoch) + 1;
        say(&mut board, 1, state(epoch, made_at, SeedLifecycleStage::SeedStageDormant));
    }
    let epochs = epochs(&board);
    assert!(epochs.len() <= 2048, "{}", epochs.len());
    assert_eq!((epochs[0], epochs[epochs.len() - 1]), (0, 9_999));
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(epochs.iter().rev().zip((0..10_000).rev()).take(1000).all(|(a, b)| *a == b));
}

#[test]
fn runs_are_bounded() {
    let mut board = board();
    for number in 0..20 {
        let id = format!("run {number}");
        say(
            &mut board,
            1,
            SystemStatePacket { training_run_id: id, ..SystemStatePacket::default() },
        );
    }
    assert_eq!((board.runs.iter().count(), board.runs.evicted()), (8, 12));
    assert_eq!(board.runs.newest().unwrap().id, "run 19");
}

fn request(id: &str) -> KernelPrefetchRequest {
    KernelPrefetchRequest { request_id: id.to_owned(), ..KernelPrefetchRequest::default() }
}

fn ready(id: &str) -> KernelArtifactReady {
    KernelArtifactReady { request_id: id.to_owned(), ..KernelArtifactReady::default() }
}

#[test]
fn answers_find_their_requests_in_either_order_and_count_once() {
    let mut board = board();
    say(&mut board, 100, request("a"));
    say(&mut board, 112, ready("a"));
    say(&mut board, 212, ready("b"));
    say(&mut board, 200, request("b"));
    say(&mut board, 200, request("b"));
    say(&mut board, 300, request("c"));
    let reason = "missing_artifact".to_owned();
    let error = KernelArtifactError { request_id: "d".to_owned(), reason, ..Default::default() };
    say(&mut board, 400, error);
    let kernels = &board.kernels;
    assert_eq!((kernels.requested, kernels.ready, kernels.errors, kernels.waiting()), (3, 2, 1, 1));
    let latencies: Vec<_> = kernels.requests().map(super::Request::latency_ms).collect();
    assert_eq!(latencies, [Some(12), Some(12), None, None]);
    assert_eq!(kernels.requests().last().unwrap().state, RequestState::Error);
}

/// The contract's percentile: linear interpolation at (n - 1) · q.
#[test]
fn latency_percentiles_follow_the_contract() {
    let mut board = board();
    assert_eq!(board.kernels.latency_ms(0.5), None);
    for (id, latency) in [("a", 4), ("b", 1), ("c", 3), ("d", 2)] {
        say(&mut board, 0, request(id));
        say(&mut board, latency, ready(id));
    }
    assert_eq!(board.kernels.latency_ms(0.5), Some(2.5));
    assert!((board.kernels.latency_ms(0.95).unwrap() - 3.85).abs() < 1e-9);
}

#[test]
fn events_are_bounded_in_number_and_length() {
    let mut board = board();
    let event = TelemetryEvent {
        description: "noise".to_owned(),
        attributes: [("text".to_owned(), "ä".repeat(5000))].into(),
        ..TelemetryEvent::default()
    };
    let packet = TelemetryPacket { events: vec![event; 500], ..TelemetryPacket::default() };
    say(&mut board, 1, packet);
    assert_eq!(board.events.iter().count(), 200);
    assert!(board.events.iter().all(|event| event.text.chars().count() <= 401));
}

#[test]
fn a_risk_told_at_every_decision_fills_no_list_unless_it_is_serious() {
    let mut board = board();
    let event = |level: TelemetryLevel| TelemetryEvent {
        description: "policy_risk_signal".to_owned(),
        level: level.into(),
        ..TelemetryEvent::default()
    };
    let events = vec![event(TelemetryLevel::Info), event(TelemetryLevel::Critical)];
    say(&mut board, 1, TelemetryPacket { events, ..TelemetryPacket::default() });
    assert_eq!(board.events.iter().count(), 1);
}

#[test]
fn two_trainers_are_two_sources() {
    let mut board = board();
    for run in ["a", "b"] {
        let indicators = [("training_run_id".to_owned(), run.to_owned())].into();
        let health = leyline::wire::SystemHealth { indicators, ..Default::default() };
        say(
            &mut board,
            1,
            TelemetryPacket {
                source_subsystem: "tolaria".to_owned(),
                system_health: Some(health),
                ..TelemetryPacket::default()
            },
        );
    }
    let names: Vec<_> = board.sources.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tolaria@a", "tolaria@b"]);
}
