//! The decision: a state in, at most one signed command out. Synchronous, without clock, I/O or
//! random numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use leyline::Stage;
use leyline::ids::{RunId, SeedId};
use leyline::sign::Keyring;
use leyline::wire::{AdaptationCommand, FieldReport, SystemStatePacket};

use crate::annotate;
use crate::candidate::{self, Choice, NoChoice};
use crate::command::Draft;
use crate::config::{Config, Operator};
use crate::context::{Candidates, Context, Horizon};
use crate::decision::{self, Decision};
use crate::live::{LivePolicy, Loaded};
use crate::memory::{Asked, AskedFor, RunMemory, Structure};
use crate::mode::{Breaker, ModeChange};
use crate::observation::{self, Epoch, Observation};
use crate::plateau::Progress;
use crate::reason::Reason;
use crate::risk::{self, Action, Assessment, BlueprintFacts, Facts, Punctual};
use crate::signals::{Coverage, Signals};
use crate::verdict;

/// Decides for the runs of one process. Owned by whoever trains; the policy it applies can be
/// swapped meanwhile through its [`LivePolicy`].
#[derive(Debug)]
pub struct Policy {
    config: Config,
    live: LivePolicy,
    keyring: Keyring,
    operator: Operator,
    runs: BTreeMap<RunId, RunMemory>,
    breakers: Breakers,
    decisions: u64,
}

/// The two breakers of the contract.
#[derive(Debug, Clone, Default)]
pub(crate) struct Breakers {
    pub(crate) inference: Breaker,
    pub(crate) metadata: Breaker,
}

/// What the policy would do if no rule objected.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Proposal {
    pub(crate) action: Action,
    pub(crate) reason: Reason,
    pub(crate) seed: Option<SeedId>,
    pub(crate) choice: Option<Choice>,
}

/// What a decision has found out, for its annotations, events and figures.
pub(crate) struct Findings<'a> {
    pub(crate) state: &'a SystemStatePacket,
    pub(crate) context: &'a Context,
    pub(crate) policy: &'a Loaded,
    pub(crate) proposal: &'a Proposal,
    pub(crate) facts: &'a Facts,
    pub(crate) assessment: &'a Assessment,
    pub(crate) coverage: Coverage,
    pub(crate) risk_index: usize,
    pub(crate) breakers: &'a Breakers,
    pub(crate) conservative: bool,
    pub(crate) action: Action,
    pub(crate) reason: Reason,
    pub(crate) config: &'a Config,
    pub(crate) flat_epochs: u32,
}

impl Policy {
    /// A policy that applies what `live` holds and signs with `keyring`.
    pub fn new(config: Config, live: LivePolicy, keyring: Keyring) -> Self {
        let operator = config.operator;
        let (runs, breakers) = (BTreeMap::new(), Breakers::default());
        Self { config, live, keyring, operator, runs, breakers, decisions: 0 }
    }

    /// The blueprints it chooses from.
    pub fn catalogue(&self) -> &karn::Catalogue {
        &self.config.catalogue
    }

    /// The policy in force, for others who want to look at it or swap it.
    pub fn live(&self) -> &LivePolicy {
        &self.live
    }

    /// What an operator asks for from now on, for every run.
    pub fn set_operator(&mut self, operator: Operator) {
        self.operator = operator;
        for run in self.runs.values_mut() {
            run.mode.set_operator(operator);
        }
    }

    /// Decides on one state. Call it once per epoch; a packet of an epoch seen before is judged by
    /// the risk rules, but counts neither for plateaus nor for observations.
    pub fn decide(&mut self, state: &SystemStatePacket, context: &Context) -> Decision {
        let policy = self.live.load();
        self.decisions += 1;
        let mut run = self.take(&observation::run_of(state));
        run.seen = self.decisions;
        let decision = self.decide_for(&mut run, &policy, state, context);
        self.runs.insert(observation::run_of(state), run);
        decision
    }

    /// Ends a run: reports on what is still observed, and forgets the run. `state` is its last.
    pub fn finish(&mut self, state: &SystemStatePacket, context: &Context) -> Vec<FieldReport> {
        let Some(mut run) = self.runs.remove(&observation::run_of(state)) else {
            return Vec::new();
        };
        let mut observations = std::mem::take(&mut run.observations);
        observations.finish(&self.epoch(&run, state, context))
    }

    fn take(&mut self, id: &RunId) -> RunMemory {
        if let Some(run) = self.runs.remove(id) {
            return run;
        }
        while self.runs.len() >= self.config.runs_max {
            let oldest = self.runs.iter().min_by_key(|(_, run)| run.seen);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else { break };
            self.runs.remove(&oldest);
        }
        RunMemory::new(self.operator)
    }

    fn epoch<'a>(
        &'a self,
        run: &'a RunMemory,
        state: &'a SystemStatePacket,
        context: &Context,
    ) -> Epoch<'a> {
        Epoch {
            state,
            slots: &run.slots,
            epoch: context.epoch,
            now_unix_ms: context.now_unix_ms,
            smoothed: run.plateau.smoothed(),
            retry_epochs: self.config.growth.retry_epochs,
            settings: &self.config.reports,
        }
    }

    fn decide_for(
        &mut self,
        run: &mut RunMemory,
        policy: &Arc<Loaded>,
        state: &SystemStatePacket,
        context: &Context,
    ) -> Decision {
        let mut signals = Signals::read(state, run.before);
        let numbers = &policy.weights.plateau;
        if run.observe(state, context.epoch, numbers, &self.config.growth) == Structure::Changed {
            signals.loss_delta = signals.loss_delta.filter(|delta| !delta.is_finite());
        }
        let mut observations = std::mem::take(&mut run.observations);
        let reports = observations.observe(&self.epoch(run, state, context));
        run.observations = observations;

        let proposal = self.propose(run, policy, state, context);
        let (score, risk_index) = policy.weights.risk_score(&signals.features(&self.config.limits));
        let facts = Facts {
            score: Some(score),
            conservative: run.mode.is_conservative(),
            metadata: match context.candidates {
                Candidates::Late => Punctual::Late,
                Candidates::Any | Candidates::Listed(_) | Candidates::BySlot(_) => Punctual::InTime,
            },
            blueprint: proposal.choice.as_ref().map(|choice| blueprint_facts(choice.blueprint)),
            signals,
        };
        let mut assessment = risk::assess(proposal.action, &facts, &self.config.limits);
        let coverage = Coverage::of(state);
        annotate::coverage_event(coverage, &mut assessment);
        self.update_mode(run, &facts, &mut assessment, context);
        let (action, target) = settle(run, &proposal, assessment.action);
        let reason = final_reason(action, &proposal, &assessment);
        let findings = Findings {
            state,
            context,
            policy,
            proposal: &proposal,
            facts: &facts,
            assessment: &assessment,
            coverage,
            risk_index,
            breakers: &self.breakers,
            conservative: run.mode.is_conservative(),
            action,
            reason,
            config: &self.config,
            flat_epochs: run.plateau.flat_epochs(),
        };
        let annotations = annotate::annotations(&findings);
        let command = self.command(&findings, target.as_ref(), annotations.clone());
        let decision = conclude(&findings, command, annotations, reports);
        self.remember(run, &decision, &findings, target);
        decision
    }

    /// What to do if no rule objects: judge what is on probation, else grow if the run is flat.
    fn propose(
        &self,
        run: &RunMemory,
        policy: &Loaded,
        state: &SystemStatePacket,
        context: &Context,
    ) -> Proposal {
        let (weights, growth) = (&policy.weights, &self.config.growth);
        for seed in &state.seed_states {
            let id = SeedId::from(seed.seed_id.as_str());
            let Some(slot) = run.slots.get(&id) else { continue };
            let smoothed = run.plateau.smoothed();
            let verdict = verdict::judge(seed, slot, context.epoch, smoothed, weights, growth);
            if let Some((action, reason)) = verdict {
                return Proposal { action, reason, seed: Some(id), choice: None };
            }
        }
        let nothing =
            |reason| Proposal { action: Action::Nothing, reason, seed: None, choice: None };
        if run.is_growing() {
            return nothing(Reason::SeedInFlight);
        }
        match run.plateau.progress(&weights.plateau) {
            Progress::WarmingUp => return nothing(Reason::WarmUp),
            Progress::Improving => return nothing(Reason::Improving),
            Progress::TargetReached => return nothing(Reason::TargetReached),
            Progress::Flat => {}
        }
        if context.horizon == Horizon::Short {
            return nothing(Reason::HorizonShort);
        }
        match candidate::choose(state, run, context, (&self.config, weights)) {
            Ok(choice) => Proposal {
                action: Action::Germinate,
                reason: Reason::Plateau,
                seed: Some(choice.seed.clone()),
                choice: Some(choice),
            },
            Err(NoChoice::NoSlot) => nothing(Reason::NoSeedCandidates),
            Err(NoChoice::NoBlueprint) => nothing(Reason::NoBlueprintCandidates),
        }
    }

    fn update_mode(
        &mut self,
        run: &mut RunMemory,
        facts: &Facts,
        assessment: &mut Assessment,
        context: &Context,
    ) {
        let limits = &self.config.limits;
        let inference = risk::punctual(facts, limits);
        let steps = [
            ("inference", self.breakers.inference.observe(inference, context.now_unix_ms)),
            ("metadata", self.breakers.metadata.observe(facts.metadata, context.now_unix_ms)),
        ];
        annotate::breaker_events(&steps, assessment);
        let closed = self.breakers.inference.is_closed() && self.breakers.metadata.is_closed();
        match run.mode.after(assessment, context.epoch, closed, limits) {
            ModeChange::Same => {}
            ModeChange::Entered(_) => annotate::note(assessment, Reason::ConservativeEntered),
            ModeChange::Exited => annotate::note(assessment, Reason::ConservativeExited),
        }
    }

    fn command(
        &self,
        findings: &Findings<'_>,
        target: Option<&SeedId>,
        annotations: BTreeMap<String, String>,
    ) -> Option<AdaptationCommand> {
        let draft = Draft {
            id: findings.context.command_id.clone(),
            now_unix_ms: findings.context.now_unix_ms,
            deadline: self.config.command_deadline,
            annotations,
            keyring: &self.keyring,
        };
        match findings.action {
            Action::Nothing => None,
            Action::Optimizer => Some(draft.optimizer(self.config.limits.downgrade_lr_delta)),
            Action::Germinate => {
                let choice = findings.proposal.choice.as_ref()?;
                Some(draft.germinate(&choice.seed, choice.blueprint))
            }
            Action::Fossilize => target.map(|seed| draft.fossilize(seed)),
            Action::Cull => target.map(|seed| draft.cull(seed)),
            Action::Pause => target.map(|seed| draft.pause(seed)),
            Action::Resume => target.map(|seed| draft.resume(seed)),
        }
    }

    /// Notes in the run's memory what was asked for, and begins to observe it.
    fn remember(
        &self,
        run: &mut RunMemory,
        decision: &Decision,
        findings: &Findings<'_>,
        target: Option<SeedId>,
    ) {
        if decision.command.is_none() {
            return;
        }
        let context = findings.context;
        let choice =
            findings.proposal.choice.as_ref().filter(|_| decision.action == Action::Germinate);
        if decision.action == Action::Optimizer {
            // Once for each plateau and each seed: asked for every epoch, it would starve the run.
            run.plateau.restart();
            let held_back = findings.proposal.seed.as_ref();
            if let Some(slot) = held_back.and_then(|seed| run.slots.get_mut(seed)) {
                slot.asked = Some(Asked { what: AskedFor::Later, epoch: context.epoch });
            }
        }
        if let Some(slot) = target.as_ref().and_then(|seed| run.slots.get_mut(seed)) {
            let asked = |what| Some(Asked { what, epoch: context.epoch });
            match decision.action {
                Action::Germinate => {
                    slot.blueprint = choice.map(|choice| choice.blueprint.id().clone());
                    slot.asked = asked(AskedFor::Germinate);
                }
                Action::Fossilize => slot.asked = asked(AskedFor::Fossilize),
                Action::Cull => slot.asked = asked(AskedFor::Cull),
                Action::Pause => slot.paused = true,
                Action::Resume => slot.paused = false,
                Action::Nothing | Action::Optimizer => {}
            }
        }
        let blueprint = target.as_ref().and_then(|seed| run.slots.get(seed)?.blueprint.clone());
        run.observations.open(Observation {
            command: context.command_id.clone(),
            action: decision.action,
            seed: target,
            blueprint: blueprint.map(|id| id.to_string()),
            policy_version: decision.policy_version.clone(),
            opened_epoch: context.epoch,
            opened_loss: run.plateau.smoothed(),
            metrics: annotate::report_metrics(findings),
            seen: observation::Seen::at(context.epoch, findings.state.validation_loss),
        });
    }
}

/// Which command is left, and for which seed.
///
/// A pause concerns the seed that grows; with none, or with one paused already, there is nothing to
/// pause, and the proposal is simply not carried out. When nothing pauses any more, a paused seed
/// goes on before anything else is done.
fn settle(run: &RunMemory, proposal: &Proposal, action: Action) -> (Action, Option<SeedId>) {
    let paused = run
        .slots
        .iter()
        .find(|(_, slot)| slot.paused && slot.stage.is_some_and(crate::memory::in_flight));
    match (action, paused) {
        (Action::Cull, _) => (Action::Cull, proposal.seed.clone()),
        (Action::Pause, None) => match run.growing() {
            Some(seed)
                if run
                    .slots
                    .get(seed)
                    .is_some_and(|slot| slot.stage != Some(Stage::Fossilized)) =>
            {
                (Action::Pause, Some(seed.clone()))
            }
            _ => (Action::Nothing, None),
        },
        (Action::Pause, Some(_)) => (Action::Nothing, None),
        (_, Some((seed, _))) => (Action::Resume, Some(seed.clone())),
        (Action::Optimizer, None) => (Action::Optimizer, None),
        (action, None) => (action, proposal.seed.clone()),
    }
}

/// The rules speak for what they changed; otherwise the proposal speaks for itself.
fn final_reason(action: Action, proposal: &Proposal, assessment: &Assessment) -> Reason {
    match (action, assessment.reason) {
        (Action::Resume, _) => Reason::Resume,
        (action, Some(reason))
            if action != proposal.action || assessment.action != proposal.action =>
        {
            reason
        }
        _ => proposal.reason,
    }
}

fn blueprint_facts(blueprint: &karn::Blueprint) -> BlueprintFacts {
    let sheet = karn::safety_sheet(blueprint);
    BlueprintFacts {
        risk: sheet.risk,
        quarantine_only: blueprint.quarantine_only(),
        handling: sheet.handling,
        hazard: sheet.hazard,
    }
}

fn conclude(
    findings: &Findings<'_>,
    command: Option<AdaptationCommand>,
    annotations: BTreeMap<String, String>,
    reports: Vec<FieldReport>,
) -> Decision {
    let happenings = &findings.assessment.events;
    let names: Vec<_> = happenings.iter().map(|one| (one.event, one.level)).collect();
    Decision {
        action: if command.is_some() { findings.action } else { Action::Nothing },
        command,
        reason: findings.reason,
        events: annotate::events(findings, &reports),
        annotations,
        reports,
        risk_score: findings.facts.score.unwrap_or(0.0),
        conservative: findings.conservative,
        priority: decision::priority(&names),
        health: decision::health(findings.assessment.action, findings.reason, &names),
        points: annotate::points(findings),
        policy_version: findings.policy.identity.version.clone(),
    }
}
