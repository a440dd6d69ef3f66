//! Serves the page with a made-up run, to look at it:
//! `cargo run -p nissa --example page -- [ADDRESS] [empty|run|trouble] [live]`.
//!
//! The board is fed by the same transitions as the ingest worker's; only the messages are made up.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use leyline::Message;
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{
    AdaptationCommand, CommandSeedOperation, CommandType, FieldReport, FieldReportOutcome,
    HealthStatus, KernelArtifactError, KernelArtifactReady, KernelCatalogUpdate,
    KernelPrefetchRequest, MetricPoint, SeedLifecycleStage as S, SeedOperation, SeedState,
    SystemHealth, SystemStatePacket, TelemetryEvent, TelemetryLevel, TelemetryPacket,
    adaptation_command::Payload,
};
use nissa::{
    Board, BreakerHealth, BreakerState, Health, Http, HttpConfig, IngestConfig, LaneHealth,
    Metrics, Now, ProcessPhase, Received, ReloadPort, SystemMode, WorkerControl, WorkerHealth,
    WorkerState,
};
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const EPOCHS: u32 = 240;
const EPOCH_MS: u64 = 420;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().map_or("127.0.0.1:9100", String::as_str);
    let scene = arguments.get(1).map_or("run", String::as_str).to_owned();
    let live = arguments.get(2).is_some_and(|word| word == "live");
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let config = IngestConfig::default();
    let (sink, board) = nissa::channel(&config);
    let (health_sink, health_source) = tokio::sync::watch::channel(health(&scene, 0));
    let (control, mut requests) = WorkerControl::channel();
    let listener = TcpListener::bind(address)?;
    println!("http://{}/", listener.local_addr()?);
    let http = Http {
        listener,
        config: Arc::new(HttpConfig::default()),
        health: health_source,
        board,
        bus: tokio::sync::watch::channel(None).1,
        kernels: tokio::sync::watch::channel(None).1,
        registry: Arc::new(registry),
        logs: nissa::LogTail::default(),
        control,
        reload: ReloadPort::channel().0,
        metrics,
        heartbeat: oona::Heartbeat::detached(),
    };
    let feed = async {
        let mut feed = Feed::new(&config);
        let past = if live { 40 } else { EPOCHS };
        if scene != "empty" {
            for epoch in 0..past {
                feed.epoch(epoch, &scene, u64::from(past - epoch) * EPOCH_MS);
            }
        }
        let mut epoch = past;
        let mut beat = 0_u64;
        loop {
            sink.send_replace(Arc::new(feed.board.clone()));
            health_sink.send_replace(health(&scene, beat));
            tokio::select! {
                request = requests.recv() => {
                    if let Some(request) = request { request.answer.send(Ok(())).ok(); }
                }
                () = tokio::time::sleep(Duration::from_millis(EPOCH_MS)) => {}
            }
            beat += EPOCH_MS;
            if live && epoch < EPOCHS && scene != "empty" {
                feed.epoch(epoch, &scene, 0);
                epoch += 1;
            }
        }
    };
    let stop = CancellationToken::new();
    tokio::select! {
        result = http.run(stop) => result?,
        () = feed => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

struct Feed {
    board: Board,
    attributes: BTreeMap<String, String>,
}

impl Feed {
    fn new(config: &IngestConfig) -> Self {
        Self { board: Board::new(Now::read(), config), attributes: BTreeMap::new() }
    }

    fn say(&mut self, at_ms: u64, message: impl Into<Message>) {
        self.attributes.insert("oona-issued-at-ms".to_owned(), at_ms.to_string());
        let now = Now { mono: Instant::now(), unix_ms: at_ms };
        self.board.apply(now, Received { message: &message.into(), attributes: &self.attributes });
    }

    fn epoch(&mut self, epoch: u32, scene: &str, ago_ms: u64) {
        let at = now_unix_ms().saturating_sub(ago_ms);
        let plan = plan(epoch);
        for (seed, blueprint, from) in
            [("seed-0", "BP004", 44), ("seed-1", "BP009", 96), ("seed-2", "BP002", 110)]
        {
            if epoch == from {
                self.germinate(at, seed, blueprint);
            }
        }
        if epoch == 131 {
            self.report(at, "seed-1", "BP009", FieldReportOutcome::Regression);
        }
        if epoch == 105 {
            self.report(at, "seed-0", "BP004", FieldReportOutcome::Success);
        }
        self.say(at, state(epoch, at, &plan));
        if epoch.is_multiple_of(5) {
            let latency = if scene == "trouble" { 31.0 } else { 6.5 };
            self.say(
                at,
                telemetry(
                    "tolaria",
                    at,
                    &[
                        ("tolaria.epoch_hook.latency_ms", latency),
                        ("slo.epoch_hook_objective", 18.0),
                        ("slo.epoch_hook_actual", latency),
                    ],
                    scene,
                ),
            );
        }
        if epoch.is_multiple_of(20) {
            self.say(
                at,
                telemetry("weatherlight", at, &[("weatherlight.tasks.running", 12.0)], scene),
            );
            self.say(at, telemetry("kasmina", at, &[("kasmina.seeds.active", 2.0)], scene));
        }
    }

    fn germinate(&mut self, at: u64, seed: &str, blueprint: &str) {
        self.say(
            at,
            AdaptationCommand {
                version: 1,
                command_id: format!("command-{seed}"),
                command_type: CommandType::CommandSeed.into(),
                target_seed_id: seed.to_owned(),
                issued_at: Some(timestamp(at)),
                issued_by: "tamiyo".to_owned(),
                payload: Some(Payload::SeedOperation(CommandSeedOperation {
                    operation: SeedOperation::SeedOpGerminate.into(),
                    blueprint_id: blueprint.to_owned(),
                    parameters: BTreeMap::new(),
                })),
                annotations: [("reason".to_owned(), "plateau".to_owned())].into(),
                ..AdaptationCommand::default()
            },
        );
        let id = format!("0190a-{seed}");
        self.say(
            at,
            KernelPrefetchRequest {
                request_id: id.clone(),
                blueprint_id: blueprint.to_owned(),
                training_run_id: "spirals-7".to_owned(),
                issued_at: Some(timestamp(at)),
            },
        );
        if seed == "seed-2" {
            let reason = "missing_artifact".to_owned();
            self.say(
                at + 9,
                KernelArtifactError { request_id: id, blueprint_id: blueprint.to_owned(), reason },
            );
            return;
        }
        self.say(
            at,
            KernelCatalogUpdate {
                blueprint_id: blueprint.to_owned(),
                compile_ms: 84.0,
                ..KernelCatalogUpdate::default()
            },
        );
        self.say(
            at + 7,
            KernelArtifactReady {
                request_id: id,
                blueprint_id: blueprint.to_owned(),
                prewarm_p95_ms: 0.21,
                ..KernelArtifactReady::default()
            },
        );
    }

    fn report(&mut self, at: u64, seed: &str, blueprint: &str, outcome: FieldReportOutcome) {
        self.say(
            at,
            FieldReport {
                seed_id: seed.to_owned(),
                blueprint_id: blueprint.to_owned(),
                outcome: outcome.into(),
                issued_at: Some(timestamp(at)),
                notes: "loss over 3 epochs".to_owned(),
                ..FieldReport::default()
            },
        );
    }
}

/// Stage and alpha of every seed at an epoch.
fn plan(epoch: u32) -> Vec<(&'static str, S, f32, f32)> {
    let ramp =
        |from: u32, to: u32| ((epoch.saturating_sub(from)) as f32 / (to - from) as f32).min(1.0);
    let first = match epoch {
        0..44 => (S::SeedStageDormant, 0.0),
        44..47 => (S::SeedStageGerminated, 0.0),
        47..70 => (S::SeedStageTraining, 0.0),
        70..90 => (S::SeedStageBlending, ramp(70, 90)),
        90..95 => (S::SeedStageShadowing, 1.0),
        95..105 => (S::SeedStageProbationary, 1.0),
        _ => (S::SeedStageFossilized, 1.0),
    };
    let second = match epoch {
        0..96 => (S::SeedStageDormant, 0.0),
        96..98 => (S::SeedStageGerminated, 0.0),
        98..116 => (S::SeedStageTraining, 0.0),
        116..131 => (S::SeedStageBlending, ramp(116, 136)),
        131..133 => (S::SeedStageCulled, 0.0),
        133..150 => (S::SeedStageEmbargoed, 0.0),
        150..152 => (S::SeedStageResetting, 0.0),
        152..180 => (S::SeedStageDormant, 0.0),
        180..183 => (S::SeedStageGerminated, 0.0),
        183..205 => (S::SeedStageTraining, 0.0),
        205..225 => (S::SeedStageBlending, ramp(205, 225)),
        225..230 => (S::SeedStageShadowing, 1.0),
        _ => (S::SeedStageProbationary, 1.0),
    };
    let third = if epoch < 110 { S::SeedStageDormant } else { S::SeedStageGerminated };
    vec![
        ("seed-0", first.0, first.1, 352.0),
        ("seed-1", second.0, second.1, 608.0),
        ("seed-2", third, 0.0, 0.0),
    ]
}

fn state(epoch: u32, at: u64, plan: &[(&str, S, f32, f32)]) -> SystemStatePacket {
    let live = |index: usize| plan.get(index).map_or(0.0, |seed| seed.2);
    let noise = ((epoch as f32 * 12.9898).sin() * 43_758.547).fract();
    let start = 0.69 * (-(epoch as f32) / 16.0).exp();
    let loss = 0.62 + start * 0.2 - 0.33 * live(0) - 0.22 * live(1) + 0.012 * noise;
    let accuracy = 0.585 - start * 0.15 + 0.24 * live(0) + 0.145 * live(1) + 0.008 * noise;
    let grown = if epoch > 47 { 352.0 } else { 0.0 } + if epoch > 183 { 608.0 } else { 0.0 };
    SystemStatePacket {
        version: 1,
        current_epoch: epoch,
        validation_accuracy: accuracy,
        validation_loss: loss,
        training_loss: loss * 0.94 + 0.01 * noise,
        timestamp_ns: at * 1_000_000,
        global_step: u64::from(epoch) * 32,
        training_metrics: [
            ("host_parameters".to_owned(), 66.0),
            ("grown_parameters".to_owned(), grown),
            ("loss_delta".to_owned(), -0.002),
        ]
        .into(),
        seed_states: plan
            .iter()
            .map(|(id, stage, alpha, parameters)| SeedState {
                seed_id: (*id).to_owned(),
                stage: (*stage).into(),
                metrics: [
                    ("alpha".to_owned(), *alpha),
                    (
                        "parameters".to_owned(),
                        if *stage == S::SeedStageDormant { 0.0 } else { *parameters },
                    ),
                ]
                .into(),
                risk_score: 0.2,
                ..SeedState::default()
            })
            .collect(),
        packet_id: format!("spirals-7-{epoch}"),
        source_subsystem: "tolaria".to_owned(),
        training_run_id: "spirals-7".to_owned(),
        experiment_name: "two spirals".to_owned(),
        ..SystemStatePacket::default()
    }
}

fn telemetry(source: &str, at: u64, metrics: &[(&str, f64)], scene: &str) -> TelemetryPacket {
    let bad = scene == "trouble" && source == "kasmina";
    let event = TelemetryEvent {
        event_id: "1".to_owned(),
        description: "bsds_hazard_critical".to_owned(),
        level: TelemetryLevel::Critical.into(),
        attributes: [
            ("blueprint_id".to_owned(), "BP031".to_owned()),
            ("provenance".to_owned(), "CURATED".to_owned()),
        ]
        .into(),
    };
    TelemetryPacket {
        timestamp: Some(timestamp(at)),
        source_subsystem: source.to_owned(),
        level: TelemetryLevel::Info.into(),
        metrics: metrics
            .iter()
            .map(|(name, value)| MetricPoint {
                name: (*name).to_owned(),
                value: *value,
                ..MetricPoint::default()
            })
            .collect(),
        events: if bad { vec![event] } else { Vec::new() },
        system_health: Some(SystemHealth {
            status: if bad { HealthStatus::Critical } else { HealthStatus::Healthy }.into(),
            summary: if bad { "violations" } else { "steady" }.to_owned(),
            indicators: BTreeMap::new(),
        }),
        ..TelemetryPacket::default()
    }
}

fn health(scene: &str, beat_ms: u64) -> Health {
    let rows: [(&str, bool, &[&str], &str); 12] = [
        ("oona.emergency", true, &["bus"], "waiting"),
        ("oona.housekeeping", false, &["bus"], "waiting"),
        ("urza.prefetch", true, &["bus", "urza"], "waiting for a request"),
        ("urza.maintenance", false, &["urza"], "waiting"),
        ("tezzeret.forge", false, &["urza"], "compiling BP017"),
        ("kasmina.ready", true, &["bus"], "waiting"),
        ("kasmina.errors", true, &["bus"], "waiting"),
        ("kasmina.telemetry", false, &["bus"], "waiting"),
        ("tamiyo.policy", false, &["bus"], "waiting"),
        ("nissa.ingest", false, &["bus"], "waiting"),
        ("nissa.http", false, &[], "serving"),
        ("weatherlight.telemetry", false, &["bus"], "waiting"),
    ];
    let trouble = scene == "trouble";
    let workers = rows
        .iter()
        .enumerate()
        .map(|(index, (name, critical, depends_on, phase))| {
            let (state, error) = match *name {
                "tezzeret.forge" if trouble => (WorkerState::Parked, Some("6 failures in 60 s; last: the artifact directory ./var/urza/artifacts is not writable (permission denied)")),
                "urza.prefetch" if trouble => (WorkerState::BackingOff, Some("the catalogue ./var/urza/catalog.db is locked by another process")),
                _ => (WorkerState::Running, None),
            };
            WorkerHealth {
                name: (*name).to_owned(),
                state,
                critical: *critical,
                restarts: if error.is_some() { 6 } else { u64::from(index == 8) },
                backoff_s: if state == WorkerState::BackingOff { 7.5 } else { 0.0 },
                last_error: error.map(str::to_owned),
                recent_restarts: Vec::new(),
                heartbeat_age_ms: Some((beat_ms + index as u64 * 83) % 1000),
                last_phase: Some((*phase).to_owned()),
                depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
                ..WorkerHealth::new("", state)
            }
        })
        .collect();
    let depth = |stream: &str, depth| LaneHealth {
        stream: stream.to_owned(),
        depth,
        oldest_ms: (depth > 0).then_some(1_500),
    };
    Health {
        system_mode: if trouble { SystemMode::Degraded } else { SystemMode::Operational },
        lost: if trouble { vec!["compiling new kernels".to_owned()] } else { Vec::new() },
        phase: ProcessPhase::Running,
        ready: !trouble,
        reasons: if trouble {
            vec!["critical worker urza.prefetch is backing off".to_owned()]
        } else {
            Vec::new()
        },
        workers,
        breakers: vec![
            BreakerHealth { name: "publish".to_owned(), state: BreakerState::Closed },
            BreakerHealth {
                name: "consume".to_owned(),
                state: if trouble { BreakerState::HalfOpen } else { BreakerState::Closed },
            },
        ],
        lanes: vec![
            depth("oona.emergency", 0),
            depth("oona.normal", if trouble { 4210 } else { 3 }),
            depth("oona.telemetry", 12),
            depth("oona.policy", 0),
            depth("oona.kernels.requests", if trouble { 2 } else { 0 }),
            depth("oona.kernels.ready", 0),
            depth("oona.kernels.errors", 0),
            depth("oona.deadletter", u64::from(trouble)),
        ],
        uptime_s: 96.0 + beat_ms as f64 / 1000.0,
        at: Instant::now(),
        ..Health::booting(env!("CARGO_PKG_VERSION"), "embedded")
    }
}
