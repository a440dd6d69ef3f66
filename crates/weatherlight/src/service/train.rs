//! A training run against a running service: only what the run itself needs, on the same supervisor.
//! The service fetches and compiles; the bus between them is Redis.

use std::pin::Pin;
use std::sync::Arc;

use leyline::ids::RunId;
use nissa::WorkerControl;
use oona::Bus;
use tokio::sync::{oneshot, watch};

use super::boot_table::{self, BUS, row, stop};
use super::metrics::AllMetrics;
use super::parts::{OpenError, open_bus_alone, open_policies, read_blueprints};
use super::start;
use super::trainer::{self, Attachment, TrainerPorts};
use crate::otlp::Otlp;
use crate::settings::EsperSettings;
use crate::supervisor::Criticality::Parkable;
use crate::supervisor::{
    Boot, BootFailure, BusPicture, Exit, Handle, Identity, RestartPolicy, Row, Setup, Supervisor,
    Watchdog,
};
use crate::wiring;

/// A training run that was put together; its workers live while [`Trainer::run`] is awaited.
pub struct Trainer {
    /// The asking end.
    pub handle: Handle,
    /// The training thread's ends, once the bus is open; nothing when the boot fails.
    pub opened: oneshot::Receiver<TrainerPorts>,
    /// Runs the workers to their end.
    pub run: Pin<Box<dyn Future<Output = Exit> + Send>>,
}

/// Puts a training run together. Opens nothing: that is the boot's, under supervision.
///
/// # Errors
/// When the watchdog gets no thread, or a setting of the telemetry collector cannot be used.
pub fn start_trainer(settings: EsperSettings, run: RunId) -> anyhow::Result<Trainer> {
    let (metrics, registry) = AllMetrics::register();
    let otlp = Otlp::open(&settings, &registry, &metrics.own.otlp)?;
    // Nobody asks a trainer over HTTP.
    let (_, control) = WorkerControl::channel();
    let (watchdog, watched) = Watchdog::start()?;
    let (supervisor, handle) = Supervisor::new(Setup {
        policy: RestartPolicy::default(),
        drain_timeout: settings.drain_timeout,
        identity: Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log: "redis".to_owned(),
        },
        control,
        bus: watch::Sender::new(BusPicture::default()).subscribe(),
        reload: Box::new(|| tracing::warn!("a training run keeps the settings it began with")),
        watched,
    });
    let (bus_sender, opened_bus) = oneshot::channel();
    let (sender, opened) = oneshot::channel();
    let boot: Boot =
        Box::pin(boot(Arc::new(settings), metrics, otlp, run.clone(), bus_sender, sender));
    let run = Box::pin(start::run(
        supervisor,
        (handle.clone(), watchdog),
        Vec::new(),
        boot,
        opened_bus,
        Some(run),
    ));
    Ok(Trainer { handle, opened, run })
}

async fn boot(
    settings: Arc<EsperSettings>,
    metrics: AllMetrics,
    otlp: Option<Otlp>,
    run: RunId,
    opened_bus: oneshot::Sender<Bus>,
    opened: oneshot::Sender<TrainerPorts>,
) -> Result<Vec<Row>, BootFailure> {
    let keyring = wiring::keyring(&settings).ok_or(OpenError::NoSecret)?;
    let blueprints = read_blueprints(&settings).await?;
    let tracer = otlp.as_ref().map(Otlp::tracer).unwrap_or_default();
    let bus = open_bus_alone(&settings, &metrics, tracer).await?;
    // A receiver that is gone belongs to a run that has ended.
    let _ = opened_bus.send(bus.clone());
    trainer::ensure_groups(&bus, &run).await.map_err(OpenError::from)?;
    let policy_config = blueprints.policy(own_policy_config(&settings, &run));
    let policies = open_policies(policy_config.clone()).await?;
    let mut rows = boot_table::bus_rows(&settings, &bus);
    rows.push(row(
        &settings,
        "tamiyo.policy",
        Parkable,
        BUS,
        stop::INTAKE,
        boot_table::policy_updates(&bus, &policies, &policy_config.updates, &metrics),
    ));
    let attachment = Attachment { run, bus, policies, policy_config, blueprints, metrics };
    let (ports, more) = trainer::attach(&settings, keyring, &attachment);
    rows.extend(more);
    rows.extend(otlp.map(|otlp| boot_table::otlp(&settings, otlp)));
    let _ = opened.send(ports);
    Ok(rows)
}

/// The policy's settings with a group and directories of this run's own: an update must reach every
/// process that decides, and one process at a time uses a directory.
fn own_policy_config(settings: &EsperSettings, run: &RunId) -> tamiyo::Config {
    let mut config = wiring::policy_config(settings);
    let root = settings.state_dir.join("trainers").join(run.as_str());
    config.policy_dir = root.join("policies");
    config.report_dir = root.join("reports");
    config.updates.group = trainer::group(run);
    config
}
