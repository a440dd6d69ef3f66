//! The epoch hook: state, decision, command; and the copies of them for the bus.

use std::time::{Duration, Instant};

use kasmina::CommandError;
use leyline::ids::CommandId;
use leyline::wire::{MessagePriority, SystemStatePacket};
use oona::Stream;
use tamiyo::{Context, Decision, Horizon, Reason};
use tracing::warn;

use super::Training;
use super::times::milliseconds;
use crate::error::TrainError;
use crate::network::Score;
use crate::packet::{self, Figures as PacketFigures};
use crate::statistics::EpochFigures;

/// Telemetry without news goes out once in this time, however short the epochs are.
const TELEMETRY_EVERY: Duration = Duration::from_millis(500);

impl Training {
    /// State, decision, command: the epoch hook.
    pub(super) fn hook(
        &mut self,
        figures: &EpochFigures,
        score: Score,
    ) -> Result<Decision, TrainError> {
        let began = Instant::now();
        let now = self.clock.now();
        let state = self.state(figures, score);
        let config = &self.prepared.config;
        let too_late = self.clock.epoch + config.growth_epochs() > config.epochs_max;
        let given_up = self.journal.failures_in_a_row() >= config.failures_max;
        let horizon =
            if too_late || given_up || self.is_fine() { Horizon::Short } else { Horizon::Open };
        let context = Context {
            now_unix_ms: now.unix_ms,
            epoch: self.clock.epoch,
            command_id: CommandId::fresh(),
            candidates: self.candidates.clone(),
            culled: Vec::new(),
            horizon,
        };
        let deciding = Instant::now();
        let decision = self.policy.decide(&state, &context);
        self.timing_findings += timing_findings(&decision);
        self.times.decide_ms = Some(milliseconds(deciding.elapsed()));
        if let Some(command) = &decision.command {
            let applying = Instant::now();
            let applied = self.manager.apply(command, now);
            self.times.apply_ms = Some(milliseconds(applying.elapsed()));
            match applied {
                Ok(effects) => self.carry_out(effects)?,
                Err(error) => self.refused(&error),
            }
        }
        let taken = began.elapsed();
        self.times.hook(taken);
        self.channels.metrics.hook_seconds.observe(taken.as_secs_f64());
        self.send(state, &decision, &context);
        Ok(decision)
    }

    fn refused(&mut self, error: &CommandError) {
        warn!(%error, epoch = self.clock.epoch, "seed manager refused a command");
    }

    pub(super) fn state(&mut self, figures: &EpochFigures, score: Score) -> SystemStatePacket {
        let before = self.last_validation_loss();
        let measured = PacketFigures {
            run: self.prepared.config.run.clone(),
            experiment: self.prepared.data.name.clone(),
            epoch: self.clock.epoch,
            epochs_total: self.prepared.config.epochs_max,
            step: self.clock.step,
            training_loss: figures.loss(),
            validation: score,
            loss_delta: before.map(|before| score.loss - before),
            loss_average: self.loss_average.add(figures.loss()),
            loss_volatility: self.volatility.add(figures.loss()),
            gradient_norm: figures.gradient_norm(),
            gradient_norm_average: self.norm_average.add(figures.gradient_norm()),
            gradient_variance: figures.gradient_variance(),
            learning_rate: self.network.rate(),
            samples_per_s: self.times.samples_per_s,
            step_ms: self.times.step_ms,
            hook_ms: self.times.hook_ms,
            decide_ms: self.times.decide_ms,
            apply_ms: self.times.apply_ms,
            finalize_ms: self.times.finalize_ms,
            violations: self.violations,
            parameters: [self.network.host_parameter_count(), self.network.parameter_count()],
        };
        packet::state(&measured, self.manager.states(self.clock.now()))
    }

    fn last_validation_loss(&self) -> Option<f32> {
        self.history.last().map(|epoch| epoch.validation_loss)
    }

    /// Copies for the bus.
    fn send(&mut self, state: SystemStatePacket, decision: &Decision, context: &Context) {
        let outbox = &self.channels.outbox;
        outbox.send(Stream::Normal, MessagePriority::Normal, state);
        if let Some(command) = &decision.command {
            outbox.send(Stream::Normal, MessagePriority::High, command.clone());
        }
        self.channels.reports.offer(decision.reports.iter().cloned());
        let news = !decision.events.is_empty() || decision.command.is_some();
        let due = self.telemetry_at.is_none_or(|at| at.elapsed() >= TELEMETRY_EVERY);
        if !news && !due {
            return;
        }
        self.telemetry_at = Some(Instant::now());
        outbox.send(Stream::Telemetry, decision.priority, decision.telemetry(context, Vec::new()));
        for packet in self.manager.drain_telemetry(self.clock.now()) {
            outbox.send(Stream::Telemetry, packet.priority, packet.packet);
        }
        let own = packet::telemetry(
            &self.prepared.config.run,
            self.clock.epoch,
            self.last,
            &self.times_now(),
        );
        outbox.send(Stream::Telemetry, MessagePriority::Normal, own);
    }

    fn times_now(&self) -> packet::EpochTimes {
        let active = self.seeds.iter().filter(|seed| self.is_growing(seed)).count();
        packet::EpochTimes {
            hook_ms: self.times.hook_ms,
            step_ms: self.times.step_ms,
            seeds_active: active,
        }
    }

    /// Counts the epochs in which there was nothing to do and nothing to wait for.
    pub(super) fn settle(&mut self, decision: &Decision) {
        let growing = self.seeds.iter().any(|seed| self.is_growing(seed));
        let nothing_left = matches!(
            decision.reason,
            Reason::TargetReached
                | Reason::NoSeedCandidates
                | Reason::NoBlueprintCandidates
                | Reason::HorizonShort
        );
        let calm = !growing && decision.command.is_none() && (nothing_left || self.is_fine());
        self.calm_epochs = if calm { self.calm_epochs + 1 } else { 0 };
    }

    /// Whether the loss is as low as wanted.
    fn is_fine(&self) -> bool {
        self.last.is_some_and(|score| score.loss <= self.prepared.config.loss_fine)
    }
}

/// How many rules on measured times spoke: their events are the reports of what they would have done.
fn timing_findings(decision: &Decision) -> u32 {
    const NAMES: [&str; 7] = [
        "timeout_inference",
        "hook_budget",
        "step_latency_high",
        "kasmina_apply_slow",
        "kasmina_finalize_slow",
        "device_pressure_high",
        "cpu_pressure_high",
    ];
    let timed = decision.events.iter().filter(|event| NAMES.contains(&event.description.as_str()));
    u32::try_from(timed.count()).unwrap_or(u32::MAX)
}
