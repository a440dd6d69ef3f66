//! The workers: one row each, in boot order. To add a worker, add a row.

use std::net::TcpListener;
use std::sync::Arc;

use nissa::{HttpConfig, ReloadPort, WorkerControl};
use oona::{Bus, EmergencyLane, Housekeeping, LeaseKeeper, SpoolSender};
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, mpsc};

use super::emergency::{REROUTED_LEN_MAX, Receiver, SIGNALS_LEN_MAX};
use super::functions;
use super::metrics::AllMetrics;
use super::parts::{GROUP, Parts};
use super::probe::Probe;
use super::reload::{self, Keeper};
use super::telemetry::Telemetry;
use crate::otlp::Otlp;
use crate::settings::EsperSettings;
use crate::supervisor::Criticality::{Critical, Parkable};
use crate::supervisor::{Build, Criticality, Row, WorkerError, build};
use crate::wiring;

/// Stop groups, in the order in which they stop: what takes in work first, what others stand on
/// later, and the endpoint that shows it all last.
pub(super) mod stop {
    /// What takes work from the bus.
    pub(in crate::service) const INTAKE: u8 = 6;
    /// What works for them.
    pub(in crate::service) const SERVICES: u8 = 5;
    /// Observers.
    pub(in crate::service) const OBSERVERS: u8 = 4;
    /// The foundation's last packet.
    pub(in crate::service) const TELEMETRY: u8 = 3;
    /// What keeps the bus.
    pub(in crate::service) const BUS: u8 = 2;
    /// What they hold is given back when they have ended.
    pub(in crate::service) const LEASE: u8 = 1;
    /// What sends telemetry to a collector: the last steps are among it.
    pub(in crate::service) const OTLP: u8 = 1;
    /// Health and page.
    pub(in crate::service) const HTTP: u8 = 0;
}

/// The bus is kept by its housekeeping; whoever stands on the bus depends on it.
pub(super) const BUS: &[&str] = &["oona.housekeeping"];

pub(super) fn row(
    settings: &EsperSettings,
    name: &'static str,
    criticality: Criticality,
    depends_on: &'static [&'static str],
    stop_group: u8,
    build: Build,
) -> Row {
    let heartbeat_budget = settings.heartbeat_budget;
    let function = functions::lost_without(name);
    Row { name, criticality, depends_on, heartbeat_budget, stop_group, function, build }
}

/// What the HTTP endpoint is made of. It is started before anything is opened.
#[derive(Debug)]
pub struct Endpoint {
    /// Bound and listening; kept over restarts.
    pub listener: TcpListener,
    /// Limits and the token.
    pub config: Arc<HttpConfig>,
    /// The supervisor's picture.
    pub health: nissa::HealthSource,
    /// What was ingested.
    pub board: nissa::BoardSource,
    /// The bus, once it is open.
    pub bus: nissa::bus::BusSource,
    /// The library, once it is open.
    pub kernels: nissa::KernelSource,
    /// Every metric of the process.
    pub registry: Arc<Registry>,
    /// The newest lines of the log.
    pub logs: nissa::LogTail,
    /// The way to the supervisor.
    pub control: WorkerControl,
    /// The way to who reads settings.
    pub reload: ReloadPort,
    /// What nissa counts.
    pub metrics: nissa::Metrics,
}

/// The row that comes first up and goes last down.
pub fn http(settings: &EsperSettings, endpoint: Endpoint) -> Row {
    let serve = build(move |context| {
        let listener = endpoint.listener.try_clone();
        let Endpoint { config, health, board, bus, registry, control, metrics, .. } = &endpoint;
        let (config, health, board) = (Arc::clone(config), health.clone(), board.clone());
        let (registry, control, metrics) = (Arc::clone(registry), control.clone(), metrics.clone());
        let (bus, logs, reload) = (bus.clone(), endpoint.logs.clone(), endpoint.reload.clone());
        let kernels = endpoint.kernels.clone();
        async move {
            let heartbeat = context.heartbeat;
            let listener = listener?;
            let http = nissa::Http {
                listener,
                config,
                health,
                board,
                bus,
                kernels,
                registry,
                logs,
                control,
                reload,
                metrics,
                heartbeat,
            };
            Ok::<(), WorkerError>(http.run(context.stop).await?)
        }
    });
    row(settings, "nissa.http", Parkable, &[], stop::HTTP, serve)
}

/// What reads the settings again.
pub fn settings(settings: &EsperSettings, keeper: Keeper) -> Row {
    let keeper = Arc::new(Mutex::new(keeper));
    let read = build(move |context| {
        let worker = reload::Settings { keeper: Arc::clone(&keeper), heartbeat: context.heartbeat };
        worker.run(context.stop)
    });
    row(settings, "weatherlight.settings", Parkable, &[], stop::HTTP, read)
}

/// What keeps the bus, in any process.
pub(super) fn bus_rows(settings: &EsperSettings, bus: &Bus) -> Vec<Row> {
    let keep = housekeeping(bus);
    let mut rows = vec![
        row(settings, "oona.lease", Parkable, &[], stop::LEASE, leases(bus)),
        row(settings, "oona.housekeeping", Parkable, &[], stop::BUS, keep),
    ];
    if bus.config().spool.is_some() {
        rows.push(row(settings, "oona.spool", Parkable, &[], stop::BUS, spool(bus)));
    }
    rows
}

/// Every other worker of the service, in boot order.
pub fn rows(parts: &Parts) -> Vec<Row> {
    let settings = &*parts.settings;
    let policy = wiring::policy_config(settings).updates;
    let mut rows = bus_rows(settings, &parts.bus);
    rows.extend([
        row(settings, "weatherlight.probe", Parkable, BUS, stop::BUS, probe(parts)),
        row(settings, "oona.emergency", Critical, BUS, stop::INTAKE, emergency(parts)),
        row(settings, "urza.prefetch", Critical, BUS, stop::INTAKE, prefetch(parts)),
        row(settings, "urza.maintenance", Parkable, &[], stop::SERVICES, maintenance(parts)),
        row(settings, "tezzeret.forge", Parkable, BUS, stop::SERVICES, forge(parts)),
        row(
            settings,
            "tamiyo.policy",
            Parkable,
            BUS,
            stop::INTAKE,
            policy_updates(&parts.bus, &parts.policies, &policy, &parts.metrics),
        ),
        row(settings, "nissa.ingest", Parkable, BUS, stop::OBSERVERS, ingest(parts)),
        row(settings, "weatherlight.telemetry", Parkable, BUS, stop::TELEMETRY, telemetry(parts)),
    ]);
    rows
}

fn leases(bus: &Bus) -> Build {
    let bus = bus.clone();
    build(move |context| {
        LeaseKeeper { bus: bus.clone(), heartbeat: context.heartbeat }.run(context.stop)
    })
}

fn housekeeping(bus: &Bus) -> Build {
    let bus = bus.clone();
    build(move |context| {
        Housekeeping { bus: bus.clone(), heartbeat: context.heartbeat }.run(context.stop)
    })
}

fn spool(bus: &Bus) -> Build {
    let bus = bus.clone();
    build(move |context| {
        SpoolSender { bus: bus.clone(), heartbeat: context.heartbeat }.run(context.stop)
    })
}

/// What sends traces and metrics to a collector, where there is one.
pub(super) fn otlp(settings: &EsperSettings, otlp: Otlp) -> Row {
    let send = build(move |context| otlp.clone().run(context.stop, context.heartbeat));
    row(settings, "weatherlight.otlp", Parkable, &[], stop::OTLP, send)
}

fn probe(parts: &Parts) -> Build {
    let parts = parts.clone();
    build(move |context| {
        let probe = Probe {
            bus: parts.bus.clone(),
            picture: parts.bus_picture.clone(),
            health: parts.health.clone(),
            metrics: parts.metrics.clone(),
            heartbeat: context.heartbeat,
        };
        probe.run(context.stop)
    })
}

/// The lane and what settles its deliveries are one worker: neither is of use without the other.
fn emergency(parts: &Parts) -> Build {
    let (bus, picture) = (parts.bus.clone(), parts.emergency.clone());
    build(move |context| {
        let (signal_sender, signals) = mpsc::channel(SIGNALS_LEN_MAX);
        let (rerouted_sender, rerouted) = mpsc::channel(REROUTED_LEN_MAX);
        let lane = EmergencyLane {
            bus: bus.clone(),
            group: GROUP.to_owned(),
            signals: signal_sender,
            rerouted: rerouted_sender,
            heartbeat: context.heartbeat.clone(),
        };
        let (picture, heartbeat) = (picture.clone(), context.heartbeat);
        let receiver = Receiver { signals, rerouted, picture, heartbeat };
        async move {
            tokio::try_join!(lane.run(context.stop.clone()), receiver.run(context.stop))?;
            Ok::<(), oona::BusError>(())
        }
    })
}

fn prefetch(parts: &Parts) -> Build {
    let parts = parts.clone();
    build(move |context| {
        let prefetcher = urza::Prefetcher {
            bus: parts.bus.clone(),
            library: parts.library.clone(),
            demand: parts.forge.demand.clone(),
            variants: wiring::variants(
                &parts.blueprints.forge(wiring::forge_config(&parts.settings)),
            ),
            config: wiring::serving_config(&parts.settings, GROUP),
            metrics: parts.metrics.urza.clone(),
            heartbeat: context.heartbeat,
        };
        prefetcher.run(context.stop)
    })
}

fn maintenance(parts: &Parts) -> Build {
    let parts = parts.clone();
    build(move |context| {
        let lease = parts.bus.duty_at(urza::Maintenance::LEASE, parts.library.id());
        let maintenance = urza::Maintenance {
            lease,
            library: parts.library.clone(),
            demand: parts.forge.demand.clone(),
            config: urza::MaintenanceConfig {
                retention: crate::wiring::retention(&parts.settings),
                ..urza::MaintenanceConfig::default()
            },
            heartbeat: context.heartbeat,
        };
        maintenance.run(context.stop)
    })
}

fn forge(parts: &Parts) -> Build {
    let parts = parts.clone();
    build(move |context| {
        let forge = tezzeret::Forge {
            config: parts.blueprints.forge(wiring::forge_config(&parts.settings)),
            library: parts.library.clone(),
            bus: Some(parts.bus.clone()),
            queue_dir: wiring::queue_dir(&parts.settings),
            desk: parts.forge.desk.clone(),
            metrics: parts.metrics.tezzeret.clone(),
            heartbeat: context.heartbeat,
        };
        forge.run(context.stop)
    })
}

pub(super) fn policy_updates(
    bus: &Bus,
    store: &tamiyo::PolicyStore,
    settings: &tamiyo::UpdateSettings,
    metrics: &AllMetrics,
) -> Build {
    let (bus, store, settings) = (bus.clone(), store.clone(), settings.clone());
    let metrics = metrics.tamiyo.clone();
    build(move |context| {
        let updates = tamiyo::PolicyUpdates {
            bus: bus.clone(),
            store: store.clone(),
            settings: settings.clone(),
            metrics: metrics.clone(),
            heartbeat: context.heartbeat,
        };
        updates.run(context.stop)
    })
}

fn ingest(parts: &Parts) -> Build {
    let parts = parts.clone();
    build(move |context| {
        let ingest = nissa::Ingest {
            bus: parts.bus.clone(),
            config: wiring::ingest_config(&parts.settings),
            thresholds: parts.live.thresholds.clone(),
            board: parts.board.clone(),
            metrics: parts.metrics.nissa.clone(),
            heartbeat: context.heartbeat,
        };
        ingest.run(context.stop)
    })
}

fn telemetry(parts: &Parts) -> Build {
    let parts = parts.clone();
    build(move |context| {
        let telemetry = Telemetry {
            bus: parts.bus.clone(),
            health: parts.health.clone(),
            emergency: parts.emergency.subscribe(),
            metrics: parts.metrics.clone(),
            interval: parts.live.telemetry_interval.clone(),
            heartbeat: context.heartbeat,
        };
        telemetry.run(context.stop)
    })
}
