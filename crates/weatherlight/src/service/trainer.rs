//! What a training run needs beside its thread: the workers that fetch kernels for it and publish
//! what it says. They run in the demo beside the service, and in `train` by themselves.

use kasmina::{ErrorConsumer, Prefetch, PrefetchConfig, PrefetchDesk, ReadyConsumer, TrainerEnd};
use leyline::ids::RunId;
use leyline::sign::Keyring;
use oona::{Bus, BusError, Stream};

use super::boot_table::{BUS, row, stop};
use super::metrics::AllMetrics;
use super::parts::GROUP;
use crate::blueprints::Blueprints;
use crate::settings::EsperSettings;
use crate::supervisor::Criticality::{Critical, Parkable};
use crate::supervisor::{Build, Row, WorkerError, build};
use crate::wiring;

/// The streams a trainer reads answers from, in a group of its own.
const ANSWERS: [Stream; 2] = [Stream::KernelReady, Stream::KernelErrors];

/// The training thread's ends of everything. None of them blocks it.
#[derive(Debug)]
pub struct TrainerPorts {
    /// Orders for kernels, and what comes back.
    pub kernels: TrainerEnd,
    /// Copies for the bus.
    pub outbox: tolaria::Outbox,
    /// Field reports.
    pub reports: tamiyo::Reports,
    /// Signs and verifies commands.
    pub keyring: Keyring,
    /// The policy in force.
    pub policy: tamiyo::LivePolicy,
    /// Settings of the policy; the run adapts them.
    pub policy_config: tamiyo::Config,
    /// Settings of the seed manager; the run adapts them.
    pub seed_config: kasmina::Config,
    /// What is counted.
    pub metrics: AllMetrics,
}

/// What a trainer is attached to.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The run, named in every request.
    pub run: RunId,
    /// The bus.
    pub bus: Bus,
    /// The policies.
    pub policies: tamiyo::PolicyStore,
    /// Settings of the policy, with this trainer's directories.
    pub policy_config: tamiyo::Config,
    /// The blueprints of this process.
    pub blueprints: Blueprints,
    /// Every crate's metrics.
    pub metrics: AllMetrics,
}

/// The consumer group of a run: every trainer reads answers through one of its own.
pub fn group(run: &RunId) -> String {
    format!("trainer-{run}")
}

/// Makes the trainer's groups, before it asks for anything.
///
/// # Errors
/// [`BusError`] when the log fails.
pub async fn ensure_groups(bus: &Bus, run: &RunId) -> Result<(), BusError> {
    let group = group(run);
    bus.ensure_groups(&ANSWERS.map(|stream| (stream, group.as_str()))).await
}

/// Removes the trainer's groups, so that they hold nothing back on the log.
///
/// # Errors
/// [`BusError`] when the log fails.
pub async fn remove_groups(bus: &Bus, run: &RunId) -> Result<(), BusError> {
    for stream in ANSWERS {
        bus.remove_group(stream, &group(run)).await?;
    }
    Ok(())
}

/// The rows of a trainer, and what its thread holds.
pub fn attach(
    settings: &EsperSettings,
    keyring: Keyring,
    attachment: &Attachment,
) -> (TrainerPorts, Vec<Row>) {
    let Attachment { run, bus, policies, policy_config, blueprints, metrics } = attachment;
    let (desk, kernels) = PrefetchDesk::new(wiring::prefetch_config(settings));
    let (outbox, outgoing) = tolaria::Outbox::new(&metrics.tolaria);
    let (reports, inbox) = tamiyo::report_queue(&policy_config.reports, &metrics.tamiyo);
    let mut rows = coordinator(settings, run, &group(run), bus, metrics, &desk);
    let publisher = publisher(bus, metrics, outgoing);
    let field_reports = field_reports(bus, metrics, policy_config, inbox);
    rows.extend([
        row(settings, "kasmina.telemetry", Parkable, BUS, stop::OBSERVERS, publisher),
        row(settings, "tamiyo.reports", Parkable, BUS, stop::OBSERVERS, field_reports),
    ]);
    let ports = TrainerPorts {
        kernels,
        outbox,
        reports,
        keyring,
        policy: policies.live().clone(),
        policy_config: policy_config.clone(),
        seed_config: blueprints.seeds(wiring::seed_config(settings)),
        metrics: metrics.clone(),
    };
    (ports, rows)
}

/// The coordinator and what hands it the library's answers.
fn coordinator(
    settings: &EsperSettings,
    run: &RunId,
    group: &str,
    bus: &Bus,
    metrics: &AllMetrics,
    desk: &PrefetchDesk,
) -> Vec<Row> {
    let (prefetch, ready, errors) = (
        prefetch(run, bus, metrics, desk),
        ready(group, bus, metrics, desk),
        errors(group, bus, metrics, desk),
    );
    vec![
        row(settings, "kasmina.prefetch", Critical, BUS, stop::INTAKE, prefetch),
        row(settings, "kasmina.ready", Critical, BUS, stop::INTAKE, ready),
        row(settings, "kasmina.errors", Critical, BUS, stop::INTAKE, errors),
    ]
}

/// The coordinator of a service without a trainer in its process: it has no orders, and lets the
/// answers to others pass. The boot table is then the same in every process that serves.
///
/// # Errors
/// [`BusError`] when the log fails.
pub async fn idle(
    settings: &EsperSettings,
    bus: &Bus,
    metrics: &AllMetrics,
) -> Result<Vec<Row>, BusError> {
    bus.ensure_groups(&ANSWERS.map(|stream| (stream, GROUP))).await?;
    let (desk, _no_trainer) = PrefetchDesk::new(PrefetchConfig::default());
    Ok(coordinator(settings, &RunId::from(GROUP), GROUP, bus, metrics, &desk))
}

fn prefetch(run: &RunId, bus: &Bus, metrics: &AllMetrics, desk: &PrefetchDesk) -> Build {
    let (run, bus, metrics, desk) =
        (run.clone(), bus.clone(), metrics.kasmina.clone(), desk.clone());
    build(move |context| {
        let prefetch = Prefetch {
            bus: bus.clone(),
            run: run.clone(),
            desk: desk.clone(),
            metrics: metrics.clone(),
            heartbeat: context.heartbeat,
        };
        prefetch.run(context.stop)
    })
}

fn ready(group: &str, bus: &Bus, metrics: &AllMetrics, desk: &PrefetchDesk) -> Build {
    let (group, bus, metrics, desk) =
        (group.to_owned(), bus.clone(), metrics.kasmina.clone(), desk.clone());
    build(move |context| {
        let consumer = ReadyConsumer {
            bus: bus.clone(),
            group: group.clone(),
            replies: desk.replies(),
            metrics: metrics.clone(),
            heartbeat: context.heartbeat,
        };
        consumer.run(context.stop)
    })
}

fn errors(group: &str, bus: &Bus, metrics: &AllMetrics, desk: &PrefetchDesk) -> Build {
    let (group, bus, metrics, desk) =
        (group.to_owned(), bus.clone(), metrics.kasmina.clone(), desk.clone());
    build(move |context| {
        let consumer = ErrorConsumer {
            bus: bus.clone(),
            group: group.clone(),
            replies: desk.replies(),
            metrics: metrics.clone(),
            heartbeat: context.heartbeat,
        };
        consumer.run(context.stop)
    })
}

/// Keeps and publishes field reports.
fn field_reports(
    bus: &Bus,
    metrics: &AllMetrics,
    config: &tamiyo::Config,
    inbox: tamiyo::ReportInbox,
) -> Build {
    let (bus, metrics, config) = (bus.clone(), metrics.tamiyo.clone(), config.clone());
    build(move |context| {
        let worker = tamiyo::FieldReports {
            bus: bus.clone(),
            settings: config.reports.clone(),
            dir: config.report_dir.clone(),
            inbox: inbox.clone(),
            metrics: metrics.clone(),
            heartbeat: context.heartbeat,
        };
        worker.run(context.stop)
    })
}

/// Puts the training thread's copies on the bus: states, commands, telemetry of trainer and seeds.
fn publisher(bus: &Bus, metrics: &AllMetrics, outbox: tolaria::OutboxEnd) -> Build {
    let (bus, metrics) = (bus.clone(), metrics.tolaria.clone());
    build(move |context| {
        let publisher = tolaria::Publisher {
            bus: bus.clone(),
            outbox: outbox.clone(),
            metrics: metrics.clone(),
            heartbeat: context.heartbeat.clone(),
        };
        async move {
            publisher.run(context.stop.clone()).await?;
            // It also returns when the run is over, and then there is nothing left to do.
            context.heartbeat.during("the run is over", context.stop.cancelled()).await;
            Ok::<(), WorkerError>(())
        }
    })
}
