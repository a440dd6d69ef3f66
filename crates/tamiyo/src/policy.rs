//! The policy: from the state of a training run to at most one signed command. Plain data in,
//! plain data out; the time and the command's id come from the caller.

use std::collections::{BTreeMap, BTreeSet};

use leyline::Stage;
use leyline::command::sign_command;
use leyline::ids::{BlueprintId, CommandId, SeedId};
use leyline::sign::Keyring;
use leyline::wire::{
    AdaptationCommand, MessagePriority, SeedOperation, SystemStatePacket, TelemetryLevel,
};

use crate::annotate;
use crate::candidate::{Candidate, best};
use crate::command::{self, Head};
use crate::config::PolicyConfig;
use crate::coverage;
use crate::live::LivePolicy;
use crate::plateau::{Plateau, Trend};
use crate::risk::{Assessment, BlueprintView, Finding, Inputs, Mode, ModeChange, Verdict, assess};

/// Decides for one training run. Make a new one for each run.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    live: LivePolicy,
    keyring: Keyring,
    candidates: BTreeMap<SeedId, Vec<Candidate>>,
    plateau: Plateau,
    mode: Mode,
    last_loss: Option<f32>,
    /// What was tried on a slot and not kept.
    failed: BTreeMap<SeedId, BTreeSet<BlueprintId>>,
    /// Seeds grown from a blueprint: tried, and found harmful.
    outcomes: BTreeMap<BlueprintId, (u32, u32)>,
    paused: BTreeSet<SeedId>,
}

/// What the caller knows beyond the state packet.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// Present time in Unix milliseconds.
    pub now_unix_ms: u64,
    /// Id for the command, should there be one.
    pub command_id: CommandId,
    /// The host's slots in order.
    pub slots: &'a [Slot],
    /// Whether a seed planted now could still reach its end before the run does.
    pub growth: Growth,
}

/// Whether growing is still worth while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// There is time left.
    Allowed,
    /// The run ends too soon.
    TooLate,
}

/// One slot of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Its seed.
    pub seed: SeedId,
    /// Where the seed stands.
    pub stage: Stage,
    /// What grows there.
    pub blueprint: Option<BlueprintId>,
    /// The measured effect, once the seed's probation is over.
    pub effect: Option<Effect>,
}

/// What a seed did to the validation loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effect {
    /// Validation loss before the seed took part.
    pub loss_before: f32,
    /// Mean validation loss over its probation.
    pub loss_after: f32,
}

impl Effect {
    /// By how much the loss fell; negative when it rose, not finite when a loss was not.
    pub fn gain(&self) -> f32 {
        self.loss_before - self.loss_after
    }
}

/// What is wanted, before the risk rules and after them.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Plant a blueprint.
    Germinate {
        /// Where.
        seed: SeedId,
        /// What.
        blueprint: BlueprintId,
    },
    /// Keep a seed for good.
    Fossilize {
        /// Which.
        seed: SeedId,
    },
    /// Remove a seed.
    Cull {
        /// Which.
        seed: SeedId,
    },
    /// Take a seed out of the forward pass.
    Pause {
        /// Which.
        seed: SeedId,
    },
    /// Put it back.
    Resume {
        /// Which.
        seed: SeedId,
    },
    /// A germination that risk forbids: the optimiser command that takes its place changes nothing.
    Hold,
}

impl Action {
    /// Name in annotations and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Germinate { .. } => "germinate",
            Self::Fossilize { .. } => "fossilize",
            Self::Cull { .. } => "cull",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Hold => "hold",
        }
    }
}

/// Something to tell telemetry.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Name from the specification.
    pub name: &'static str,
    /// Level.
    pub level: TelemetryLevel,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What is to happen.
    pub action: Action,
    /// The signed command; `None` for [`Action::Wait`].
    pub command: Option<AdaptationCommand>,
    /// Why: the rule that decided, else `policy`.
    pub reason: &'static str,
    /// What telemetry should hear.
    pub events: Vec<Event>,
    /// Which telemetry priority that deserves.
    pub priority: MessagePriority,
    /// Version of the policy that decided.
    pub policy_version: String,
}

impl Policy {
    /// A policy for a run whose slots take these candidates (see [`Candidate::for_site`]).
    pub fn new(
        config: PolicyConfig,
        live: LivePolicy,
        keyring: Keyring,
        candidates: BTreeMap<SeedId, Vec<Candidate>>,
    ) -> Self {
        Self {
            config,
            live,
            keyring,
            candidates,
            plateau: Plateau::new(),
            mode: Mode::default(),
            last_loss: None,
            failed: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            paused: BTreeSet::new(),
        }
    }

    /// Decides once per epoch.
    pub fn decide(&mut self, state: &SystemStatePacket, context: &Context<'_>) -> Decision {
        let weights = self.live.current();
        let trend = self.plateau.observe(&self.config, state.validation_loss);
        let proposal = self.propose(trend, context, &weights);
        let inputs = self.inputs(state, &proposal);
        let assessment = assess(&inputs, &self.config);
        let change = self.mode.observe(state.current_epoch, &assessment, &self.config);
        let action = self.judge(proposal.clone(), &assessment, context);
        self.remember(&action, context);

        let covered = coverage::of(state);
        let mut events: Vec<Event> = assessment.findings.iter().map(event).collect();
        events.extend(change.map(|change| mode_event(change)));
        events.extend(covered.event());
        let reason = match (&action, assessment.reason) {
            (Action::Pause { .. } | Action::Hold, Some(reason)) => reason,
            (Action::Wait, Some(reason)) if proposal != Action::Wait => reason,
            _ => "policy",
        };
        let mut head = Head {
            id: context.command_id.clone(),
            issued_at_ms: context.now_unix_ms,
            annotations: BTreeMap::new(),
        };
        annotate::summary(&mut head.annotations, &action, &weights, reason, inputs.policy_risk);
        covered.annotate(&mut head.annotations);
        let command = self.command(head, &action).map(|mut command| {
            sign_command(&self.keyring, &mut command);
            command
        });
        let priority = priority(&assessment);
        Decision {
            action,
            command,
            reason,
            events,
            priority,
            policy_version: weights.version.clone(),
        }
    }

    /// Records that a blueprint could not be had or did not work at a slot, for a reason the policy
    /// did not decide itself. It is not tried there again.
    pub fn failed(&mut self, seed: &SeedId, blueprint: &BlueprintId) {
        self.failed.entry(seed.clone()).or_default().insert(blueprint.clone());
        self.plateau.reset();
    }

    /// A person's switch for conservative mode.
    pub fn latch_conservative(&mut self, on: bool) {
        self.mode.latch(on);
    }

    /// Whether growth is held back.
    pub fn is_conservative(&self) -> bool {
        self.mode.is_conservative()
    }

    /// The smoothed validation loss.
    pub fn smoothed_loss(&self) -> Option<f32> {
        self.plateau.smoothed()
    }

    fn propose(&self, trend: Trend, context: &Context<'_>, weights: &crate::Weights) -> Action {
        for slot in context.slots.iter().filter(|slot| slot.stage == Stage::Probationary) {
            let Some(effect) = slot.effect else { continue };
            let seed = slot.seed.clone();
            // A gain that is not a number is no gain.
            let kept = effect.gain() >= self.config.effect_min;
            return if kept { Action::Fossilize { seed } } else { Action::Cull { seed } };
        }
        if let Some(seed) = self.resumable(context) {
            return Action::Resume { seed };
        }
        let busy = context.slots.iter().any(|slot| !is_settled(slot.stage));
        if trend != Trend::Stuck || busy || context.growth == Growth::TooLate {
            return Action::Wait;
        }
        self.germination(context, weights).unwrap_or(Action::Wait)
    }

    fn resumable(&self, context: &Context<'_>) -> Option<SeedId> {
        if self.mode.is_conservative() {
            return None;
        }
        let lives = |seed: &&SeedId| {
            context.slots.iter().any(|slot| slot.seed == **seed && !is_settled(slot.stage))
        };
        self.paused.iter().find(lives).cloned()
    }

    /// The best blueprint for the first dormant slot that has one left.
    fn germination(&self, context: &Context<'_>, weights: &crate::Weights) -> Option<Action> {
        let dormant = context.slots.iter().filter(|slot| slot.stage == Stage::Dormant);
        for slot in dormant {
            let none = BTreeSet::new();
            let failed = self.failed.get(&slot.seed).unwrap_or(&none);
            if failed.len() >= self.config.attempts_max {
                continue;
            }
            let candidates = self.candidates.get(&slot.seed).map_or(&[][..], Vec::as_slice);
            if let Some(candidate) = best(candidates, weights, |id| !failed.contains(id)) {
                let (seed, blueprint) = (slot.seed.clone(), candidate.blueprint.id().clone());
                return Some(Action::Germinate { seed, blueprint });
            }
        }
        None
    }

    fn inputs(&mut self, state: &SystemStatePacket, proposal: &Action) -> Inputs {
        let metric = |name: &str| state.training_metrics.get(name).copied();
        let blueprint = match proposal {
            Action::Germinate { blueprint, .. } => Some(blueprint),
            _ => None,
        };
        let loss_delta = self.last_loss.map(|last| state.validation_loss - last);
        self.last_loss = Some(state.validation_loss);
        Inputs {
            policy_risk: blueprint.and_then(|blueprint| self.risk_of(blueprint)),
            conservative: self.mode.is_conservative(),
            blueprint: blueprint.and_then(karn::find).map(view),
            loss_delta,
            decision_ms: metric("tamiyo_latency_ms"),
            hook_ms: metric("hook_latency_ms"),
            step_ms: metric("step_latency_ms"),
            apply_ms: metric("kasmina.apply_ms"),
            finalize_ms: metric("kasmina.finalize_ms"),
            isolation_violations: metric("kasmina.isolation.violations"),
            loss_volatility: metric("loss_volatility"),
            gradient_variance: metric("grad_var"),
            gradient_conflict: metric("grad_conflict_rate"),
            learning_rate: metric("optimizer_lr"),
            gpu_percent: metric("gpu_util_percent"),
            gpu_free_gb: metric("gpu_mem_free_gb"),
            cpu_percent: metric("cpu_util_percent"),
        }
    }

    /// Expected share of harm, from what this blueprint did in this run; one harmless trial is
    /// assumed to begin with (Laplace), so that one failure is no certainty.
    fn risk_of(&self, blueprint: &BlueprintId) -> Option<f32> {
        let (tried, harmful) = self.outcomes.get(blueprint)?;
        Some(*harmful as f32 / (*tried + 1) as f32)
    }

    fn judge(&self, proposal: Action, assessment: &Assessment, context: &Context<'_>) -> Action {
        match (assessment.verdict, proposal) {
            // Removing what does harm is never forbidden.
            (_, cull @ Action::Cull { .. }) => cull,
            (Verdict::Proceed, proposal) => proposal,
            (Verdict::Hold, Action::Germinate { .. }) => Action::Hold,
            (Verdict::Hold, proposal) => proposal,
            (Verdict::Pause, Action::Germinate { seed, .. }) => Action::Pause { seed },
            (Verdict::Pause, _) => {
                let mut live = context.slots.iter().filter(|slot| is_live(slot.stage));
                match live.find(|slot| !self.paused.contains(&slot.seed)) {
                    Some(slot) => Action::Pause { seed: slot.seed.clone() },
                    None => Action::Wait,
                }
            }
        }
    }

    fn remember(&mut self, action: &Action, context: &Context<'_>) {
        let slot = |seed: &SeedId| context.slots.iter().find(|slot| slot.seed == *seed);
        match action {
            Action::Fossilize { seed } | Action::Cull { seed } => {
                let Some(slot) = slot(seed) else { return };
                let culled = matches!(action, Action::Cull { .. });
                if let Some(blueprint) = &slot.blueprint {
                    let harmful = slot.effect.is_none_or(|effect| !(effect.gain() >= 0.0));
                    let outcome = self.outcomes.entry(blueprint.clone()).or_default();
                    *outcome = (outcome.0 + 1, outcome.1 + u32::from(harmful));
                    if culled {
                        self.failed.entry(seed.clone()).or_default().insert(blueprint.clone());
                    }
                }
                self.paused.remove(seed);
                self.plateau.reset();
            }
            Action::Germinate { .. } | Action::Hold => self.plateau.reset(),
            Action::Pause { seed } => {
                // Pausing an empty slot only says that nothing is planted there now.
                if slot(seed).is_some_and(|slot| !is_settled(slot.stage)) {
                    self.paused.insert(seed.clone());
                } else {
                    self.plateau.reset();
                }
            }
            Action::Resume { seed } => {
                self.paused.remove(seed);
            }
            Action::Wait => {}
        }
    }

    fn command(&self, mut head: Head, action: &Action) -> Option<AdaptationCommand> {
        Some(match action {
            Action::Wait => return None,
            Action::Germinate { seed, blueprint } => {
                let blueprint = karn::find(blueprint)?;
                annotate::blueprint(&mut head.annotations, seed, blueprint);
                command::germinate(head, seed, blueprint.id(), &blueprint.midpoints())
            }
            Action::Fossilize { seed } => {
                command::seed_operation(head, seed, SeedOperation::SeedOpFossilize)
            }
            Action::Cull { seed } => command::seed_operation(head, seed, SeedOperation::SeedOpCull),
            Action::Pause { seed } => command::pause(head, seed),
            Action::Resume { seed } => command::resume(head, seed),
            Action::Hold => command::optimizer(head, "sgd", 0.0),
        })
    }
}

/// Nothing is going on there: empty, kept for good, or ended.
fn is_settled(stage: Stage) -> bool {
    match stage {
        Stage::Dormant | Stage::Fossilized | Stage::Terminated => true,
        // A slot in its embargo comes back; until then it does not hold up the others.
        Stage::Culled | Stage::Embargoed | Stage::Resetting => true,
        Stage::Germinated
        | Stage::Training
        | Stage::Blending
        | Stage::Shadowing
        | Stage::Probationary => false,
    }
}

/// It takes part in what the host computes, or is about to.
fn is_live(stage: Stage) -> bool {
    match stage {
        Stage::Training | Stage::Blending | Stage::Shadowing | Stage::Probationary => true,
        Stage::Dormant
        | Stage::Germinated
        | Stage::Fossilized
        | Stage::Culled
        | Stage::Embargoed
        | Stage::Resetting
        | Stage::Terminated => false,
    }
}

fn view(blueprint: &'static karn::Blueprint) -> BlueprintView {
    let sheet = karn::safety_sheet(blueprint);
    BlueprintView {
        quarantine_only: blueprint.quarantine_only(),
        risk: sheet.risk,
        handling: sheet.handling,
        hazard: sheet.hazard,
    }
}

fn event(finding: &Finding) -> Event {
    // One of them has its own name as an event.
    let name =
        if finding.name == "isolation_violation" { "isolation_violations" } else { finding.name };
    Event { name, level: finding.level }
}

fn mode_event(change: ModeChange) -> Event {
    match change {
        ModeChange::Entered => {
            Event { name: "conservative_entered", level: TelemetryLevel::Warning }
        }
        ModeChange::Left => Event { name: "conservative_exited", level: TelemetryLevel::Info },
    }
}

/// The findings that make a telemetry packet urgent.
const URGENT: [&str; 9] = [
    "timeout_inference",
    "step_latency_high",
    "loss_spike",
    "isolation_violation",
    "hook_budget",
    "policy_risk_critical",
    "bp_quarantine",
    "device_pressure_high",
    "cpu_pressure_high",
];

fn priority(assessment: &Assessment) -> MessagePriority {
    let findings = &assessment.findings;
    if findings.iter().any(|finding| finding.level == TelemetryLevel::Critical) {
        MessagePriority::Critical
    } else if findings.iter().any(|finding| URGENT.contains(&finding.name)) {
        MessagePriority::High
    } else {
        MessagePriority::Normal
    }
}
