//! One epoch: the steps, what the seed manager hears of each, the validation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kasmina::{Interface, Observation, OutputScale, Validation};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Training;
use super::times::milliseconds;
use crate::batches::Batches;
use crate::error::TrainError;
use crate::network::{Score, SeedStep, StepOutcome};
use crate::progress::Phase;
use crate::statistics::EpochFigures;

impl Training {
    /// One epoch. `false` when it was interrupted.
    pub(super) fn epoch(&mut self, stop: &CancellationToken) -> Result<bool, TrainError> {
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
