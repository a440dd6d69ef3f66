//! Why the policy did what it did: one word for logs, labels, annotations and events.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// Why a decision is as it is. The words of the risk rules are the contract's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $variant),+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}

reasons! {
    /// The risk rules had no objection.
    Policy = "policy",

    /// No plateau can be found yet.
    WarmUp = "warm_up",
    /// The validation loss still falls.
    Improving = "improving",
    /// The validation loss is low enough.
    TargetReached = "target_reached",
    /// The run ends before a new seed could be judged.
    HorizonShort = "horizon_short",
    /// A seed grows already.
    SeedInFlight = "seed_in_flight",
    /// No slot is free.
    NoSeedCandidates = "no_seed_candidates",
    /// No blueprint is left for any free slot.
    NoBlueprintCandidates = "no_blueprint_candidates",
    /// The validation loss is flat: a seed is germinated.
    Plateau = "plateau",
    /// The seed's effect is good: it is kept.
    EffectKept = "effect_kept",
    /// The seed's effect is bad: it is culled.
    EffectRegressed = "effect_regressed",
    /// The seed had no effect for too long: it is culled.
    EffectAbsent = "effect_absent",
    /// The executor would not keep the seed: it is culled.
    KeepRefused = "keep_refused",
    /// The cause of a pause is over.
    Resume = "resume",

    /// Rule 1, an event only.
    PolicyRiskSignal = "policy_risk_signal",
    /// Rule 2.
    PolicyRiskCritical = "policy_risk_critical",
    /// Rule 3.
    PolicyRiskElevated = "policy_risk_elevated",
    /// Rule 4.
    ConservativeMode = "conservative_mode",
    /// Rule 5.
    TimeoutInference = "timeout_inference",
    /// Rule 6.
    TimeoutUrza = "timeout_urza",
    /// Rule 7.
    BlueprintQuarantine = "bp_quarantine",
    /// Rule 8.
    BlueprintRisk = "blueprint_risk",
    /// Rule 9.
    HandlingQuarantine = "bsds_handling_quarantine",
    /// Rule 10.
    HazardCritical = "bsds_hazard_critical",
    /// Rule 11.
    HazardHigh = "bsds_hazard_high",
    /// Rule 12.
    LossSpike = "loss_spike",
    /// Rule 13.
    LossWarning = "loss_warning",
    /// Rule 14.
    HookBudget = "hook_budget",
    /// Rule 15.
    StepLatencyHigh = "step_latency_high",
    /// Rule 16.
    ApplySlow = "kasmina_apply_slow",
    /// Rule 17.
    FinalizeSlow = "kasmina_finalize_slow",
    /// Rule 18.
    IsolationViolation = "isolation_violation",
    /// The event of rule 18.
    IsolationViolations = "isolation_violations",
    /// Rule 19.
    LossVolatilityHigh = "loss_volatility_high",
    /// Rule 20.
    GradVarianceHigh = "grad_variance_high",
    /// Rule 21.
    GradConflictHigh = "grad_conflict_high",
    /// Rule 22.
    OptimizerHint = "optimizer_hint",
    /// Rule 23.
    DevicePressureHigh = "device_pressure_high",
    /// Rule 24.
    CpuPressureHigh = "cpu_pressure_high",
    /// Too little of the state was supplied.
    DegradedInputs = "degraded_inputs",
    /// Conservative mode began.
    ConservativeEntered = "conservative_entered",
    /// Rule 25: conservative mode ended.
    ConservativeExited = "conservative_exited",
    /// A breaker counted, opened or closed.
    BreakerEvent = "breaker_event",
    /// Rule 4 held back a command.
    PauseTriggered = "pause_triggered",
    /// A policy update was refused.
    PolicyUpdateRejected = "policy_update_rejected",
    /// An observation ended.
    FieldReportSynthesised = "field_report_synthesised",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
