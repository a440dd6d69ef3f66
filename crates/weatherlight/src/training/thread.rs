//! The training thread: it runs beside everything else and waits for none of it.

use std::thread;

use kasmina::SeedManager;
use tamiyo::Policy;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tolaria::{Channels, Outcome, Prepared, Progress, TrainError, Training};

use crate::service::TrainerPorts;

/// A run on its thread.
#[derive(Debug)]
pub struct Run {
    /// Snapshots of it.
    pub progress: watch::Receiver<Progress>,
    /// What it ends with. Nothing comes when the thread panicked; the panic hook has reported it.
    pub outcome: oneshot::Receiver<Result<Outcome, TrainError>>,
}

/// Starts a run on a thread of its own. It ends by itself or, between two steps, by `stop`.
///
/// # Errors
/// When the system has no thread left.
pub fn start(
    prepared: Prepared,
    ports: TrainerPorts,
    stop: CancellationToken,
) -> std::io::Result<Run> {
    let (progress, watched) = watch::channel(Progress::default());
    let (sender, outcome) = oneshot::channel();
    thread::Builder::new().name("training".to_owned()).spawn(move || {
        let result = train(prepared, ports, progress, &stop);
        // Whoever asked may have gone.
        let _ = sender.send(result);
    })?;
    Ok(Run { progress: watched, outcome })
}

fn train(
    prepared: Prepared,
    ports: TrainerPorts,
    progress: watch::Sender<Progress>,
    stop: &CancellationToken,
) -> Result<Outcome, TrainError> {
    let seed_config = kasmina::Config {
        embargo: ports.seed_config.embargo,
        fetch_deadline: ports.seed_config.fetch_deadline,
        withheld: ports.seed_config.withheld,
        ..prepared.kasmina_config()
    };
    let manager = SeedManager::new(
        seed_config,
        kasmina::Parts {
            run: prepared.config.run.clone(),
            keyring: Some(ports.keyring.clone()),
            orders: ports.kernels.orders,
            metrics: ports.metrics.kasmina.clone(),
        },
    );
    let policy_config = prepared.policy_config(ports.policy_config);
    let policy = Policy::new(policy_config, ports.policy, ports.keyring);
    let channels = Channels {
        fetched: ports.kernels.results,
        outbox: ports.outbox,
        reports: ports.reports,
        progress,
        metrics: ports.metrics.tolaria.clone(),
    };
    Training::new(prepared, manager, policy, channels)?.run(stop)
}
