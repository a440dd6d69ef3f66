//! One seed: where it stands, what it carries there, and the only way it moves.

use std::collections::BTreeMap;
use std::time::Duration;

use kernel::Digest;
use leyline::ids::{BlueprintId, CommandId, RequestId, SeedId};
use leyline::{Gate, Stage};

use crate::blend::{BlendMode, Ramp};
use crate::evidence::{Evidence, KernelPresence, Observation};
use crate::gates::{self, GateFailure, Limits, Verdict};
use crate::moment::Now;
use crate::renewal::InUse;

/// A place in the host where a seed may grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The seed that lives here.
    pub seed: SeedId,
    /// How many layers of the host come before it.
    pub layer_depth: u32,
    /// Shape of the activation without its batch; a kernel must take and give exactly this.
    pub shape: Vec<usize>,
}

/// What was decided to grow.
#[derive(Debug, Clone, PartialEq)]
pub struct Graft {
    /// The blueprint.
    pub blueprint: BlueprintId,
    /// Its parameters, as commanded.
    pub parameters: BTreeMap<String, f32>,
    /// The command that decided it.
    pub command: CommandId,
    /// How it blends.
    pub blend: BlendMode,
    /// Risk as the policy saw it, 0 to 1.
    pub risk: f32,
    /// When it was decided.
    pub since: Now,
}

/// Which kernel is attached.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// Digest of its artifact.
    pub digest: Digest,
    /// Request to kernel in hand, in milliseconds.
    pub fetch_ms: f64,
    /// Keeps the artifact in the library while the seed has its kernel. A fossilised seed too: what of its kernel was
    /// never changed may still be mapped from the file, and its graph stands in the artifact and not in a checkpoint.
    pub in_use: InUse,
}

/// How far the fetch of a kernel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// Ordered; the coordinator answers under this id.
    Ordered(RequestId),
    /// Not yet handed to the coordinator, whose queue was full.
    Waiting(RequestId),
}

/// What is needed to undo a graft.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollback {
    /// The seed.
    pub seed: SeedId,
    /// Where it stood.
    pub stage: Stage,
    /// Why it ended.
    pub reason: String,
    /// What had been grafted.
    pub blueprint: Option<BlueprintId>,
    /// The artifact it came from, from which a fresh instance can be made.
    pub artifact: Option<Digest>,
    /// Where the trainer keeps the weights of before, if it said so.
    pub snapshot: Option<String>,
    /// The optimiser step at which it ended.
    pub step: u64,
}

/// A stage with what belongs to it.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "the stages are described in leyline::Stage, the fields by their types"
)]
pub enum Life {
    Dormant,
    Germinated { graft: Graft, fetch: Fetch },
    Training { graft: Graft, kernel: Attached },
    Blending { graft: Graft, kernel: Attached, ramp: Ramp, step: u32 },
    Shadowing { graft: Graft, kernel: Attached },
    Probationary { graft: Graft, kernel: Attached },
    Fossilized { graft: Graft, kernel: Attached },
    Culled { rollback: Rollback },
    Embargoed { rollback: Rollback, until: Duration },
    Resetting,
    Terminated,
}

impl Life {
    /// The stage.
    pub const fn stage(&self) -> Stage {
        match self {
            Self::Dormant => Stage::Dormant,
            Self::Germinated { .. } => Stage::Germinated,
            Self::Training { .. } => Stage::Training,
            Self::Blending { .. } => Stage::Blending,
            Self::Shadowing { .. } => Stage::Shadowing,
            Self::Probationary { .. } => Stage::Probationary,
            Self::Fossilized { .. } => Stage::Fossilized,
            Self::Culled { .. } => Stage::Culled,
            Self::Embargoed { .. } => Stage::Embargoed,
            Self::Resetting => Stage::Resetting,
            Self::Terminated => Stage::Terminated,
        }
    }

    /// What grows, in the stages in which something does.
    pub const fn graft(&self) -> Option<&Graft> {
        match self {
            Self::Germinated { graft, .. }
            | Self::Training { graft, .. }
            | Self::Blending { graft, .. }
            | Self::Shadowing { graft, .. }
            | Self::Probationary { graft, .. }
            | Self::Fossilized { graft, .. } => Some(graft),
            Self::Dormant
            | Self::Culled { .. }
            | Self::Embargoed { .. }
            | Self::Resetting
            | Self::Terminated => None,
        }
    }

    /// The kernel, in the stages in which one is attached.
    pub const fn kernel(&self) -> Option<&Attached> {
        match self {
            Self::Training { kernel, .. }
            | Self::Blending { kernel, .. }
            | Self::Shadowing { kernel, .. }
            | Self::Probationary { kernel, .. }
            | Self::Fossilized { kernel, .. } => Some(kernel),
            Self::Dormant
            | Self::Germinated { .. }
            | Self::Culled { .. }
            | Self::Embargoed { .. }
            | Self::Resetting
            | Self::Terminated => None,
        }
    }

    /// Alpha as the host sees it: the ramp while blending, 1 from then on, 0 otherwise.
    pub fn alpha(&self) -> f32 {
        match self {
            Self::Blending { ramp, step, .. } => ramp.alpha(*step),
            Self::Shadowing { .. } | Self::Probationary { .. } | Self::Fossilized { .. } => 1.0,
            Self::Dormant
            | Self::Germinated { .. }
            | Self::Training { .. }
            | Self::Culled { .. }
            | Self::Embargoed { .. }
            | Self::Resetting
            | Self::Terminated => 0.0,
        }
    }
}

/// Whether a seed moves on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It does.
    Running,
    /// Paused: the host sees the identity, nothing advances.
    Paused,
}

/// A move that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// From where.
    pub from: Stage,
    /// To where.
    pub to: Stage,
    /// Through which gate.
    pub gate: Option<Gate>,
}

/// A move that was not made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// There is no such move.
    #[error("a seed cannot go from {} to {}", from.name(), to.name())]
    NoEdge {
        /// From where.
        from: Stage,
        /// To where.
        to: Stage,
    },
    /// The gate's evidence is not complete.
    #[error("gate {} is not ready: {what}", gate.name())]
    NotYet {
        /// The gate.
        gate: Gate,
        /// What is missing.
        what: &'static str,
    },
    /// The gate failed.
    #[error("gate {} failed: {failure}", gate.name())]
    Gate {
        /// The gate.
        gate: Gate,
        /// Why.
        failure: GateFailure,
    },
}

/// One seed.
#[derive(Debug, Clone)]
pub struct Seed {
    /// Its place.
    pub slot: Slot,
    /// Whether it moves on by itself.
    pub hold: Hold,
    /// Newest learning rate reported for it.
    pub learning_rate: f64,
    /// Newest norm of its gradients.
    pub gradient_norm: f64,
    /// Where the trainer keeps the weights of before the graft.
    pub snapshot: Option<String>,
    life: Life,
    evidence: Evidence,
}

impl Seed {
    /// A dormant seed.
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            hold: Hold::Running,
            learning_rate: 0.0,
            gradient_norm: 0.0,
            snapshot: None,
            life: Life::Dormant,
            evidence: Evidence::default(),
        }
    }

    /// Where it stands, with what it carries.
    pub const fn life(&self) -> &Life {
        &self.life
    }

    /// Where it stands.
    pub const fn stage(&self) -> Stage {
        self.life.stage()
    }

    /// What is known of it.
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Changes what is known of it.
    pub const fn evidence_mut(&mut self) -> &mut Evidence {
        &mut self.evidence
    }

    /// Adds one step. While blending, alpha moves one step along its ramp.
    ///
    /// # Errors
    /// The step shows a violation of gradient isolation.
    pub fn observe(&mut self, seen: &Observation) -> Result<(), crate::isolation::Violation> {
        if let Some(rate) = seen.learning_rate {
            self.learning_rate = rate;
        }
        if let Some(norm) = seen.gradient_norm {
            self.gradient_norm = norm;
        }
        if let Life::Blending { ramp, step, .. } = &mut self.life {
            *step = step.saturating_add(1);
            self.evidence.ramp_left = ramp.steps.saturating_sub(*step);
        }
        self.evidence.observe(seen)
    }

    /// Judges the gate on the edge to `to` without moving; an open edge is passed.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn judge(&self, to: Stage, limits: &Limits) -> Result<Moved, Refused> {
        let from = self.stage();
        let edge = from.edge(to).ok_or(Refused::NoEdge { from, to })?;
        if let Some(gate) = edge.gate {
            match gates::check(gate, &self.evidence, limits) {
                Verdict::Passed => {}
                Verdict::NotYet(what) => return Err(Refused::NotYet { gate, what }),
                Verdict::Failed(failure) => return Err(Refused::Gate { gate, failure }),
            }
        }
        Ok(Moved { from, to, gate: edge.gate })
    }

    /// Moves along one edge, through its gate. The only place where a seed's stage changes.
    ///
    /// # Errors
    /// [`Refused`]; the seed is unchanged.
    pub fn enter(&mut self, life: Life, limits: &Limits) -> Result<Moved, Refused> {
        let moved = self.judge(life.stage(), limits)?;
        self.evidence.next_stage();
        self.evidence.kernel = match life.kernel() {
            Some(_) => KernelPresence::Attached,
            None => KernelPresence::Absent,
        };
        if let Life::Blending { ramp, step, .. } = &life {
            self.evidence.ramp_left = ramp.steps.saturating_sub(*step);
        }
        if life.stage() == Stage::Resetting {
            // The scrub itself; G5 judges what is left.
            self.evidence =
                Evidence { host_registered: self.evidence.host_registered, ..Evidence::default() };
            (self.hold, self.gradient_norm, self.learning_rate) = (Hold::Running, 0.0, 0.0);
            self.snapshot = None;
        }
        self.life = life;
        Ok(moved)
    }

    /// Marks the order for its kernel as handed over.
    pub fn fetch_ordered(&mut self) {
        if let Life::Germinated { fetch, .. } = &mut self.life
            && let Fetch::Waiting(request) = fetch
        {
            *fetch = Fetch::Ordered(request.clone());
        }
    }

    /// The record that undoes what grows here.
    pub fn rollback(&self, reason: &str, now: Now) -> Rollback {
        Rollback {
            seed: self.slot.seed.clone(),
            stage: self.stage(),
            reason: reason.to_owned(),
            blueprint: self.life.graft().map(|graft| graft.blueprint.clone()),
            artifact: self.life.kernel().map(|kernel| kernel.digest),
            snapshot: self.snapshot.clone(),
            step: now.step,
        }
    }
}
