//! The gates G0 to G5: plain functions over evidence.

use kernel::quarantine::Finding;
use leyline::Gate;

use crate::evidence::{Evidence, Interface, KernelPresence, Validation};

/// What the gates demand. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// 200 steps: how long a seed trains in isolation at least (G1).
    pub training_steps_min: u32,
    /// 1e-9: a mean gradient below this has vanished (G1).
    pub gradient_norm_min: f64,
    /// 1e4: a gradient above this has exploded (G1).
    pub gradient_norm_max: f64,
    /// 10 ms: latency budget of a kernel's forward pass (G2).
    pub latency_budget_ms: f64,
    /// 1000: the seed's output may be this many times the host's (G2, G3).
    pub output_ratio_max: f64,
    /// 10 steps: probes in SHADOWING at least (G3).
    pub shadow_steps_min: u32,
    /// 5 epochs: validations in PROBATIONARY at least (G4).
    pub probation_epochs_min: u32,
    /// 0.001: by this much the validation loss must have fallen below the baseline (G4).
    pub improvement_min: f64,
    /// 100 000 steps: a seed that cannot show its evidence by then fails; no seed is stuck.
    pub stage_steps_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            training_steps_min: 200,
            gradient_norm_min: 1e-9,
            gradient_norm_max: 1e4,
            latency_budget_ms: 10.0,
            output_ratio_max: 1e3,
            shadow_steps_min: 10,
            probation_epochs_min: 5,
            improvement_min: 0.001,
            stage_steps_max: 100_000,
        }
    }
}

/// Why a gate failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GateFailure {
    /// G0
    #[error("missing blueprint id")]
    MissingBlueprint,
    /// G0
    #[error("parameter {0} invalid")]
    ParameterInvalid(String),
    /// G1
    #[error("kernel not attached")]
    KernelNotAttached,
    /// G1
    #[error("gradient isolation violations present")]
    IsolationViolated,
    /// G1, of a seed in quarantine
    #[error("caught in quarantine: {0}")]
    Caught(Finding),
    /// G1, of a seed in quarantine whose trial found nothing
    #[error("the blueprint may run in quarantine only")]
    QuarantineOnly,
    /// G1 and later
    #[error("{0} measures were no finite number")]
    NotFinite(u32),
    /// G1
    #[error("gradient norm {0:e} vanished")]
    GradientVanished(f64),
    /// G1
    #[error("gradient norm {0:e} exploded")]
    GradientExploded(f64),
    /// G2
    #[error("latency budget exceeded")]
    LatencyBudgetExceeded,
    /// G2, G3
    #[error("seed output is {0:.1} times the host's")]
    OutputUnstable(f64),
    /// G3
    #[error("host model not registered")]
    HostNotRegistered,
    /// G3
    #[error("interface checks incomplete")]
    InterfaceIncomplete,
    /// G4
    #[error("violations recorded")]
    ViolationsRecorded,
    /// G4
    #[error("validation loss {now:.4} is no improvement on {before:.4}")]
    NoImprovement {
        /// Validation loss before the seed had an effect.
        before: f64,
        /// Median validation loss of the second half of probation.
        now: f64,
    },
    /// G5
    #[error("reset state not clean")]
    ResetNotClean,
    /// Any gate whose evidence never came.
    #[error("evidence incomplete after {0} steps")]
    EvidenceIncomplete(u32),
}

/// A gate's judgement.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Open.
    Passed,
    /// The evidence is not complete; ask again after more steps.
    NotYet(&'static str),
    /// Closed for good.
    Failed(GateFailure),
}

/// Judges a gate.
pub fn check(gate: Gate, evidence: &Evidence, limits: &Limits) -> Verdict {
    let verdict = match gate {
        Gate::Sanity => sanity(evidence),
        Gate::GradientHealth => gradient_health(evidence, limits),
        Gate::Stability => stability(evidence, limits),
        Gate::Interface => interface(evidence, limits),
        Gate::SystemImpact => system_impact(evidence, limits),
        Gate::Reset => reset(evidence),
    };
    match verdict {
        Ok(()) => Verdict::Passed,
        Err(Closed::NotYet(_)) if evidence.steps >= limits.stage_steps_max => {
            Verdict::Failed(GateFailure::EvidenceIncomplete(evidence.steps))
        }
        Err(Closed::NotYet(what)) => Verdict::NotYet(what),
        Err(Closed::Failed(failure)) => Verdict::Failed(failure),
    }
}

/// Why a gate is not open; lets the gates below read as lists of demands.
enum Closed {
    NotYet(&'static str),
    Failed(GateFailure),
}

impl From<GateFailure> for Closed {
    fn from(failure: GateFailure) -> Self {
        Self::Failed(failure)
    }
}

type Judgement = Result<(), Closed>;

/// G0: a blueprint is named, no parameter is NaN (infinities are the blueprint's bounds to judge).
fn sanity(evidence: &Evidence) -> Judgement {
    let named = evidence.blueprint.as_ref().is_some_and(|id| !id.as_str().trim().is_empty());
    if !named {
        return Err(GateFailure::MissingBlueprint.into());
    }
    match evidence.parameters.iter().find(|(_, value)| value.is_nan()) {
        Some((name, _)) => Err(GateFailure::ParameterInvalid(name.clone()).into()),
        None => Ok(()),
    }
}

/// G1: after its time in isolation the seed's loss is finite, its gradients neither vanished nor
/// exploded, and the host never felt it. For a seed in quarantine: nothing was found there.
fn gradient_health(evidence: &Evidence, limits: &Limits) -> Judgement {
    if evidence.kernel == KernelPresence::Absent {
        return Err(GateFailure::KernelNotAttached.into());
    }
    if evidence.violations > 0 {
        return Err(GateFailure::IsolationViolated.into());
    }
    if let Some(finding) = &evidence.caught {
        return Err(GateFailure::Caught(finding.clone()).into());
    }
    all_finite(evidence)?;
    if let Some(norm) = evidence.gradient_norm.filter(|norm| norm.high > limits.gradient_norm_max) {
        return Err(GateFailure::GradientExploded(norm.high).into());
    }
    if evidence.steps < limits.training_steps_min {
        return Err(Closed::NotYet("the seed trains"));
    }
    if evidence.loss.is_none() {
        return Err(Closed::NotYet("no loss was reported"));
    }
    let norm = evidence.gradient_norm.ok_or(Closed::NotYet("no gradient norm was reported"))?;
    if norm.high < limits.gradient_norm_min {
        return Err(GateFailure::GradientVanished(norm.high).into());
    }
    Ok(())
}

/// G2: alpha has run its course (it only rises, so it cannot oscillate), outputs stayed bounded,
/// latency within its budget. A latency that was never measured passes.
fn stability(evidence: &Evidence, limits: &Limits) -> Judgement {
    all_finite(evidence)?;
    bounded_output(evidence, limits)?;
    if evidence.latency_ms.is_some_and(|latency| latency.last > limits.latency_budget_ms) {
        return Err(GateFailure::LatencyBudgetExceeded.into());
    }
    if evidence.ramp_left > 0 {
        return Err(Closed::NotYet("alpha rises"));
    }
    Ok(())
}

/// G3: probed long enough beside the host, with the host's shapes and bounded outputs.
fn interface(evidence: &Evidence, limits: &Limits) -> Judgement {
    if !evidence.host_registered {
        return Err(GateFailure::HostNotRegistered.into());
    }
    all_finite(evidence)?;
    bounded_output(evidence, limits)?;
    match evidence.interface {
        Some(Interface::Differs) => Err(GateFailure::InterfaceIncomplete.into()),
        None => Err(Closed::NotYet("no interface check was reported")),
        Some(Interface::Matches) if evidence.steps < limits.shadow_steps_min => {
            Err(Closed::NotYet("the seed is probed"))
        }
        Some(Interface::Matches) => Ok(()),
    }
}

/// G4: no violations, and the network measures better than before the seed had an effect. Judged by
/// the median of the later half of probation, so that one lucky epoch keeps no seed.
fn system_impact(evidence: &Evidence, limits: &Limits) -> Judgement {
    if evidence.violations > 0 {
        return Err(GateFailure::ViolationsRecorded.into());
    }
    all_finite(evidence)?;
    let before = evidence.baseline.ok_or(Closed::NotYet("no baseline was reported"))?.loss;
    if evidence.validations.len() < limits.probation_epochs_min.max(1) as usize {
        return Err(Closed::NotYet("its effect is watched"));
    }
    let now = median_loss(&evidence.validations[evidence.validations.len() / 2..]);
    // Written so that NaN fails.
    if now <= before - limits.improvement_min {
        return Ok(());
    }
    Err(GateFailure::NoImprovement { before, now }.into())
}

/// G5: nothing of the seed is left in the slot.
fn reset(evidence: &Evidence) -> Judgement {
    let clean = evidence.kernel == KernelPresence::Absent && evidence.violations == 0;
    if clean { Ok(()) } else { Err(GateFailure::ResetNotClean.into()) }
}

fn all_finite(evidence: &Evidence) -> Judgement {
    match evidence.not_finite {
        0 => Ok(()),
        count => Err(GateFailure::NotFinite(count).into()),
    }
}

fn bounded_output(evidence: &Evidence, limits: &Limits) -> Judgement {
    match evidence.output_ratio {
        Some(ratio) if ratio.high > limits.output_ratio_max => {
            Err(GateFailure::OutputUnstable(ratio.high).into())
        }
        _ => Ok(()),
    }
}

fn median_loss(validations: &[Validation]) -> f64 {
    let mut losses: Vec<f64> = validations.iter().map(|validation| validation.loss).collect();
    // NaN sorts last, so that a run of them is seen.
    losses.sort_by(f64::total_cmp);
    losses.get(losses.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
#[path = "gates_tests.rs"]
mod tests;
