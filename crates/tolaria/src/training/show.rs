//! What others see of the run while it goes on: metrics, the history, a snapshot of the progress.

use std::sync::Arc;

use kasmina::Hold;
use leyline::Stage;
use leyline::ids::SeedId;

use super::Training;
use crate::network::Score;
use crate::progress::{Epoch, Phase, Progress, SeedView};
use crate::statistics::EpochFigures;

impl Training {
    pub(super) fn record(&mut self, figures: &EpochFigures, score: Score, test: Score) {
        let metrics = &self.channels.metrics;
        metrics.epochs.inc();
        metrics.passes(self.network.take_counts());
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
    pub(super) fn show(&mut self, phase: Phase) {
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
}
