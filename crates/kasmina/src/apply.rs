//! Commands: verified, then carried out or refused with a reason. Nothing is swallowed.

use leyline::ids::{BlueprintId, CommandId, RequestId, SeedId};
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, CircuitBreakerState, CommandSeedOperation, CommandType, SeedOperation,
    TelemetryLevel,
};
use leyline::{Gate, Stage};

use crate::blend::BlendMode;
use crate::error::CommandError;
use crate::event::Event;
use crate::evidence::Evidence;
use crate::gates::{self, Verdict};
use crate::manager::{ALL_SEEDS, Effect, SeedManager};
use crate::moment::Now;
use crate::seed::{Fetch, Graft, Hold, Life, Refused};
use crate::verify::verify;

/// Annotations of the policy that are shown with the seed.
const ANNOTATIONS: [&str; 5] =
    ["feature_coverage", "risk_reason", "blueprint_risk", "blueprint_tier", "blueprint_stage"];

impl SeedManager {
    /// Verifies a command and carries it out.
    ///
    /// # Errors
    /// [`CommandError`]. After [`CommandError::Rejected`] nothing of the command was looked at;
    /// after any other error nothing has changed, and its id is used up.
    pub fn apply(
        &mut self,
        command: &AdaptationCommand,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        self.metrics.commands.inc();
        let id = match verify(self.keyring.as_ref(), &mut self.ledger, command, now) {
            Ok(id) => id,
            Err(rejection) => {
                self.metrics.commands_rejected.inc();
                let event = Event::new("command_rejected", TelemetryLevel::Error)
                    .with("reason", rejection.code())
                    .with("command_id", &command.command_id);
                self.global_events.push(event);
                return Err(rejection.into());
            }
        };
        let outcome = self.carry_out(id, command, now);
        if let Err(error) = &outcome {
            let event = Event::warning("seed_operation")
                .with("command_id", &command.command_id)
                .with("refused", error);
            self.global_events.push(event);
        }
        outcome
    }

    fn carry_out(
        &mut self,
        id: CommandId,
        command: &AdaptationCommand,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        let kind =
            CommandType::try_from(command.command_type).unwrap_or(CommandType::CommandUnknown);
        match (kind, &command.payload) {
            (CommandType::CommandSeed, Some(Payload::SeedOperation(operation))) => {
                self.seed_operation(id, command, operation, now)
            }
            (CommandType::CommandSeed, _) => Err(CommandError::BadPayload("SEED")),
            (CommandType::CommandOptimizer, Some(Payload::OptimizerAdjustment(adjustment))) => {
                let event =
                    Event::info("optimizer_adjust").with("optimizer_id", &adjustment.optimizer_id);
                self.global_events.push(event);
                Ok(vec![Effect::AdjustOptimizer(adjustment.clone())])
            }
            (CommandType::CommandOptimizer, _) => Err(CommandError::BadPayload("OPTIMIZER")),
            (CommandType::CommandCircuitBreaker, Some(Payload::CircuitBreaker(wanted))) => {
                self.force_breaker(wanted.desired_state, now)
            }
            (CommandType::CommandCircuitBreaker, _) => {
                Err(CommandError::BadPayload("CIRCUIT_BREAKER"))
            }
            (CommandType::CommandPause, _) => self.pause_or_resume(command),
            (CommandType::CommandEmergency, _) => Ok(self.emergency(command)),
            (CommandType::CommandRollback, _) => Err(self.unsupported("ROLLBACK")),
            (CommandType::CommandStructuralPruning, _) => {
                Err(self.unsupported("STRUCTURAL_PRUNING"))
            }
            (CommandType::CommandUnknown, _) => Err(self.unsupported("UNKNOWN")),
        }
    }

    fn seed_operation(
        &mut self,
        id: CommandId,
        command: &AdaptationCommand,
        operation: &CommandSeedOperation,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        let seed = target(command)?;
        if !self.seeds.contains_key(&seed) {
            return Err(CommandError::UnknownSeed(seed));
        }
        let kind =
            SeedOperation::try_from(operation.operation).unwrap_or(SeedOperation::SeedOpUnknown);
        let effects = match kind {
            SeedOperation::SeedOpGerminate => self.germinate(id, command, operation, &seed, now)?,
            SeedOperation::SeedOpStartTraining => self.push_on(&seed, Stage::Training, now)?,
            SeedOperation::SeedOpStartGrafting => self.push_on(&seed, Stage::Blending, now)?,
            SeedOperation::SeedOpStabilize => self.push_on(&seed, Stage::Shadowing, now)?,
            SeedOperation::SeedOpEvaluate => self.push_on(&seed, Stage::Probationary, now)?,
            SeedOperation::SeedOpFossilize => self.push_on(&seed, Stage::Fossilized, now)?,
            SeedOperation::SeedOpFineTune => self.fine_tune(&seed)?,
            SeedOperation::SeedOpCull | SeedOperation::SeedOpCancel => self.retire(&seed, now)?,
            SeedOperation::SeedOpUnknown => return Err(self.unsupported("SEED without operation")),
        };
        let event = Event::info("seed_operation")
            .with("operation", kind.as_str_name())
            .with("command_id", &command.command_id);
        self.note(&seed, event);
        Ok(effects)
    }

    fn germinate(
        &mut self,
        id: CommandId,
        command: &AdaptationCommand,
        operation: &CommandSeedOperation,
        target: &SeedId,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        let refused = |refused| CommandError::Refused { seed: target.clone(), refused };
        let annotated = BlendMode::from_annotations(&command.annotations);
        let graft = Graft {
            blueprint: BlueprintId::new(operation.blueprint_id.clone()),
            parameters: operation.parameters.clone(),
            command: id,
            blend: annotated.clone().unwrap_or_else(|| self.config.blend.clone()),
            risk: number(command, "blueprint_risk").unwrap_or(0.0).clamp(0.0, 1.0),
            since: now,
        };
        let seed =
            self.seeds.get(target).ok_or_else(|| CommandError::UnknownSeed(target.clone()))?;
        let from = seed.stage();
        if from != Stage::Dormant {
            return Err(refused(Refused::NoEdge { from, to: Stage::Germinated }));
        }
        if let Some(&reason) = self.config.withheld.get(&graft.blueprint) {
            let blueprint = graft.blueprint;
            let event = Event::warning("germination_withheld")
                .with("blueprint_id", blueprint.as_str())
                .with("reason", reason);
            self.note(target, event);
            return Err(CommandError::Withheld { blueprint, reason });
        }
        // G0 first: a command that could never germinate says nothing about the kernel service.
        let candidate = Evidence {
            blueprint: Some(graft.blueprint.clone()),
            parameters: graft.parameters.clone(),
            ..seed.evidence().clone()
        };
        if let Verdict::Failed(failure) =
            gates::check(Gate::Sanity, &candidate, &self.config.limits)
        {
            return Err(refused(Refused::Gate { gate: Gate::Sanity, failure }));
        }
        let blueprint = graft.blueprint.clone();
        let admitted = self.kernel_breaker.admit(now.elapsed);
        if let Err(action) = admitted {
            self.breaker_event("kernel", action.name(), TelemetryLevel::Warning);
            return Err(CommandError::BreakerDenied { blueprint });
        }
        if let Some(seed) = self.seeds.get_mut(target) {
            *seed.evidence_mut() = candidate;
        }
        let request = RequestId::fresh();
        let life = Life::Germinated { graft, fetch: Fetch::Waiting(request.clone()) };
        let effects = self.move_on(target, life, now).map_err(refused)?;
        self.show_annotations(target, command, annotated.as_ref());
        self.hand_over(target, request);
        Ok(effects)
    }

    /// Moves a seed to the stage that follows, if its gate lets it; a refusal changes nothing.
    fn push_on(&mut self, id: &SeedId, to: Stage, now: Now) -> Result<Vec<Effect>, CommandError> {
        let refused = |refused| CommandError::Refused { seed: id.clone(), refused };
        let seed = self.seeds.get(id).ok_or_else(|| CommandError::UnknownSeed(id.clone()))?;
        let from = seed.stage();
        match self.next_stage_of(id).filter(|next| next.stage() == to) {
            Some(next) => self.move_on(id, next, now).map_err(refused),
            None => Err(refused(Refused::NoEdge { from, to })),
        }
    }

    /// Prolongs the stage: its measures begin anew.
    fn fine_tune(&mut self, id: &SeedId) -> Result<Vec<Effect>, CommandError> {
        let seed = self.seeds.get_mut(id).ok_or_else(|| CommandError::UnknownSeed(id.clone()))?;
        match seed.stage() {
            Stage::Training | Stage::Probationary => {
                seed.evidence_mut().next_stage();
                Ok(Vec::new())
            }
            stage => Err(CommandError::NotApplicable {
                seed: id.clone(),
                stage: stage.name(),
                operation: "FINE_TUNE",
            }),
        }
    }

    /// CULLED, EMBARGOED, RESETTING and through G5 to DORMANT, without a hold.
    fn retire(&mut self, id: &SeedId, now: Now) -> Result<Vec<Effect>, CommandError> {
        let seed = self.seeds.get(id).ok_or_else(|| CommandError::UnknownSeed(id.clone()))?;
        seed.judge(Stage::Culled, &self.config.limits)
            .map_err(|refused| CommandError::Refused { seed: id.clone(), refused })?;
        let mut effects = self.cull(id, "retired", now.elapsed, TelemetryLevel::Info, now);
        effects.extend(self.reset(id, now));
        Ok(effects)
    }

    fn force_breaker(&mut self, state: i32, now: Now) -> Result<Vec<Effect>, CommandError> {
        let state = CircuitBreakerState::try_from(state)
            .unwrap_or(CircuitBreakerState::CircuitStateUnknown);
        match self.kernel_breaker.force(state, now.elapsed) {
            Some(action) => {
                self.breaker_event("kernel", action.name(), TelemetryLevel::Warning);
                Ok(Vec::new())
            }
            None => {
                self.global_events.push(Event::warning("breaker_command_invalid"));
                Err(CommandError::BadPayload("CIRCUIT_BREAKER"))
            }
        }
    }

    fn pause_or_resume(
        &mut self,
        command: &AdaptationCommand,
    ) -> Result<Vec<Effect>, CommandError> {
        let resume = flag(command, "resume");
        let wanted = target(command)?;
        let ids: Vec<SeedId> = match wanted.as_str() {
            ALL_SEEDS => self.seeds.keys().cloned().collect(),
            _ if self.seeds.contains_key(&wanted) => vec![wanted],
            _ => return Err(CommandError::UnknownSeed(wanted)),
        };
        Ok(ids.iter().filter_map(|id| self.hold(id, resume)).collect())
    }

    /// Pauses or resumes one seed; `None` when it already is as wanted.
    fn hold(&mut self, id: &SeedId, resume: bool) -> Option<Effect> {
        let seed = self.seeds.get_mut(id)?;
        let (from, to, event) = match resume {
            true => (Hold::Paused, Hold::Running, Event::info("seed_resumed")),
            false => (Hold::Running, Hold::Paused, Event::warning("seed_paused")),
        };
        if seed.hold != from || (to == Hold::Paused && seed.life().graft().is_none()) {
            return None;
        }
        seed.hold = to;
        self.note(id, event);
        Some(if resume { Effect::Resume(id.clone()) } else { Effect::Pause(id.clone()) })
    }

    /// Drops what waits for telemetry; kernels in use stay.
    fn emergency(&mut self, command: &AdaptationCommand) -> Vec<Effect> {
        let dropped: usize = self.events.values_mut().map(|events| events.drain().len()).sum();
        let event = Event::new("emergency_cleanup", TelemetryLevel::Critical)
            .with("command_id", &command.command_id)
            .with("dropped_events", dropped);
        self.global_events.push(event);
        vec![Effect::EmergencyCleanup]
    }

    fn unsupported(&mut self, kind: &'static str) -> CommandError {
        self.global_events.push(Event::warning("unsupported_command").with("type", kind));
        CommandError::Unsupported(kind)
    }

    fn show_annotations(
        &mut self,
        seed: &SeedId,
        command: &AdaptationCommand,
        blend: Option<&BlendMode>,
    ) {
        if let Some(blend) = blend {
            let mut event = Event::info("blend_config").with("mode", blend.name());
            if let Some(source) = command.annotations.get("blend_mode_source") {
                event = event.with("source", source);
            }
            self.note(seed, event);
        }
        let mut event = Event::info("tamiyo_annotations");
        for key in ANNOTATIONS {
            if let Some(value) = command.annotations.get(key) {
                event = event.with(key, value);
            }
        }
        if !event.attributes.is_empty() {
            self.note(seed, event);
        }
        if let Some(coverage) = number(command, "feature_coverage").filter(|value| *value < 0.3) {
            let level =
                if coverage < 0.1 { TelemetryLevel::Critical } else { TelemetryLevel::Warning };
            self.note(
                seed,
                Event::new("degraded_inputs", level).with("feature_coverage", coverage),
            );
        }
    }
}

/// The seed a command is for: its target, else its annotation `seed_id`.
fn target(command: &AdaptationCommand) -> Result<SeedId, CommandError> {
    let named = [Some(&command.target_seed_id), command.annotations.get("seed_id")];
    let found = named.into_iter().flatten().find(|text| !text.trim().is_empty());
    found.map(|text| SeedId::new(text.clone())).ok_or(CommandError::MissingTarget)
}

fn flag(command: &AdaptationCommand, key: &str) -> bool {
    command.annotations.get(key).is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

fn number(command: &AdaptationCommand, key: &str) -> Option<f32> {
    command.annotations.get(key)?.trim().parse().ok().filter(|value: &f32| value.is_finite())
}
