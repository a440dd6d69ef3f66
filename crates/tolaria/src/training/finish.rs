//! The ends of the comparison: the host when growth began, and the outcome when the run is over.

use std::time::Duration;

use tamiyo::{Context, Horizon};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Training;
use crate::boundary;
use crate::checkpoint::Checkpoint;
use crate::compare;
use crate::config::Comparison;
use crate::error::TrainError;
use crate::progress::{Boundary, End, Figures, Outcome, Phase};
use crate::statistics::{EpochFigures, median};

/// The host when growth began.
#[derive(Debug)]
pub(super) struct First {
    figures: Figures,
    boundary: Option<Boundary>,
}

impl Training {
    /// Measures the host once, when growth begins.
    pub(super) fn note_first(&mut self) -> Result<(), TrainError> {
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

    pub(super) fn checkpoint(&self) -> Checkpoint {
        let config = &self.prepared.config;
        let (run, params) = (config.run.to_string(), self.network.params());
        Checkpoint { run, seed: config.seed, epoch: self.clock.epoch, params }
    }

    pub(super) fn conclude(
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
