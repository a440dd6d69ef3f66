//! Watching what a command does, and reporting it once the effect is known, never before.
//!
//! | command | watched until | outcome |
//! |---|---|---|
//! | germinate | the seed has been live (on probation or kept) for the window | by effect |
//! | | it was taken away after it had begun to blend | REGRESSION by effect, else NEUTRAL |
//! | | it was taken away before, or never came up | ABORTED |
//! | keep, cull | the window after the seed was kept, or gone | by effect |
//! | | that does not happen | ABORTED |
//! | pause, resume, optimizer | the window | by effect |
//!
//! The effect is the relative change of the validation loss: for a germination since the seed
//! began to blend, for the others since the command. "By effect": SUCCESS when the loss fell by at
//! least the minimum, REGRESSION when it rose by as much, else NEUTRAL.

use std::collections::BTreeMap;

use kernel::Digest;
use leyline::Stage;
use leyline::ids::{CommandId, RunId, SeedId};
use leyline::wire::{FieldReport, FieldReportOutcome, MitigationAction, SystemStatePacket};

use crate::config::Reports;
use crate::memory::{SlotMemory, in_flight, relative_change};
use crate::risk::Action;

/// Observations of one run that may be open at once; there is one command per decision and most
/// end within the window.
const OPEN_MAX: usize = 64;

/// The open observations of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observations(Vec<Observation>);

/// One command and what was seen since.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    pub(crate) command: CommandId,
    pub(crate) action: Action,
    pub(crate) seed: Option<SeedId>,
    pub(crate) blueprint: Option<String>,
    pub(crate) policy_version: String,
    pub(crate) opened_epoch: u32,
    pub(crate) opened_loss: Option<f64>,
    /// Figures known when the command was given.
    pub(crate) metrics: BTreeMap<String, f32>,
    pub(crate) seen: Seen,
}

/// What was seen since a command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    epoch: u32,
    loss: Option<f32>,
    delta_min: Option<f32>,
    delta_max: Option<f32>,
    hook_ms_sum: f32,
    hook_count: u32,
    /// Furthest stage on the way to being kept.
    reached: Option<Stage>,
    /// Epoch in which what was asked for had come about.
    settled_epoch: Option<u32>,
    effect: Option<f32>,
}

impl Seen {
    /// Nothing yet, at the epoch of the command.
    pub(crate) fn at(epoch: u32, loss: f32) -> Self {
        Self { epoch, loss: Some(loss), ..Self::default() }
    }
}

/// What an epoch shows, for all observations of the run.
pub(crate) struct Epoch<'a> {
    pub(crate) state: &'a SystemStatePacket,
    pub(crate) slots: &'a BTreeMap<SeedId, SlotMemory>,
    pub(crate) epoch: u32,
    pub(crate) now_unix_ms: u64,
    pub(crate) smoothed: Option<f64>,
    pub(crate) retry_epochs: u32,
    pub(crate) settings: &'a Reports,
}

impl Observations {
    /// Opens an observation. With too many open, the oldest is forgotten unreported.
    pub(crate) fn open(&mut self, observation: Observation) {
        if self.0.len() >= OPEN_MAX {
            self.0.remove(0);
        }
        self.0.push(observation);
    }

    /// Takes in an epoch and returns the reports that are due.
    pub(crate) fn observe(&mut self, epoch: &Epoch<'_>) -> Vec<FieldReport> {
        let mut due = Vec::new();
        self.0.retain_mut(|observation| {
            if epoch.epoch <= observation.seen.epoch {
                return true;
            }
            observation.see(epoch);
            let Some((outcome, notes)) = observation.outcome(epoch) else { return true };
            due.push(observation.report(outcome, notes, epoch));
            false
        });
        due
    }

    /// Closes everything: by effect where what was asked for had come about, else as aborted.
    pub(crate) fn finish(&mut self, epoch: &Epoch<'_>) -> Vec<FieldReport> {
        let close = |observation: Observation| {
            let outcome = match observation.seen.settled_epoch.and(observation.seen.effect) {
                Some(effect) => by_effect(effect, epoch.settings.effect_min),
                None => FieldReportOutcome::Aborted,
            };
            observation.report(outcome, "the run ended during the observation", epoch)
        };
        self.0.drain(..).map(close).collect()
    }
}

impl Observation {
    fn see(&mut self, now: &Epoch<'_>) {
        let seen = &mut self.seen;
        seen.epoch = now.epoch;
        let loss = now.state.validation_loss;
        if let Some(delta) = seen.loss.map(|old| loss - old) {
            seen.delta_min = Some(seen.delta_min.map_or(delta, |min| min.min(delta)));
            seen.delta_max = Some(seen.delta_max.map_or(delta, |max| max.max(delta)));
        }
        seen.loss = Some(loss);
        if let Some(hook) = now.state.training_metrics.get("hook_latency_ms") {
            (seen.hook_ms_sum, seen.hook_count) = (seen.hook_ms_sum + hook, seen.hook_count + 1);
        }
        let stage = self.stage(now);
        if let Some(stage) = stage.filter(|s| in_flight(*s) || *s == Stage::Fossilized) {
            self.seen.reached = self.seen.reached.max(Some(stage));
        }
        if self.has_settled(stage) {
            self.seen.settled_epoch.get_or_insert(now.epoch);
        }
        if let Some(effect) = self.measure(now) {
            self.seen.effect = Some(effect);
        }
    }

    fn stage(&self, now: &Epoch<'_>) -> Option<Stage> {
        now.slots.get(self.seed.as_ref()?)?.stage
    }

    /// Whether what was asked for has come about.
    fn has_settled(&self, stage: Option<Stage>) -> bool {
        match self.action {
            Action::Germinate => {
                matches!(stage, Some(Stage::Probationary | Stage::Fossilized))
            }
            Action::Fossilize => stage == Some(Stage::Fossilized),
            Action::Cull => stage.is_some_and(|stage| !in_flight(stage)),
            Action::Pause | Action::Resume | Action::Optimizer | Action::Nothing => true,
        }
    }

    fn measure(&self, now: &Epoch<'_>) -> Option<f32> {
        if self.action != Action::Germinate {
            return relative_change(self.opened_loss?, now.smoothed?);
        }
        let id = self.seed.as_ref()?;
        let slot = now.slots.get(id)?;
        let seed = now.state.seed_states.iter().find(|seed| seed.seed_id == id.as_str())?;
        // The executor may go on showing the last effect of a seed that is gone.
        slot.stage.is_some_and(in_flight).then(|| slot.effect(seed, now.smoothed))?
    }

    /// How it ended; `None` while it has not.
    fn outcome(&self, now: &Epoch<'_>) -> Option<(FieldReportOutcome, &'static str)> {
        let settings = now.settings;
        let age = now.epoch.saturating_sub(self.opened_epoch);
        let effect = self.seen.effect;
        let measured = |nothing| match effect {
            Some(effect) => (by_effect(effect, settings.effect_min), "effect observed"),
            None => (nothing, "no effect could be measured"),
        };
        let stage = self.stage(now);
        let gone = self.action == Action::Germinate
            && self.seen.reached.is_some()
            && stage.is_some_and(|stage| !in_flight(stage) && stage != Stage::Fossilized);
        if gone && self.seen.reached >= Some(Stage::Blending) {
            let regressed = effect.is_some_and(|effect| effect >= settings.effect_min);
            return Some(if regressed {
                (FieldReportOutcome::Regression, "taken away for its effect")
            } else {
                (FieldReportOutcome::Neutral, "taken away without harm")
            });
        }
        if gone {
            return Some((FieldReportOutcome::Aborted, "taken away before it blended"));
        }
        if let Some(settled) = self.seen.settled_epoch {
            let watched = now.epoch - settled >= settings.window_epochs.saturating_sub(1);
            return watched.then(|| measured(FieldReportOutcome::Neutral));
        }
        let never_began = self.seen.reached.is_none() && self.action == Action::Germinate;
        if (never_began || self.action != Action::Germinate) && age >= now.retry_epochs {
            return Some((FieldReportOutcome::Aborted, "the executor did not carry it out"));
        }
        let too_long = age >= settings.observation_epochs_max;
        too_long.then_some((FieldReportOutcome::Aborted, "not decided in time"))
    }

    fn report(
        &self,
        outcome: FieldReportOutcome,
        notes: &'static str,
        now: &Epoch<'_>,
    ) -> FieldReport {
        let mut metrics = self.metrics.clone();
        let seen = &self.seen;
        let total = seen.loss.zip(self.opened_loss).map(|(now, then)| now - then as f32);
        let hook = (seen.hook_count > 0).then(|| seen.hook_ms_sum / seen.hook_count as f32);
        for (name, value) in [
            ("loss_delta_total", total),
            ("loss_delta_min", seen.delta_min),
            ("loss_delta_max", seen.delta_max),
            ("avg_hook_latency_ms", hook),
            ("effect", seen.effect),
        ] {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                metrics.insert(name.to_owned(), value);
            }
        }
        FieldReport {
            version: 1,
            report_id: report_id(&self.command, now.now_unix_ms),
            command_id: self.command.to_string(),
            training_run_id: now.state.training_run_id.clone(),
            seed_id: self.seed.as_ref().map(ToString::to_string).unwrap_or_default(),
            blueprint_id: self.blueprint.clone().unwrap_or_default(),
            outcome: outcome.into(),
            metrics,
            observation_window_epochs: now.epoch.saturating_sub(self.opened_epoch),
            issued_at: Some(leyline::time::timestamp(now.now_unix_ms)),
            tamiyo_policy_version: self.policy_version.clone(),
            follow_up_actions: self.follow_up(outcome),
            notes: notes.to_owned(),
        }
    }

    fn follow_up(&self, outcome: FieldReportOutcome) -> Vec<MitigationAction> {
        let (action_type, rationale) = match (outcome, self.action, &self.blueprint) {
            (FieldReportOutcome::Regression, Action::Germinate, Some(blueprint)) => {
                ("exclude_blueprint", format!("{blueprint} made the loss worse on this slot"))
            }
            (FieldReportOutcome::Regression, Action::Fossilize, _) => {
                ("watch", "the loss rose after the seed was kept".to_owned())
            }
            _ => return Vec::new(),
        };
        vec![MitigationAction { action_type: action_type.to_owned(), rationale }]
    }
}

fn by_effect(effect: f32, minimum: f32) -> FieldReportOutcome {
    if effect <= -minimum {
        FieldReportOutcome::Success
    } else if effect >= minimum || effect.is_nan() {
        FieldReportOutcome::Regression
    } else {
        FieldReportOutcome::Neutral
    }
}

/// An id ordered by time (UUIDv7) and fixed by what it reports on: a command has one report, so its
/// hash serves as the random part, and reporting it twice at one time gives one id.
fn report_id(command: &CommandId, now_unix_ms: u64) -> String {
    let digest = Digest::of(command.as_str());
    let mut random = [0_u8; 10];
    random.copy_from_slice(&digest.as_bytes()[..10]);
    let id = uuid::Builder::from_unix_timestamp_millis(now_unix_ms, &random).into_uuid();
    format!("field-report-{id}")
}

/// The run of a packet.
pub(crate) fn run_of(state: &SystemStatePacket) -> RunId {
    RunId::from(state.training_run_id.as_str())
}
