//! The life of a seed: its stages, the edges between them and the gate on each edge.

use crate::wire::{SeedLifecycleGate, SeedLifecycleStage};

/// Where a seed stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// An empty slot: identity.
    Dormant,
    /// A blueprint is chosen; its kernel is being fetched.
    Germinated,
    /// The kernel trains in isolation; the host sees the identity.
    Training,
    /// The kernel is blended into the host, alpha rising.
    Blending,
    /// Inert to the host again; probed without gradients.
    Shadowing,
    /// Fully live; its effect on the system is watched.
    Probationary,
    /// Kept: permanent and frozen.
    Fossilized,
    /// Rejected by a gate or retired.
    Culled,
    /// Held for a time, against thrashing.
    Embargoed,
    /// The slot is being cleaned.
    Resetting,
    /// Administratively ended; no way out.
    Terminated,
}

/// The check that guards an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gate {
    /// G0: blueprint available, parameters within bounds.
    Sanity,
    /// G1: the seed's loss is finite, its gradients neither vanish nor explode, the host is isolated.
    GradientHealth,
    /// G2: outputs stable, alpha complete, latency within its budget.
    Stability,
    /// G3: shapes and interface checks complete.
    Interface,
    /// G4: no regression of the system's metrics.
    SystemImpact,
    /// G5: counters and caches of the slot are clean.
    Reset,
}

/// One allowed move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Where it leads.
    pub to: Stage,
    /// What must hold; `None` for a move that is always allowed.
    pub gate: Option<Gate>,
}

/// The number is no stage a seed can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stage number {0} is none of DORMANT (1) to TERMINATED (11)")]
pub struct UnknownStage(pub i32);

const fn open(to: Stage) -> Edge {
    Edge { to, gate: None }
}

const fn gated(to: Stage, gate: Gate) -> Edge {
    Edge { to, gate: Some(gate) }
}

impl Stage {
    /// Every stage, in the order of the contract's numbers.
    pub const ALL: [Self; 11] = [
        Self::Dormant,
        Self::Germinated,
        Self::Training,
        Self::Blending,
        Self::Shadowing,
        Self::Probationary,
        Self::Fossilized,
        Self::Culled,
        Self::Embargoed,
        Self::Resetting,
        Self::Terminated,
    ];

    /// Every edge a seed may take, with its gate. An edge not listed does not exist.
    ///
    /// The gates are exit gates, as the design maps them: G1 is judged at the end of training, G2
    /// at the end of blending, G3 at the end of shadowing, G4 before a seed is kept. (The prototype
    /// checked each one stage earlier, so that nothing guarded the way to FOSSILIZED.)
    /// Only a seed with an attached, verified kernel can take the open edge to TRAINING.
    pub const fn edges(self) -> &'static [Edge] {
        match self {
            Self::Dormant => {
                const { &[gated(Self::Germinated, Gate::Sanity), open(Self::Terminated)] }
            }
            Self::Germinated => const { &[open(Self::Training), open(Self::Culled)] },
            Self::Training => {
                const { &[gated(Self::Blending, Gate::GradientHealth), open(Self::Culled)] }
            }
            Self::Blending => {
                const { &[gated(Self::Shadowing, Gate::Stability), open(Self::Culled)] }
            }
            Self::Shadowing => {
                const { &[gated(Self::Probationary, Gate::Interface), open(Self::Culled)] }
            }
            Self::Probationary => {
                const { &[gated(Self::Fossilized, Gate::SystemImpact), open(Self::Culled)] }
            }
            Self::Fossilized => const { &[open(Self::Terminated)] },
            Self::Culled => const { &[open(Self::Embargoed)] },
            Self::Embargoed => const { &[open(Self::Resetting)] },
            Self::Resetting => const { &[gated(Self::Dormant, Gate::Reset)] },
            Self::Terminated => &[],
        }
    }

    /// The edge to a stage, if there is one.
    pub fn edge(self, to: Self) -> Option<Edge> {
        self.edges().iter().copied().find(|edge| edge.to == to)
    }

    /// The contract's number for this stage.
    pub const fn wire(self) -> SeedLifecycleStage {
        match self {
            Self::Dormant => SeedLifecycleStage::SeedStageDormant,
            Self::Germinated => SeedLifecycleStage::SeedStageGerminated,
            Self::Training => SeedLifecycleStage::SeedStageTraining,
            Self::Blending => SeedLifecycleStage::SeedStageBlending,
            Self::Shadowing => SeedLifecycleStage::SeedStageShadowing,
            Self::Probationary => SeedLifecycleStage::SeedStageProbationary,
            Self::Fossilized => SeedLifecycleStage::SeedStageFossilized,
            Self::Culled => SeedLifecycleStage::SeedStageCulled,
            Self::Embargoed => SeedLifecycleStage::SeedStageEmbargoed,
            Self::Resetting => SeedLifecycleStage::SeedStageResetting,
            Self::Terminated => SeedLifecycleStage::SeedStageTerminated,
        }
    }

    /// Lower-case name, for logs, labels and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dormant => "dormant",
            Self::Germinated => "germinated",
            Self::Training => "training",
            Self::Blending => "blending",
            Self::Shadowing => "shadowing",
            Self::Probationary => "probationary",
            Self::Fossilized => "fossilized",
            Self::Culled => "culled",
            Self::Embargoed => "embargoed",
            Self::Resetting => "resetting",
            Self::Terminated => "terminated",
        }
    }
}

impl TryFrom<i32> for Stage {
    type Error = UnknownStage;

    fn try_from(number: i32) -> Result<Self, UnknownStage> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.wire() as i32 == number)
            .ok_or(UnknownStage(number))
    }
}

impl Gate {
    /// The contract's number for this gate.
    pub const fn wire(self) -> SeedLifecycleGate {
        match self {
            Self::Sanity => SeedLifecycleGate::SeedGateG0Sanity,
            Self::GradientHealth => SeedLifecycleGate::SeedGateG1GradientHealth,
            Self::Stability => SeedLifecycleGate::SeedGateG2Stability,
            Self::Interface => SeedLifecycleGate::SeedGateG3Interface,
            Self::SystemImpact => SeedLifecycleGate::SeedGateG4SystemImpact,
            Self::Reset => SeedLifecycleGate::SeedGateG5Reset,
        }
    }

    /// Lower-case name, for logs, labels and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sanity => "g0_sanity",
            Self::GradientHealth => "g1_gradient_health",
            Self::Stability => "g2_stability",
            Self::Interface => "g3_interface",
            Self::SystemImpact => "g4_system_impact",
            Self::Reset => "g5_reset",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published table of moves, by number.
    const TABLE: &[(i32, &[i32])] = &[
        (1, &[2, 11]),
        (2, &[3, 8]),
        (3, &[4, 8]),
        (4, &[5, 8]),
        (5, &[6, 8]),
        (6, &[7, 8]),
        (7, &[11]),
        (8, &[9]),
        (9, &[10]),
        (10, &[1]),
        (11, &[]),
    ];

    #[test]
    fn exactly_the_published_edges_exist() {
        for (from, tos) in TABLE {
            let stage = Stage::try_from(*from).unwrap();
            for to in Stage::ALL {
                let listed = tos.contains(&(to.wire() as i32));
                assert_eq!(stage.edge(to).is_some(), listed, "{stage:?} to {to:?}");
            }
        }
    }

    #[test]
    fn every_way_to_being_kept_passes_gates_one_to_four() {
        let mut gates = Vec::new();
        let mut stage = Stage::Dormant;
        while stage != Stage::Fossilized {
            let edge = stage.edges()[0];
            gates.extend(edge.gate);
            stage = edge.to;
        }
        let numbers: Vec<i32> = gates.iter().map(|gate| gate.wire() as i32).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn numbers_outside_the_contract_are_refused() {
        for number in [-1, 0, 12, i32::MAX] {
            assert_eq!(Stage::try_from(number), Err(UnknownStage(number)));
        }
    }
}
