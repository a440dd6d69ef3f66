//! From the embedded bus to the board, the metrics and the alerts.

use std::sync::Arc;

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, CommandSeedOperation, CommandType, EmergencyLevel, EmergencySignal,
    FieldReport, FieldReportOutcome, KernelArtifactReady, KernelPrefetchRequest, MessagePriority,
    MetricPoint, SeedOperation, SeedState, SystemStatePacket, TelemetryEvent, TelemetryPacket,
};
use nissa::{Board, BoardSource, Ingest, IngestConfig, Metrics};
use oona::{Bus, LogChoice, Stream};
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::PATIENCE;

struct Bench {
    bus: Bus,
    registry: Registry,
    metrics: Metrics,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = LogChoice::Embedded { path: dir.path().join("log.redb") };
        let keyring = Keyring::new(&Secret::new("a secret for this test"), None);
        let config = oona::Config { log, ..oona::Config::default() };
        let bus = Bus::open(config, keyring, oona::Metrics::detached()).await.unwrap();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        Self { bus, registry, metrics, _dir: dir }
    }

    fn ingest(&self, config: IngestConfig) -> (Ingest, BoardSource) {
        let (board, source) = nissa::channel(&config);
        let heartbeat = oona::Heartbeat::detached();
        let (bus, metrics) = (self.bus.clone(), self.metrics.clone());
        let (_, thresholds) = tokio::sync::watch::channel(config.thresholds.clone());
        (Ingest { bus, config, thresholds, board, metrics, heartbeat }, source)
    }

    async fn say(&self, stream: Stream, message: impl Into<Message>) {
        let (priority, message) = (MessagePriority::Normal, message.into());
        let outcome = self.bus.publish(stream, priority, "test", &message);
        assert!(outcome.await.unwrap().is_sent());
    }

    fn metric(&self, line: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().any(|found| found == line)
    }
}

/// Runs the worker until the board is as wished.
async fn until(
    ingest: Ingest,
    board: &mut BoardSource,
    wish: impl Fn(&Board) -> bool,
) -> Arc<Board> {
    let stop = CancellationToken::new();
    let wished = async {
        let found = board.wait_for(|board| wish(board)).await.unwrap().clone();
        stop.cancel();
        found
    };
    let run = async { tokio::join!(ingest.run(stop.clone()), wished) };
    let (ended, found) = timeout(PATIENCE, run).await.expect("the wish never came true");
    ended.unwrap();
    found
}

fn telemetry(source: &str, metrics: &[(&str, f64)]) -> TelemetryPacket {
    TelemetryPacket {
        timestamp: Some(timestamp(now_unix_ms())),
        source_subsystem: source.to_owned(),
        metrics: metrics
            .iter()
            .map(|(name, value)| MetricPoint {
                name: (*name).to_owned(),
                value: *value,
                ..MetricPoint::default()
            })
            .collect(),
        ..TelemetryPacket::default()
    }
}

fn with_event(mut packet: TelemetryPacket, name: &str) -> TelemetryPacket {
    let description = name.to_owned();
    packet.events.push(TelemetryEvent { description, ..TelemetryEvent::default() });
    packet
}

#[tokio::test]
async fn a_runs_messages_become_its_picture() {
    let bench = Bench::new().await;
    let (ingest, mut source) = bench.ingest(IngestConfig::default());
    for epoch in 0..5 {
        let packet = SystemStatePacket {
            current_epoch: epoch,
            validation_loss: 0.5,
            timestamp_ns: (now_unix_ms() + u64::from(epoch)) * 1_000_000,
            training_run_id: "run-1".to_owned(),
            source_subsystem: "tolaria".to_owned(),
            seed_states: vec![SeedState { seed_id: "seed-0".to_owned(), ..SeedState::default() }],
            ..SystemStatePacket::default()
        };
        bench.say(Stream::Normal, packet).await;
    }
    let operation = CommandSeedOperation {
        operation: SeedOperation::SeedOpGerminate.into(),
        blueprint_id: "BP004".to_owned(),
        ..CommandSeedOperation::default()
    };
    let command = AdaptationCommand {
        command_id: "c".to_owned(),
        command_type: CommandType::CommandSeed.into(),
        target_seed_id: "seed-0".to_owned(),
        payload: Some(Payload::SeedOperation(operation)),
        ..AdaptationCommand::default()
    };
    bench.say(Stream::Normal, command).await;
    let report =
        FieldReport { outcome: FieldReportOutcome::Regression.into(), ..FieldReport::default() };
    bench.say(Stream::Normal, report).await;
    let (request_id, blueprint_id) = ("r".to_owned(), "BP004".to_owned());
    let request = KernelPrefetchRequest {
        request_id: request_id.clone(),
        blueprint_id: blueprint_id.clone(),
        issued_at: Some(timestamp(now_unix_ms())),
        ..KernelPrefetchRequest::default()
    };
    bench.say(Stream::KernelRequests, request).await;
    let ready = KernelArtifactReady { request_id, blueprint_id, ..KernelArtifactReady::default() };
    bench.say(Stream::KernelReady, ready).await;
    let board = until(ingest, &mut source, |board| board.messages == 9).await;
    let run = board.runs.newest().unwrap();
    assert_eq!((run.id.as_str(), run.epoch, run.points.len()), ("run-1", 4, 5));
    assert_eq!(run.seeds["seed-0"].blueprint.as_deref(), Some("BP004"));
    assert_eq!((board.kernels.requested, board.kernels.ready, board.kernels.waiting()), (1, 1, 0));
    assert!(board.kernels.latency_ms(0.5).is_some());
    assert!(bench.metric("esper_training_runs_total 1"));
    assert!(bench.metric("esper_system_state_packets_total{phase=\"tolaria\"} 5"));
    assert!(bench.metric("esper_field_reports_total{outcome=\"regression\"} 1"));
}

/// The same value, judged before and after the thresholds change.
#[tokio::test]
async fn other_thresholds_hold_for_the_next_sample() {
    let bench = Bench::new().await;
    let (mut ingest, mut source) = bench.ingest(IngestConfig::default());
    let mut config = IngestConfig::default();
    let (tuning, thresholds) = tokio::sync::watch::channel(config.thresholds.clone());
    ingest.thresholds = thresholds;
    let stop = CancellationToken::new();
    let steps = async {
        let risky = || telemetry("tamiyo", &[("tamiyo.blueprint.risk", 0.6)]);
        bench.say(Stream::Telemetry, risky()).await;
        let before = source.wait_for(|board| board.messages == 1).await.unwrap().clone();
        assert_eq!(before.alerts.active().count(), 0, "0.6 is below 0.8");
        config.thresholds.elevated_risk = 0.5;
        tuning.send_replace(config.thresholds.clone());
        bench.say(Stream::Telemetry, risky()).await;
        let after = source.wait_for(|board| board.alerts.active().count() > 0).await.unwrap();
        assert_eq!(after.messages, 2);
        drop(after);
        stop.cancel();
    };
    let run = async { tokio::join!(ingest.run(stop.clone()), steps) };
    timeout(PATIENCE, run).await.expect("the alert never came").0.unwrap();
}

#[tokio::test]
async fn the_metrics_of_the_contract_follow_the_packets() {
    let bench = Bench::new().await;
    let (ingest, mut source) = bench.ingest(IngestConfig::default());
    // A negative reward once broke the prototype's counter, and the packet with it.
    bench.say(Stream::Telemetry, telemetry("simic", &[("simic.training.reward", -2.5)])).await;
    let covered = [
        ("tamiyo.gnn.feature_coverage", 0.9),
        ("tamiyo.gnn.feature_coverage.global.loss", 0.25),
        ("tamiyo.gnn.coverage.made.up", 0.5),
        ("tamiyo.blueprint.risk", 0.1),
    ];
    let packet = with_event(telemetry("tamiyo", &covered), "bp_quarantine");
    bench.say(Stream::Telemetry, with_event(packet, "bsds_hazard_high")).await;
    // Somebody else's packet says nothing about Tamiyo's quarantine.
    bench.say(Stream::Telemetry, telemetry("somebody's own name", &[])).await;
    until(ingest, &mut source, |board| board.messages == 3).await;
    for line in [
        "esper_simic_training_reward -2.5",
        "esper_simic_training_iterations_total 1.0",
        "tamiyo_gnn_feature_coverage 0.9",
        "tamiyo_gnn_feature_coverage_by_type{feature=\"global.loss\"} 0.25",
        "tamiyo_bsds_quarantine_active 1",
        "tamiyo_bsds_elevated_risk 0",
        "esper_tamiyo_bsds_hazard_high_total{provenance=\"unspecified\"} 1",
        "esper_telemetry_packets_total{source=\"other\"} 1",
        "nissa_ingest_latency_ms_count{type=\"telemetry\"} 3",
    ] {
        assert!(bench.metric(line), "{line}");
    }
    assert!(!bench.metric("tamiyo_gnn_feature_coverage_by_type{feature=\"made.up\"} 0.5"));
}

/// The drills of the design, through the bus, with the producers' packets.
#[tokio::test]
async fn drills_fire_and_clear() {
    let bench = Bench::new().await;
    let (ingest, mut source) = bench.ingest(IngestConfig::default());
    let hook = |ms| telemetry("tolaria", &[("tolaria.epoch_hook.latency_ms", ms)]);
    for ms in [25.0, 25.0, 25.0, 10.0] {
        bench.say(Stream::Telemetry, hook(ms)).await;
        bench.say(Stream::Telemetry, telemetry("kasmina", &[("kasmina.seeds.active", 1.0)])).await;
    }
    // Serious packets are rerouted to the emergency lane.
    let violated = telemetry("kasmina", &[("kasmina.isolation.violations", 5.0)]);
    bench.say(Stream::Emergency, violated).await;
    let signal = EmergencySignal {
        level: EmergencyLevel::Halt.into(),
        origin: "tolaria".to_owned(),
        ..EmergencySignal::default()
    };
    bench.say(Stream::Emergency, signal).await;
    bench.say(Stream::Telemetry, telemetry("tezzeret", &[("tezzeret.jobs.retried", 2.0)])).await;
    let board = until(ingest, &mut source, |board| board.messages == 11).await;
    let active: Vec<_> = board.alerts.active().map(|alert| alert.rule.as_str()).collect();
    assert_eq!(
        active,
        ["kasmina_isolation_violation", "tezzeret_compile_retry_high", "emergency_signal"]
    );
    let latency: Vec<_> = board
        .alerts
        .recent()
        .filter(|note| note.rule.as_str() == "training_latency_high")
        .map(|note| note.change.as_str())
        .collect();
    assert_eq!(latency, ["fired", "resolved"]);
    assert!(bench.metric("nissa_alerts_active{rule=\"emergency_signal\"} 1"));
    assert!(bench.metric("nissa_notifications_total{route=\"pagerduty\"} 4"));
}

#[tokio::test]
async fn replicas_see_everything_and_a_restart_forgets_nothing() {
    let bench = Bench::new().await;
    bench.say(Stream::Telemetry, telemetry("urza", &[])).await;
    let config = |replica: &str| IngestConfig {
        replica: Some(replica.to_owned()),
        ..IngestConfig::default()
    };
    let (first, mut first_board) = bench.ingest(config("a"));
    let (second, mut second_board) = bench.ingest(config("b"));
    let (sink, heartbeat) = (first.board.clone(), oona::Heartbeat::detached());
    until(first, &mut first_board, |board| board.messages == 1).await;
    until(second, &mut second_board, |board| board.messages == 1).await;
    bench.say(Stream::Telemetry, telemetry("urza", &[])).await;
    let (bus, metrics) = (bench.bus.clone(), bench.metrics.clone());
    let (_, thresholds) = tokio::sync::watch::channel(config("a").thresholds);
    let again = Ingest { bus, config: config("a"), thresholds, board: sink, metrics, heartbeat };
    let board = until(again, &mut first_board, |board| board.messages == 2).await;
    let urza = board.sources.iter().find(|(name, _)| *name == "urza").unwrap().1;
    assert_eq!(urza.packets, 2);
}
