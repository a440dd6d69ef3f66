//! The training loop: one thread, which never waits for anything. What comes from outside (kernels) is taken when it is
//! there, what goes outside (copies for the bus, progress, reports) is handed over or dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kasmina::{
    BlendMode, CommandError, Effect, Fetched, FetchedKernel, Hold, Interface, Observation,
    OutputScale, Rollback, SeedManager, Validation,
};
use leyline::Stage;
use leyline::ids::{CommandId, SeedId};
use leyline::wire::{CommandOptimizerAdjustment, MessagePriority, SystemStatePacket};
use oona::Stream;
use tamiyo::{Candidates, Context, Decision, Horizon, Policy, Reason, Reports};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::batches::Batches;
use crate::boundary;
use crate::checkpoint::{Checkpoint, Checkpointer};
use crate::clock::Clock;
use crate::compare;
use crate::config::Comparison;
use crate::data::Part;
use crate::error::{CheckpointError, TrainError};
use crate::host::Mode;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::network::{Graft, Network, Score, SeedStep, Snapshot, StepOutcome};
use crate::packet::{self, Figures as PacketFigures};
use crate::prepared::Prepared;
use crate::progress::{Boundary, End, Epoch, Figures, Outcome, Phase, Progress, SeedView};
use crate::publisher::Outbox;
use crate::statistics::{Average, EpochFigures, Volatility, median};

/// Times kept for the medians of the report.
const TIMES_MAX: usize = 100_000;
/// A change of the learning rate by a command stays within this share.
const RATE_CHANGE_MAX: f32 = 0.5;
/// Key of an optimiser command: change of the learning rate as a share of it.
const LR_DELTA: &str = tamiyo::LR_DELTA;
/// After a graft is taken out, the host is brought back when its loss is this much above what it was before.
const HURT_MIN: f32 = 0.01;
/// Telemetry without news goes out once in this time, however short the epochs are.
const TELEMETRY_EVERY: Duration = Duration::from_millis(500);

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

/// The host when growth began.
#[derive(Debug)]
struct First {
    figures: Figures,
    boundary: Option<Boundary>,
}

/// Measured times; those of the previous epoch go into a packet.
#[derive(Debug, Default)]
struct Times {
    steps_us: Vec<f64>,
    hooks_us: Vec<f64>,
    step_ms: f32,
    hook_ms: Option<f32>,
    decide_ms: Option<f32>,
    apply_ms: Option<f32>,
    finalize_ms: Option<f32>,
    samples_per_s: f32,
    /// Fastest isolated pass of each seed: its cost, whatever else the machine was doing.
    isolated_ms: BTreeMap<SeedId, f32>,
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
        let candidates = prepared.candidates();
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

    /// One epoch. `false` when it was interrupted.
    fn epoch(&mut self, stop: &CancellationToken) -> Result<bool, TrainError> {
        let began = Instant::now();
        self.clock.next_epoch();
        self.take_kernels()?;
        let ticked = self.manager.tick(self.clock.now());
        self.carry_out(ticked)?;

        let mut figures = EpochFigures::default();
        let train = Arc::clone(&self.train);
        let batches = Batches::new(
            &train,
            self.prepared.batch,
            self.prepared.epoch_steps,
            self.prepared.config.seed,
            self.clock.epoch,
        );
        let mut last = StepOutcome::default();
        for (index, (features, labels)) in batches.iter().enumerate() {
            if stop.is_cancelled() {
                return Ok(false);
            }
            let step_began = Instant::now();
            let outcome = self.network.step(&features, &labels)?;
            self.times.step(step_began.elapsed());
            self.channels.metrics.steps.inc();
            self.clock.next_step();
            figures.add(outcome.loss, outcome.gradient_norm);
            // The last step is reported with the validation it leads to, below.
            if index + 1 < self.prepared.epoch_steps {
                self.report_step(&outcome, None)?;
            } else {
                last = outcome;
            }
        }
        if !figures.loss().is_finite() {
            return Err(TrainError::Diverged { epoch: self.clock.epoch });
        }
        self.times.epoch(began.elapsed(), self.prepared.epoch_steps, self.prepared.batch);
        let score = self.network.evaluate(&self.prepared.split.validation)?;
        let test = self.network.evaluate(&self.prepared.split.test)?;
        let finalize = Instant::now();
        self.finish_epoch(&last, score)?;
        self.times.finalize_ms = Some(milliseconds(finalize.elapsed()));
        self.last = Some(score);

        let decision = self.hook(&figures, score)?;
        self.settle(&decision);
        self.record(&figures, score, test);
        self.channels.metrics.epoch_seconds.observe(began.elapsed().as_secs_f64());
        if self.clock.epoch.is_multiple_of(self.prepared.config.checkpoint_epochs)
            && let Some(checkpoints) = &self.checkpoints
        {
            checkpoints.offer(self.checkpoint());
        }
        self.show(Phase::Training);
        pause(self.prepared.config.epoch_time_min.saturating_sub(began.elapsed()), stop);
        Ok(true)
    }

    fn checkpoint(&self) -> Checkpoint {
        let config = &self.prepared.config;
        let (run, params) = (config.run.to_string(), self.network.params());
        Checkpoint { run, seed: config.seed, epoch: self.clock.epoch, params }
    }

    /// Takes what the coordinator has sent, and gives to their seeds the kernels whose epoch has come.
    fn take_kernels(&mut self) -> Result<(), TrainError> {
        self.receive_kernels();
        self.wait_for_kernels();
        let (epoch, wait) = (self.clock.epoch, self.prepared.config.attach_after_epochs);
        let due = |journal: &Journal, fetched: &Fetched| {
            journal
                .germinated_epoch(&fetched.seed)
                .is_none_or(|germinated| germinated + wait <= epoch)
        };
        let (now_due, later): (Vec<Fetched>, Vec<Fetched>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|fetched| due(&self.journal, fetched));
        self.waiting = later;
        for fetched in now_due {
            let germinated = self.journal.germinated_epoch(&fetched.seed).unwrap_or(epoch);
            let late = epoch.saturating_sub(germinated + wait);
            if late > 0 {
                self.channels.metrics.kernels_late.inc();
                warn!(seed = %fetched.seed, late_epochs = late, "kernel came late, this run cannot be repeated to the bit");
                self.journal.late(&fetched.seed, late);
            }
            let effects = self.manager.on_fetched(fetched, self.clock.now());
            self.carry_out(effects)?;
        }
        Ok(())
    }

    fn receive_kernels(&mut self) {
        while let Ok(fetched) = self.channels.fetched.try_recv() {
            self.waiting.push(fetched);
        }
    }

    /// Waits for kernels whose epoch has come, where that is wanted at all.
    fn wait_for_kernels(&mut self) {
        const LOOK_EVERY: Duration = Duration::from_millis(1);
        let began = Instant::now();
        while began.elapsed() < self.prepared.config.kernel_wait_max && self.lacks_kernel() {
            std::thread::park_timeout(LOOK_EVERY);
            self.receive_kernels();
        }
    }

    /// Whether a seed should have its kernel by now and has not.
    fn lacks_kernel(&self) -> bool {
        self.seeds.iter().any(|seed| {
            let germinated = self.manager.stage(seed) == Some(Stage::Germinated);
            let due = self.journal.germinated_epoch(seed).is_some_and(|epoch| {
                epoch + self.prepared.config.attach_after_epochs <= self.clock.epoch
            });
            germinated && due && !self.waiting.iter().any(|fetched| fetched.seed == *seed)
        })
    }

    /// Tells the seed manager what a step showed of each seed.
    fn report_step(
        &mut self,
        outcome: &StepOutcome,
        validation: Option<Validation>,
    ) -> Result<(), TrainError> {
        for step in &outcome.seeds {
            let observation = self.observation(step, validation);
            let advanced = self.manager.advance(&step.seed, &observation, self.clock.now());
            match advanced {
                Ok(effects) => self.carry_out(effects)?,
                Err(error) => {
                    warn!(seed = %step.seed, %error, "seed manager does not know the seed")
                }
            }
        }
        for seed in &self.seeds {
            self.network.set_alpha(seed, self.manager.host_alpha(seed))?;
        }
        Ok(())
    }

    fn observation(&mut self, step: &SeedStep, validation: Option<Validation>) -> Observation {
        if let Some(taken) = step.isolated_ms {
            let best = self.times.isolated_ms.entry(step.seed.clone()).or_insert(taken);
            *best = best.min(taken);
        }
        if step
            .host_gradient_norm
            .is_some_and(|norm| kasmina::isolation::check(f64::from(norm)).is_err())
        {
            self.violations += 1;
        }
        Observation {
            loss: Some(f64::from(step.loss)),
            gradient_norm: step.gradient_norm.map(f64::from),
            host_gradient_norm: step.host_gradient_norm.map(f64::from),
            learning_rate: Some(f64::from(self.prepared.config.rate)),
            latency_ms: self.times.isolated_ms.get(&step.seed).copied().map(f64::from),
            output: step.scale.map(|(host, seed)| OutputScale {
                host_rms: f64::from(host),
                seed_rms: f64::from(seed),
            }),
            // The graph was composed with the seed in it, so the shapes were inferred and fit.
            interface: Some(Interface::Matches),
            validation,
        }
    }

    /// Reports the epoch's last step together with the validation.
    fn finish_epoch(&mut self, last: &StepOutcome, score: Score) -> Result<(), TrainError> {
        let validation =
            Validation { loss: f64::from(score.loss), accuracy: f64::from(score.accuracy) };
        self.manager.note_validation(validation);
        for step in &last.seeds {
            self.journal.validated(&step.seed, validation.loss, self.manager.stage(&step.seed));
        }
        self.report_step(last, Some(validation))
    }

    /// State, decision, command: the epoch hook.
    fn hook(&mut self, figures: &EpochFigures, score: Score) -> Result<Decision, TrainError> {
        let began = Instant::now();
        let now = self.clock.now();
        let state = self.state(figures, score);
        let config = &self.prepared.config;
        let too_late = self.clock.epoch + config.growth_epochs() > config.epochs_max;
        let given_up = self.journal.failures_in_a_row() >= config.failures_max;
        let horizon =
            if too_late || given_up || self.is_fine() { Horizon::Short } else { Horizon::Open };
        let context = Context {
            now_unix_ms: now.unix_ms,
            epoch: self.clock.epoch,
            command_id: CommandId::fresh(),
            candidates: self.candidates.clone(),
            culled: Vec::new(),
            horizon,
        };
        let deciding = Instant::now();
        let decision = self.policy.decide(&state, &context);
        self.timing_findings += timing_findings(&decision);
        self.times.decide_ms = Some(milliseconds(deciding.elapsed()));
        if let Some(command) = &decision.command {
            let applying = Instant::now();
            let applied = self.manager.apply(command, now);
            self.times.apply_ms = Some(milliseconds(applying.elapsed()));
            match applied {
                Ok(effects) => self.carry_out(effects)?,
                Err(error) => self.refused(&error),
            }
        }
        let taken = began.elapsed();
        self.times.hook(taken);
        self.channels.metrics.hook_seconds.observe(taken.as_secs_f64());
        self.send(state, &decision, &context);
        Ok(decision)
    }

    fn refused(&mut self, error: &CommandError) {
        warn!(%error, epoch = self.clock.epoch, "seed manager refused a command");
    }

    fn state(&mut self, figures: &EpochFigures, score: Score) -> SystemStatePacket {
        let before = self.last_validation_loss();
        let measured = PacketFigures {
            run: self.prepared.config.run.clone(),
            experiment: self.prepared.data.name.clone(),
            epoch: self.clock.epoch,
            epochs_total: self.prepared.config.epochs_max,
            step: self.clock.step,
            training_loss: figures.loss(),
            validation: score,
            loss_delta: before.map(|before| score.loss - before),
            loss_average: self.loss_average.add(figures.loss()),
            loss_volatility: self.volatility.add(figures.loss()),
            gradient_norm: figures.gradient_norm(),
            gradient_norm_average: self.norm_average.add(figures.gradient_norm()),
            gradient_variance: figures.gradient_variance(),
            learning_rate: self.network.rate(),
            samples_per_s: self.times.samples_per_s,
            step_ms: self.times.step_ms,
            hook_ms: self.times.hook_ms,
            decide_ms: self.times.decide_ms,
            apply_ms: self.times.apply_ms,
            finalize_ms: self.times.finalize_ms,
            violations: self.violations,
        };
        packet::state(&measured, self.manager.states(self.clock.now()))
    }

    fn last_validation_loss(&self) -> Option<f32> {
        self.history.last().map(|epoch| epoch.validation_loss)
    }

    /// Copies for the bus.
    fn send(&mut self, state: SystemStatePacket, decision: &Decision, context: &Context) {
        let outbox = &self.channels.outbox;
        outbox.send(Stream::Normal, MessagePriority::Normal, state);
        if let Some(command) = &decision.command {
            outbox.send(Stream::Normal, MessagePriority::High, command.clone());
        }
        self.channels.reports.offer(decision.reports.iter().cloned());
        let news = !decision.events.is_empty() || decision.command.is_some();
        let due = self.telemetry_at.is_none_or(|at| at.elapsed() >= TELEMETRY_EVERY);
        if !news && !due {
            return;
        }
        self.telemetry_at = Some(Instant::now());
        outbox.send(Stream::Telemetry, decision.priority, decision.telemetry(context, Vec::new()));
        for packet in self.manager.drain_telemetry(self.clock.now()) {
            outbox.send(Stream::Telemetry, packet.priority, packet.packet);
        }
        let own = packet::telemetry(
            &self.prepared.config.run,
            self.clock.epoch,
            self.last,
            &self.times_now(),
        );
        outbox.send(Stream::Telemetry, MessagePriority::Normal, own);
    }

    fn times_now(&self) -> packet::EpochTimes {
        let active = self.seeds.iter().filter(|seed| self.is_growing(seed)).count();
        packet::EpochTimes {
            hook_ms: self.times.hook_ms,
            step_ms: self.times.step_ms,
            seeds_active: active,
        }
    }

    /// Does to the network what the seed manager asks for.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), TrainError> {
        for effect in effects {
            match effect {
                Effect::Attach { seed, kernel, blend } => self.attach(&seed, &kernel, blend)?,
                Effect::Moved { seed, moved } => self.moved(&seed, moved.to)?,
                Effect::Detach { seed, rollback } => self.detach(&seed, &rollback)?,
                Effect::Pause(seed) => self.network.set_mode(&seed, Mode::Identity)?,
                Effect::Resume(seed) => {
                    if let Some(stage) = self.manager.stage(&seed) {
                        self.network.set_mode(&seed, mode_of(stage))?;
                    }
                }
                Effect::AdjustOptimizer(adjustment) => self.adjust(&adjustment)?,
                Effect::EmergencyCleanup => self.before.clear(),
            }
        }
        Ok(())
    }

    fn attach(
        &mut self,
        seed: &SeedId,
        kernel: &FetchedKernel,
        blend: BlendMode,
    ) -> Result<(), TrainError> {
        // Every seed has an instance of its own of the shared, immutable artifact.
        let opened = &kernel.kernel;
        let graft = Graft { graph: opened.graph().clone(), params: opened.params().clone() };
        let parameters = graft.parameter_count();
        let fitted = self.network.attach(seed, graft, blend, self.prepared.config.rate);
        match fitted {
            Ok(()) => {
                self.journal.attached(seed, kernel, parameters);
                info!(%seed, blueprint = %kernel.blueprint, epoch = self.clock.epoch, "kernel attached");
                Ok(())
            }
            Err(error) => {
                warn!(%seed, blueprint = %kernel.blueprint, %error, "kernel cannot be grown");
                let effects = self.manager.fail(seed, &error.to_string(), self.clock.now());
                self.carry_out(effects)
            }
        }
    }

    fn moved(&mut self, seed: &SeedId, to: Stage) -> Result<(), TrainError> {
        if to == Stage::Germinated {
            self.note_first()?;
            if let Some(graft) = self.manager.seed(seed).and_then(|seed| seed.life().graft()) {
                self.journal.germinated(seed, &graft.blueprint);
            }
        }
        self.journal.moved(seed, to, &self.clock);
        if to == Stage::Blending {
            let loss = self.last.map_or(f32::NAN, |score| score.loss);
            self.before.insert(seed.clone(), (self.network.snapshot(), loss));
            self.manager.set_snapshot(seed, format!("memory:step-{}", self.clock.step));
        }
        if to == Stage::Fossilized {
            self.before.remove(seed);
            info!(%seed, epoch = self.clock.epoch, "seed kept");
        }
        if has_graft(to) {
            let paused = self.manager.seed(seed).is_some_and(|seed| seed.hold == Hold::Paused);
            let mode = if paused { Mode::Identity } else { mode_of(to) };
            // A kernel that could not be attached left the slot empty; its end is on its way.
            if self.network.has_graft(seed) {
                self.network.set_mode(seed, mode)?;
            }
        }
        self.network.set_alpha(seed, self.manager.host_alpha(seed))?;
        Ok(())
    }

    /// Takes a graft out, and brings the host back when it was hurt.
    fn detach(&mut self, seed: &SeedId, rollback: &Rollback) -> Result<(), TrainError> {
        self.network.detach(seed)?;
        self.times.isolated_ms.remove(seed);
        self.journal.ended(seed, &rollback.reason);
        info!(%seed, reason = %rollback.reason, epoch = self.clock.epoch, "seed removed");
        let Some((snapshot, loss_before)) = self.before.remove(seed) else { return Ok(()) };
        let without = self.network.evaluate(&self.prepared.split.validation)?;
        let is_unhurt = without.loss <= loss_before + HURT_MIN;
        if !is_unhurt {
            self.network.restore_host(&snapshot)?;
            self.rollbacks += 1;
            self.channels.metrics.rollbacks.inc();
            info!(%seed, "host brought back to before the graft");
        }
        Ok(())
    }

    fn adjust(&mut self, adjustment: &CommandOptimizerAdjustment) -> Result<(), TrainError> {
        let delta = adjustment.hyperparameters.get(LR_DELTA).copied().unwrap_or(0.0);
        if delta.is_finite() {
            self.network.scale_rates(1.0 + delta.clamp(-RATE_CHANGE_MAX, RATE_CHANGE_MAX))?;
        }
        Ok(())
    }

    /// Measures the host once, when growth begins.
    fn note_first(&mut self) -> Result<(), TrainError> {
        if self.first.is_none() {
            self.first = Some(self.measure_first()?);
        }
        Ok(())
    }

    fn measure_first(&mut self) -> Result<First, TrainError> {
        let figures = self.figures(Duration::from_secs_f64(self.clock.wall_ms() / 1e3))?;
        let boundary = boundary::of(&mut self.network, &self.prepared)?;
        Ok(First { figures, boundary })
    }

    fn figures(&mut self, taken: Duration) -> Result<Figures, TrainError> {
        let score = self.network.evaluate(&self.prepared.split.test)?;
        Ok(Figures {
            accuracy: score.accuracy,
            loss: score.loss,
            parameters: self.network.parameter_count(),
            epochs: self.clock.epoch,
            seconds: taken.as_secs_f64(),
        })
    }

    /// Counts the epochs in which there was nothing to do and nothing to wait for.
    fn settle(&mut self, decision: &Decision) {
        let growing = self.seeds.iter().any(|seed| self.is_growing(seed));
        let nothing_left = matches!(
            decision.reason,
            Reason::TargetReached
                | Reason::NoSeedCandidates
                | Reason::NoBlueprintCandidates
                | Reason::HorizonShort
        );
        let calm = !growing && decision.command.is_none() && (nothing_left || self.is_fine());
        self.calm_epochs = if calm { self.calm_epochs + 1 } else { 0 };
    }

    /// Whether the loss is as low as wanted.
    fn is_fine(&self) -> bool {
        self.last.is_some_and(|score| score.loss <= self.prepared.config.loss_fine)
    }

    fn is_growing(&self, seed: &SeedId) -> bool {
        self.manager.stage(seed).is_some_and(|stage| match stage {
            Stage::Germinated
            | Stage::Training
            | Stage::Blending
            | Stage::Shadowing
            | Stage::Probationary => true,
            Stage::Dormant
            | Stage::Fossilized
            | Stage::Culled
            | Stage::Embargoed
            | Stage::Resetting
            | Stage::Terminated => false,
        })
    }

    fn record(&mut self, figures: &EpochFigures, score: Score, test: Score) {
        let metrics = &self.channels.metrics;
        metrics.epochs.inc();
        metrics.validation_loss.set(f64::from(score.loss));
        metrics.validation_accuracy.set(f64::from(score.accuracy));
        metrics.parameters.set(i64::try_from(self.network.parameter_count()).unwrap_or(i64::MAX));
        let stage = |seed: &SeedId| self.manager.stage(seed).map_or(0, |stage| stage.wire() as i32);
        let epoch = Epoch {
            epoch: self.clock.epoch,
            training_loss: figures.loss(),
            validation_loss: score.loss,
            validation_accuracy: score.accuracy,
            test_accuracy: test.accuracy,
            parameters: self.network.parameter_count(),
            alphas: self.seeds.iter().map(|seed| self.manager.host_alpha(seed)).collect(),
            stages: self.seeds.iter().map(stage).collect(),
        };
        Arc::make_mut(&mut self.history).push(epoch);
    }

    /// A snapshot for those who watch.
    fn show(&mut self, phase: Phase) {
        let in_flight = self
            .seeds
            .iter()
            .filter(|seed| self.manager.stage(seed) == Some(Stage::Germinated))
            .count();
        self.channels.metrics.kernels_in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let view = |id: &SeedId| {
            let seed = self.manager.seed(id)?;
            Some(SeedView {
                seed: id.clone(),
                stage: seed.stage(),
                alpha: self.manager.host_alpha(id),
                blueprint: seed.life().graft().map(|graft| graft.blueprint.clone()),
                paused: seed.hold == Hold::Paused,
            })
        };
        let newest = self.history.last();
        let progress = Progress {
            phase,
            epoch: self.clock.epoch,
            epochs_max: self.prepared.config.epochs_max,
            loss: newest.map_or(f32::NAN, |epoch| epoch.validation_loss),
            accuracy: newest.map_or(0.0, |epoch| epoch.validation_accuracy),
            test_accuracy: newest.map_or(0.0, |epoch| epoch.test_accuracy),
            parameters: self.network.parameter_count(),
            seeds: self.seeds.iter().filter_map(view).collect(),
            kernels_in_flight: in_flight,
            dropped_messages: self.channels.outbox.dropped(),
            history: Arc::clone(&self.history),
        };
        self.channels.progress.send_replace(progress);
    }

    fn conclude(
        mut self,
        end: End,
        taken: Duration,
        stop: &CancellationToken,
    ) -> Result<Outcome, TrainError> {
        let first = match self.first.take() {
            Some(first) => first,
            None => self.measure_first()?,
        };
        self.finish_reports();
        if let Some(checkpoints) = self.checkpoints.take() {
            checkpoints.finish(self.checkpoint());
        }
        let grown = self.figures(taken)?;
        let boundary_after = boundary::of(&mut self.network, &self.prepared)?;
        let compared = if self.prepared.config.comparison == Comparison::Both && end != End::Stopped
        {
            self.show(Phase::Comparing);
            compare::both(&self.prepared, self.network.grafts(), self.clock.epoch, stop)?
        } else {
            compare::Compared::default()
        };
        self.show(Phase::Finished);
        info!(
            accuracy = grown.accuracy,
            parameters = grown.parameters,
            epochs = self.clock.epoch,
            ?end,
            "training ended"
        );
        Ok(Outcome {
            end,
            before: first.figures,
            grown,
            host_alone: compared.host_alone.as_ref().map(|run| run.figures.clone()),
            fixed: compared.fixed.as_ref().map(|run| run.figures.clone()),
            journeys: self.journal.into_journeys(),
            history: self.history.to_vec(),
            host_alone_accuracy: compared.host_alone.map(|run| run.accuracy).unwrap_or_default(),
            fixed_accuracy: compared.fixed.map(|run| run.accuracy).unwrap_or_default(),
            boundary_before: first.boundary,
            boundary_after,
            rollbacks: self.rollbacks,
            timing_findings: self.timing_findings,
            dropped_messages: self.channels.outbox.dropped(),
            step_us: median(&self.times.steps_us),
            hook_us: median(&self.times.hooks_us),
        })
    }

    /// Reports on what is still observed.
    fn finish_reports(&mut self) {
        let Some(score) = self.last else { return };
        let mut context = Context::now(self.clock.epoch, self.candidates.clone());
        context.horizon = Horizon::Short;
        let state = self.state(&EpochFigures::default(), score);
        self.channels.reports.offer(self.policy.finish(&state, &context));
    }
}

impl Times {
    fn step(&mut self, taken: Duration) {
        if self.steps_us.len() < TIMES_MAX {
            self.steps_us.push(taken.as_secs_f64() * 1e6);
        }
    }

    fn epoch(&mut self, taken: Duration, steps: usize, batch: usize) {
        let seconds = taken.as_secs_f32().max(f32::EPSILON);
        self.step_ms = seconds * 1e3 / steps.max(1) as f32;
        self.samples_per_s = (steps * batch) as f32 / seconds;
    }

    fn hook(&mut self, taken: Duration) {
        self.hook_ms = Some(milliseconds(taken));
        if self.hooks_us.len() < TIMES_MAX {
            self.hooks_us.push(taken.as_secs_f64() * 1e6);
        }
    }
}

/// How many rules on measured times spoke: their events are the reports of what they would have done.
fn timing_findings(decision: &Decision) -> u32 {
    const NAMES: [&str; 7] = [
        "timeout_inference",
        "hook_budget",
        "step_latency_high",
        "kasmina_apply_slow",
        "kasmina_finalize_slow",
        "device_pressure_high",
        "cpu_pressure_high",
    ];
    let timed = decision.events.iter().filter(|event| NAMES.contains(&event.description.as_str()));
    u32::try_from(timed.count()).unwrap_or(u32::MAX)
}

/// What the slot of a seed does in the host at this stage.
fn mode_of(stage: Stage) -> Mode {
    match stage {
        Stage::Training => Mode::Isolated,
        Stage::Blending => Mode::Blended,
        Stage::Shadowing => Mode::Shadowed,
        Stage::Probationary => Mode::Live,
        Stage::Fossilized => Mode::Frozen,
        Stage::Dormant
        | Stage::Germinated
        | Stage::Culled
        | Stage::Embargoed
        | Stage::Resetting
        | Stage::Terminated => Mode::Identity,
    }
}

fn has_graft(stage: Stage) -> bool {
    match stage {
        Stage::Training
        | Stage::Blending
        | Stage::Shadowing
        | Stage::Probationary
        | Stage::Fossilized => true,
        Stage::Dormant
        | Stage::Germinated
        | Stage::Culled
        | Stage::Embargoed
        | Stage::Resetting
        | Stage::Terminated => false,
    }
}

fn milliseconds(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}

/// Lets a person keep up. A stop ends it within one slice.
fn pause(mut left: Duration, stop: &CancellationToken) {
    const SLICE: Duration = Duration::from_millis(20);
    while !left.is_zero() && !stop.is_cancelled() {
        let began = Instant::now();
        std::thread::park_timeout(left.min(SLICE));
        left = left.saturating_sub(began.elapsed());
    }
}
