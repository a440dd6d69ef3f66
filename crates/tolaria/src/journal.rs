//! What became of every graft, for the table and the report.

use std::collections::BTreeMap;

use kasmina::FetchedKernel;
use leyline::Stage;
use leyline::ids::{BlueprintId, SeedId};

use crate::clock::Clock;
use crate::progress::{Journey, Milestone};

/// Journeys so far; the open one of each slot by its seed.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    journeys: Vec<Journey>,
    open: BTreeMap<SeedId, usize>,
    baseline: BTreeMap<SeedId, f64>,
}

impl Journal {
    /// A graft was decided.
    pub(crate) fn germinated(&mut self, seed: &SeedId, blueprint: &BlueprintId) {
        self.open.insert(seed.clone(), self.journeys.len());
        self.journeys.push(Journey {
            seed: seed.clone(),
            blueprint: blueprint.clone(),
            milestones: Vec::new(),
            fetch_ms: None,
            late_epochs: 0,
            losses: None,
            parameters: 0,
            reason: None,
        });
    }

    /// Its kernel was attached.
    pub(crate) fn attached(&mut self, seed: &SeedId, kernel: &FetchedKernel, parameters: usize) {
        if let Some(journey) = self.journey(seed) {
            journey.fetch_ms = Some(kernel.latency.as_secs_f64() * 1e3);
            journey.parameters = parameters;
        }
    }

    /// Its kernel missed its place in the schedule.
    pub(crate) fn late(&mut self, seed: &SeedId, epochs: u32) {
        if let Some(journey) = self.journey(seed) {
            journey.late_epochs = epochs;
        }
    }

    /// It entered a stage. Stages of the empty slot belong to no graft.
    pub(crate) fn moved(&mut self, seed: &SeedId, stage: Stage, clock: &Clock) {
        if matches!(stage, Stage::Embargoed | Stage::Resetting | Stage::Dormant) {
            return;
        }
        let milestone =
            Milestone { stage, epoch: clock.epoch, step: clock.step, at_ms: clock.wall_ms() };
        if let Some(journey) = self.journey(seed) {
            journey.milestones.push(milestone);
        }
        if matches!(stage, Stage::Fossilized) {
            self.open.remove(seed);
        }
    }

    /// The network was validated while it stood at a stage.
    pub(crate) fn validated(&mut self, seed: &SeedId, loss: f64, stage: Option<Stage>) {
        match stage {
            Some(Stage::Training) => {
                self.baseline.insert(seed.clone(), loss);
            }
            Some(Stage::Blending | Stage::Probationary) => {
                let Some(before) = self.baseline.get(seed).copied() else { return };
                if let Some(journey) = self.journey(seed) {
                    journey.losses = Some((before, loss));
                }
            }
            _ => {}
        }
    }

    /// It was taken out.
    pub(crate) fn ended(&mut self, seed: &SeedId, reason: &str) {
        if let Some(journey) = self.journey(seed) {
            journey.reason = Some(reason.to_owned());
        }
        self.open.remove(seed);
    }

    /// In which epoch the open graft of a slot was decided.
    pub(crate) fn germinated_epoch(&self, seed: &SeedId) -> Option<u32> {
        let journey = self.journeys.get(*self.open.get(seed)?)?;
        journey.milestones.first().map(|first| first.epoch)
    }

    /// Grafts since the last that was kept; those still growing do not count.
    pub(crate) fn failures_in_a_row(&self) -> usize {
        let ended = self
            .journeys
            .iter()
            .rev()
            .filter(|journey| journey.is_kept() || journey.reason.is_some());
        ended.take_while(|journey| !journey.is_kept()).count()
    }

    /// Every journey so far.
    #[cfg(test)]
    pub(crate) fn journeys(&self) -> &[Journey] {
        &self.journeys
    }

    pub(crate) fn into_journeys(self) -> Vec<Journey> {
        self.journeys
    }

    fn journey(&mut self, seed: &SeedId) -> Option<&mut Journey> {
        self.journeys.get_mut(*self.open.get(seed)?)
    }
}
