//! The training loop: one thread, which never waits for anything. What comes from outside (kernels) is taken when it is
//! there, what goes outside (copies for the bus, progress, reports) is handed over or dropped.
//!
//! Here are its parts and its outermost loop. [`epoch`] is one turn of it, [`kernels`] what comes in, [`hook`] the
//! decision at the end of an epoch, [`growth`] what that does to the network, [`show`] and [`finish`] what is told.

mod epoch;
mod finish;
mod growth;
mod hook;
mod kernels;
mod show;
#[cfg(test)]
mod stressors;
mod times;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kasmina::{Fetched, SeedManager};
use leyline::ids::SeedId;
use tamiyo::{Candidates, Policy, Reports};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::finish::First;
use self::times::Times;
use crate::checkpoint::Checkpointer;
use crate::clock::Clock;
use crate::data::Part;
use crate::error::{CheckpointError, TrainError};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::network::{Network, Score, Snapshot};
use crate::prepared::Prepared;
use crate::progress::{End, Epoch, Outcome, Progress};
use crate::publisher::Outbox;
use crate::statistics::{Average, Volatility};

/// What connects the training thread with the rest of the process. No end of it ever blocks.
pub struct Channels {
    /// Kernels and failures: [`kasmina::TrainerEnd::results`].
    pub fetched: mpsc::Receiver<Fetched>,
    /// Copies for the bus, to [`crate::Publisher`].
    pub outbox: Outbox,
    /// Field reports, to the policy's report worker.
    pub reports: Reports,
    /// For those who watch.
    pub progress: watch::Sender<Progress>,
    /// Counted here.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

/// One training run, ready to go.
pub struct Training {
    prepared: Prepared,
    train: Arc<Part>,
    manager: SeedManager,
    policy: Policy,
    candidates: Candidates,
    channels: Channels,
    network: Network,
    seeds: Vec<SeedId>,
    clock: Clock,
    journal: Journal,
    history: Arc<Vec<Epoch>>,
    /// Kernels in hand, waiting for their epoch.
    waiting: Vec<Fetched>,
    /// Host and validation loss from before each graft took part.
    before: BTreeMap<SeedId, (Snapshot, f32)>,
    first: Option<First>,
    last: Option<Score>,
    times: Times,
    volatility: Volatility,
    loss_average: Average,
    norm_average: Average,
    violations: u32,
    rollbacks: u32,
    timing_findings: u32,
    calm_epochs: u32,
    telemetry_at: Option<Instant>,
    checkpoints: Option<Checkpointer>,
}

impl std::fmt::Debug for Training {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Training").field("run", &self.prepared.config.run).finish_non_exhaustive()
    }
}

impl Training {
    /// Joins the parts. `manager` must be made with [`Prepared::kasmina_config`] and be without slots; `policy` should
    /// be made with [`Prepared::policy_config`].
    ///
    /// # Errors
    /// [`TrainError`] when the host cannot be built or the seed manager refuses it.
    pub fn new(
        prepared: Prepared,
        mut manager: SeedManager,
        policy: Policy,
        channels: Channels,
    ) -> Result<Self, TrainError> {
        let config = &prepared.config;
        let seeds = config.seed_ids();
        let network =
            Network::new(prepared.shape, &seeds, prepared.batch, config.rate, config.seed)?;
        manager
            .register_host(&network.host_parameters())
            .map_err(|source| TrainError::Host { source })?;
        for seed in &seeds {
            // All slots come right after the host's first layer, one behind the other.
            let shape = vec![config.width];
            manager.register_slot(kasmina::Slot { seed: seed.clone(), layer_depth: 1, shape })?;
        }
        let candidates = prepared.candidates(policy.catalogue());
        let checkpoints = match &config.checkpoints {
            Some(directory) => Some(
                Checkpointer::start(directory.clone())
                    .map_err(|source| CheckpointError::Io { path: directory.clone(), source })?,
            ),
            None => None,
        };
        let clock = Clock::start(prepared.epoch_steps, 0, 0);
        Ok(Self {
            train: Arc::new(prepared.split.train.clone()),
            prepared,
            manager,
            policy,
            candidates,
            channels,
            network,
            seeds,
            clock,
            journal: Journal::default(),
            history: Arc::default(),
            waiting: Vec::new(),
            before: BTreeMap::new(),
            first: None,
            last: None,
            times: Times::default(),
            volatility: Volatility::default(),
            loss_average: Average::default(),
            norm_average: Average::default(),
            violations: 0,
            rollbacks: 0,
            timing_findings: 0,
            calm_epochs: 0,
            telemetry_at: None,
            checkpoints,
        })
    }

    /// Trains to the end, or until stopped: between two steps, so within milliseconds. Blocking: give it a thread.
    ///
    /// # Errors
    /// [`TrainError`]
    pub fn run(mut self, stop: &CancellationToken) -> Result<Outcome, TrainError> {
        let started = Instant::now();
        info!(run = %self.prepared.config.run, task = %self.prepared.data.name, seed = self.prepared.config.seed, "training begins");
        let end = loop {
            if self.clock.epoch >= self.prepared.config.epochs_max {
                break End::EpochsUsed;
            }
            if stop.is_cancelled() || !self.epoch(stop)? {
                break End::Stopped;
            }
            if self.calm_epochs >= self.prepared.config.calm_epochs {
                break End::Settled;
            }
        };
        self.conclude(end, started.elapsed(), stop)
    }
}
