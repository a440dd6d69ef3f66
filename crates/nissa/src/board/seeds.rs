//! A seed's journey through its stages, as the trainer reports it.

use leyline::wire::{SeedLifecycleStage, SeedState};
use serde::Serialize;

/// Stage changes kept for one seed. A seed that was culled a dozen times has as many.
const SPANS_MAX: usize = 96;

/// How a stage is called on the page and in JSON.
pub fn stage_label(stage: SeedLifecycleStage) -> &'static str {
    match stage {
        SeedLifecycleStage::SeedStageUnknown => "unknown",
        SeedLifecycleStage::SeedStageDormant => "dormant",
        SeedLifecycleStage::SeedStageGerminated => "germinated",
        SeedLifecycleStage::SeedStageTraining => "training",
        SeedLifecycleStage::SeedStageBlending => "blending",
        SeedLifecycleStage::SeedStageShadowing => "shadowing",
        SeedLifecycleStage::SeedStageProbationary => "probationary",
        SeedLifecycleStage::SeedStageFossilized => "fossilized",
        SeedLifecycleStage::SeedStageCulled => "culled",
        SeedLifecycleStage::SeedStageEmbargoed => "embargoed",
        SeedLifecycleStage::SeedStageResetting => "resetting",
        SeedLifecycleStage::SeedStageTerminated => "terminated",
    }
}

/// A time that a seed spent in one stage. It ends where the next begins.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// The stage.
    pub stage: &'static str,
    /// First epoch in it.
    pub from_epoch: u32,
    /// When it was first reported, Unix milliseconds.
    pub from_ms: u64,
}

/// One seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seed {
    /// Its id.
    pub id: String,
    /// Its stage.
    pub stage: &'static str,
    /// Share of its kernel in the output, 0 to 1; `None` if the trainer does not say.
    pub alpha: Option<f32>,
    /// Blueprint last commanded for it.
    pub blueprint: Option<String>,
    /// Its risk, as the trainer reports it.
    pub risk: f32,
    /// Its parameters, if the trainer says.
    pub parameters: Option<f32>,
    /// Its journey, oldest first.
    pub spans: Vec<Span>,
}

impl Seed {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            stage: "unknown",
            alpha: None,
            blueprint: None,
            risk: 0.0,
            parameters: None,
            spans: Vec::new(),
        }
    }

    pub(super) fn report(&mut self, state: &SeedState, epoch: u32, at_ms: u64) {
        self.stage = stage_label(state.stage());
        self.alpha = state.metrics.get("alpha").copied();
        self.parameters = state.metrics.get("parameters").copied();
        self.risk = state.risk_score;
        if self.spans.last().is_some_and(|span| span.stage == self.stage) {
            return;
        }
        if self.spans.len() == SPANS_MAX {
            self.spans.remove(0);
        }
        self.spans.push(Span { stage: self.stage, from_epoch: epoch, from_ms: at_ms });
    }

    /// Forgets what lies at or behind an epoch to which the run went back.
    pub(super) fn rewind(&mut self, epoch: u32) {
        self.spans.retain(|span| span.from_epoch < epoch);
    }
}
