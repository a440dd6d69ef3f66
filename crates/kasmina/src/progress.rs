//! How seeds move on: by what is observed, by what is fetched, and by time.

use kernel::Fallback;
use kernel::quarantine::Report;
use leyline::ids::{BlueprintId, RequestId, SeedId};
use leyline::wire::{CircuitBreakerState, TelemetryLevel};
use leyline::{Gate, Stage};
use tokio::sync::mpsc::error::TrySendError;

use crate::error::CommandError;
use crate::event::Event;
use crate::evidence::Observation;
use crate::fetch::{FetchFailure, FetchOrder, Fetched, FetchedKernel};
use crate::gates::GateFailure;
use crate::isolation::{Owner, Violation};
use crate::manager::{Effect, SeedManager};
use crate::moment::Now;
use crate::open;
use crate::quarantine::{self, Handling};
use crate::seed::{Attached, Fetch, Hold, Life, Moved, Refused};

impl SeedManager {
    /// Takes what was measured of one seed in one optimiser step, and moves it on when its gate
    /// opens. A gate that fails ends the graft. Paused seeds and empty slots take no notice.
    ///
    /// # Errors
    /// [`CommandError::UnknownSeed`]
    pub fn advance(
        &mut self,
        id: &SeedId,
        seen: &Observation,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        if seen.validation.is_some() {
            self.validation = seen.validation;
        }
        let unknown = || CommandError::UnknownSeed(id.clone());
        let seed = self.seeds.get_mut(id).ok_or_else(unknown)?;
        if seed.hold == Hold::Paused || seed.life().kernel().is_none() {
            return Ok(Vec::new());
        }
        if let Err(violation) = seed.observe(seen) {
            self.violated(id, violation, now);
        }
        let Some(next) = self.next_stage_of(id) else { return Ok(Vec::new()) };
        let to = next.stage();
        match self.seeds.get(id).ok_or_else(unknown)?.judge(to, &self.config.limits) {
            Ok(_) => Ok(self.move_on(id, next, now).unwrap_or_default()),
            Err(Refused::NotYet { .. } | Refused::NoEdge { .. }) => Ok(Vec::new()),
            Err(refused @ Refused::Gate { .. }) => Ok(self.turned_back(id, &refused, now)),
        }
    }

    /// Takes the coordinator's answer. One that no seed waits for (it was culled meanwhile) is
    /// dropped.
    pub fn on_fetched(&mut self, fetched: Fetched, now: Now) -> Vec<Effect> {
        let Fetched { mut step, request, seed: id, result } = fetched;
        if self.awaited(&id).as_ref() != Some(&request) {
            return Vec::new();
        }
        if let Err(FetchFailure::Quarantined(report)) = &result {
            if let Some(step) = &mut step {
                step.fail(report.verdict());
            }
            return self.quarantined(&id, report, now);
        }
        let outcome = match result {
            Ok(kernel) => self.attach(&id, kernel, now),
            Err(failure) => Err(failure.to_string()),
        };
        if let (Some(step), Err(reason)) = (&mut step, &outcome) {
            step.fail(reason);
        }
        match outcome {
            Ok(effects) => {
                let action = self.kernel_breaker.succeeded();
                self.breaker_event("kernel", action.name(), TelemetryLevel::Info);
                effects
            }
            Err(reason) => {
                self.note(&id, Event::warning("prefetch_error").with("reason", &reason));
                self.kernel_failed(now);
                self.fail(&id, &reason, now)
            }
        }
    }

    /// Ends a seed whose kernel stays in quarantine: the host never saw it. Says nothing about the kernel service.
    fn quarantined(&mut self, id: &SeedId, report: &Report, now: Now) -> Vec<Effect> {
        let Some(seed) = self.seeds.get(id) else { return Vec::new() };
        let failure = quarantine::judge(seed.evidence(), report, &self.config.limits);
        let event = Event::warning("quarantine_verdict")
            .with("reason", quarantine::reason(report.foremost()))
            .with("runs", report.runs)
            .with("took_ms", report.took_ms);
        self.note(id, event);
        let refused = Refused::Gate { gate: Gate::GradientHealth, failure };
        self.turned_back(id, &refused, now)
    }

    /// Ends a graft that the trainer cannot go on with: the gate-failure procedure, with embargo.
    /// Empty slots take no notice; a fossilised seed stays.
    pub fn fail(&mut self, id: &SeedId, reason: &str, now: Now) -> Vec<Effect> {
        let until = now.elapsed + self.config.embargo;
        self.metrics.gate_failures.inc();
        self.note(id, Event::warning("gate_failure").with("reason", reason));
        self.cull(id, reason, until, TelemetryLevel::Warning, now)
    }

    /// Lets time pass: embargoes end, orders that found the queue full are handed over, fetches
    /// that never ended are given up.
    pub fn tick(&mut self, now: Now) -> Vec<Effect> {
        let ids: Vec<SeedId> = self.seeds.keys().cloned().collect();
        ids.iter().flat_map(|id| self.tick_seed(id, now)).collect()
    }

    fn tick_seed(&mut self, id: &SeedId, now: Now) -> Vec<Effect> {
        let Some(seed) = self.seeds.get(id) else { return Vec::new() };
        match seed.life() {
            Life::Embargoed { until, .. } if *until <= now.elapsed => self.reset(id, now),
            Life::Germinated { graft, .. }
                if graft.since.elapsed + self.config.fetch_deadline <= now.elapsed =>
            {
                let reason = FetchFailure::TimedOut.to_string();
                self.note(id, Event::warning("prefetch_error").with("reason", &reason));
                self.kernel_failed(now);
                self.fail(id, &reason, now)
            }
            Life::Germinated { fetch: Fetch::Waiting(request), .. } => {
                let request = request.clone();
                self.hand_over(id, request);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Hands the order for a seed's kernel to the coordinator, without waiting for room.
    pub(crate) fn hand_over(&mut self, id: &SeedId, request: RequestId) {
        let Some(seed) = self.seeds.get_mut(id) else { return };
        let Some(graft) = seed.life().graft() else { return };
        let order = FetchOrder {
            request: request.clone(),
            seed: id.clone(),
            blueprint: graft.blueprint.clone(),
            shape: seed.slot.shape.clone(),
            parameters: graft.parameters.clone(),
        };
        let blueprint = order.blueprint.clone();
        match self.orders.try_send(order) {
            Ok(()) => {
                seed.fetch_ordered();
                let event = Event::info("prefetch_requested")
                    .with("request_id", request)
                    .with("blueprint_id", blueprint);
                self.note(id, event);
            }
            // Tried again at the next tick; the fetch deadline bounds how often.
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
        }
    }

    fn awaited(&self, id: &SeedId) -> Option<RequestId> {
        match self.seeds.get(id)?.life() {
            Life::Germinated {
                fetch: Fetch::Ordered(request) | Fetch::Waiting(request), ..
            } => Some(request.clone()),
            _ => None,
        }
    }

    /// Gives the seed its kernel; the error is a reason of the contract.
    fn attach(
        &mut self,
        id: &SeedId,
        kernel: FetchedKernel,
        now: Now,
    ) -> Result<Vec<Effect>, String> {
        let Some(graft) = self.seeds.get(id).and_then(|seed| seed.life().graft()).cloned() else {
            return Err(FetchFailure::Cancelled.to_string());
        };
        if kernel.blueprint != graft.blueprint {
            return Err(FetchFailure::BlueprintMismatch.to_string());
        }
        let is_confined = quarantine::handling(&kernel.blueprint) == Handling::Confined;
        if is_confined || kernel.kernel.graph().stress().is_some() {
            return Err(GateFailure::QuarantineOnly.to_string());
        }
        // The coordinator has seen to it; whoever else hands kernels over is held to the same.
        let shape = self.seeds.get(id).map_or(&[][..], |seed| &seed.slot.shape);
        open::fits(&kernel.kernel, shape).map_err(|failure| failure.to_string())?;
        let names: Vec<String> =
            kernel.kernel.params().iter().map(|(name, _)| format!("{id}/{name}")).collect();
        self.ownership
            .register(&Owner::Seed(id.clone()), &names)
            .map_err(|_| "registry_conflict".to_owned())?;
        let fetch_ms = kernel.latency.as_secs_f64() * 1e3;
        self.fetch_last_ms = fetch_ms;
        let event = Event::info("prefetch_ready")
            .with("blueprint_id", &kernel.blueprint)
            .with("checksum", kernel.digest)
            .with("latency_ms", fetch_ms);
        self.note(id, event);
        if let Some(reason) = kernel.execution.reason() {
            self.interpreted(id, &kernel.blueprint, reason);
        }
        let blend = graft.blend.clone();
        let in_use = kernel.in_use.clone();
        let attached = Attached { digest: kernel.digest, fetch_ms, in_use };
        let life = Life::Training { graft, kernel: attached };
        let mut effects = vec![Effect::Attach { seed: id.clone(), kernel, blend }];
        effects.extend(self.move_on(id, life, now).map_err(|refused| refused.to_string())?);
        Ok(effects)
    }

    /// Says that the interpreter runs a kernel, as its forge has found.
    fn interpreted(&mut self, id: &SeedId, blueprint: &BlueprintId, reason: &Fallback) {
        self.metrics.interpreter_fallbacks.inc();
        tracing::warn!(seed = %id, %blueprint, %reason, "kernel runs by the interpreter");
        let event = Event::warning("interpreter_fallback")
            .with("blueprint_id", blueprint)
            .with("reason", reason);
        self.note(id, event);
    }

    /// The stage that follows by itself, with what it carries.
    pub(crate) fn next_stage_of(&self, id: &SeedId) -> Option<Life> {
        Some(match self.seeds.get(id)?.life().clone() {
            Life::Training { graft, kernel } => {
                Life::Blending { graft, kernel, ramp: self.config.ramp, step: 1 }
            }
            Life::Blending { graft, kernel, .. } => Life::Shadowing { graft, kernel },
            Life::Shadowing { graft, kernel } => Life::Probationary { graft, kernel },
            Life::Probationary { graft, kernel } => Life::Fossilized { graft, kernel },
            Life::Dormant
            | Life::Germinated { .. }
            | Life::Fossilized { .. }
            | Life::Culled { .. }
            | Life::Embargoed { .. }
            | Life::Resetting
            | Life::Terminated => return None,
        })
    }

    /// Moves a seed, and says so everywhere.
    pub(crate) fn move_on(
        &mut self,
        id: &SeedId,
        life: Life,
        now: Now,
    ) -> Result<Vec<Effect>, Refused> {
        let (limits, validation) = (&self.config.limits, self.validation);
        let Some(seed) = self.seeds.get_mut(id) else { return Ok(Vec::new()) };
        let baseline = seed.evidence().validations.last().copied().or(validation);
        let moved = seed.enter(life, limits)?;
        if moved.to == Stage::Blending {
            seed.evidence_mut().baseline = baseline;
        }
        self.said(id, moved, now);
        Ok(vec![Effect::Moved { seed: id.clone(), moved }])
    }

    fn said(&mut self, id: &SeedId, moved: Moved, now: Now) {
        if let Some(gate) = moved.gate {
            let event = Event::info("gate_event").with("gate", gate.name()).with("passed", "true");
            self.note(id, event);
        }
        let event = Event::info("seed_stage")
            .with("from", moved.from.name())
            .with("stage", moved.to.name())
            .with("step_index", now.step);
        self.note(id, event);
        self.count_stages();
    }

    /// A gate closed for good.
    fn turned_back(&mut self, id: &SeedId, refused: &Refused, now: Now) -> Vec<Effect> {
        let reason = match refused {
            Refused::Gate { gate, failure } => {
                let event = Event::warning("gate_event")
                    .with("gate", gate.name())
                    .with("passed", "false")
                    .with("reason", failure);
                self.note(id, event);
                failure.to_string()
            }
            other => other.to_string(),
        };
        self.fail(id, &reason, now)
    }

    /// CULLED, then EMBARGOED until a time. The slot is the identity again at once.
    pub(crate) fn cull(
        &mut self,
        id: &SeedId,
        reason: &str,
        until: std::time::Duration,
        level: TelemetryLevel,
        now: Now,
    ) -> Vec<Effect> {
        let Some(rollback) = self.seeds.get(id).map(|seed| seed.rollback(reason, now)) else {
            return Vec::new();
        };
        let culled = Life::Culled { rollback: rollback.clone() };
        let Ok(mut effects) = self.move_on(id, culled, now) else { return Vec::new() };
        self.ownership.deregister(&Owner::Seed(id.clone()));
        let event = Event::new("rollback_ready", level)
            .with("stage", rollback.stage.name())
            .with("reason", reason);
        self.note(id, event);
        effects.push(Effect::Detach { seed: id.clone(), rollback: rollback.clone() });
        let embargoed = Life::Embargoed { rollback, until };
        effects.extend(self.move_on(id, embargoed, now).unwrap_or_default());
        effects
    }

    /// EMBARGOED to RESETTING, and through G5 to DORMANT.
    pub(crate) fn reset(&mut self, id: &SeedId, now: Now) -> Vec<Effect> {
        let mut effects = self.move_on(id, Life::Resetting, now).unwrap_or_default();
        effects.extend(self.move_on(id, Life::Dormant, now).unwrap_or_default());
        effects
    }

    fn violated(&mut self, id: &SeedId, violation: Violation, now: Now) {
        self.metrics.violations.inc();
        let action = self.isolation_breaker.failed(now.elapsed);
        let open = self.isolation_breaker.state() == CircuitBreakerState::CircuitStateOpen;
        let level = if open { TelemetryLevel::Critical } else { TelemetryLevel::Warning };
        let norm = format!("{:e}", violation.norm);
        self.note(id, Event::new("violation_recorded", level).with("host_gradient_norm", norm));
        self.breaker_event("isolation", action.name(), level);
    }

    pub(crate) fn kernel_failed(&mut self, now: Now) {
        let action = self.kernel_breaker.failed(now.elapsed);
        let level = match action {
            crate::breaker::Action::Count => TelemetryLevel::Info,
            _ => TelemetryLevel::Warning,
        };
        self.breaker_event("kernel", action.name(), level);
    }

    pub(crate) fn breaker_event(&mut self, breaker: &str, action: &str, level: TelemetryLevel) {
        let name = if breaker == "isolation" { "isolation_breaker" } else { "breaker_event" };
        if level == TelemetryLevel::Info && action == "count" {
            return; // Nothing changed and nothing is wrong.
        }
        let event = Event::new(name, level).with("breaker", breaker).with("action", action);
        self.global_events.push(event);
    }
}
