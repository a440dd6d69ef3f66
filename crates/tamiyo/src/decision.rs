//! What a decision consists of.

use std::collections::BTreeMap;

use leyline::wire::{
    AdaptationCommand, FieldReport, HealthStatus, MessagePriority, MetricPoint, SystemHealth,
    TelemetryEvent, TelemetryLevel, TelemetryPacket,
};

use crate::context::Context;
use crate::reason::Reason;
use crate::risk::Action;

/// One decision: what to do, why, and what is to be told about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The signed command; `None` when nothing is to be done.
    pub command: Option<AdaptationCommand>,
    /// What the command does.
    pub action: Action,
    /// Why: the risk rule that spoke, else why the policy proposed this or nothing.
    pub reason: Reason,
    /// What happened on the way, for telemetry.
    pub events: Vec<TelemetryEvent>,
    /// The annotations of the command; known also when there is none.
    pub annotations: BTreeMap<String, String>,
    /// Reports whose observation ended: hand them to [`crate::Reports`].
    pub reports: Vec<FieldReport>,
    /// Expected risk, 0 to 1.
    pub risk_score: f32,
    /// Whether conservative mode is on after this decision.
    pub conservative: bool,
    /// Priority of its telemetry on the bus.
    pub priority: MessagePriority,
    /// Health and its summary.
    pub health: (HealthStatus, String),
    /// Figures under the dotted names other programs read.
    pub points: Vec<MetricPoint>,
    /// Label of the policy that decided.
    pub policy_version: String,
}

impl Decision {
    /// The telemetry packet of this decision. `more` are further figures, such as
    /// [`crate::Metrics::points`].
    pub fn telemetry(&self, context: &Context, more: Vec<MetricPoint>) -> TelemetryPacket {
        let level = self.events.iter().map(|event| event.level).max().unwrap_or_default();
        let mode = if self.conservative { "conservative" } else { "normal" };
        let indicators = BTreeMap::from([
            ("policy".to_owned(), self.policy_version.clone()),
            ("policy_arch".to_owned(), crate::weights::ARCHITECTURE.to_owned()),
            ("mode".to_owned(), mode.to_owned()),
            ("step_index".to_owned(), context.epoch.to_string()),
            ("priority".to_owned(), self.priority.as_str_name().to_owned()),
        ]);
        TelemetryPacket {
            packet_id: format!("tamiyo-{}", context.command_id),
            timestamp: Some(leyline::time::timestamp(context.now_unix_ms)),
            source_subsystem: "tamiyo".to_owned(),
            level: level.max(TelemetryLevel::Info.into()),
            metrics: self.points.iter().cloned().chain(more).collect(),
            events: self.events.clone(),
            spans: Vec::new(),
            system_health: Some(SystemHealth {
                status: self.health.0.into(),
                summary: self.health.1.clone(),
                indicators,
            }),
        }
    }
}

/// Priority by the published rule: CRITICAL for a critical event, HIGH for a warning of those that
/// must not wait, else NORMAL.
pub(crate) fn priority(events: &[(Reason, TelemetryLevel)]) -> MessagePriority {
    let urgent = |reason: Reason| {
        matches!(
            reason,
            Reason::TimeoutInference
                | Reason::TimeoutUrza
                | Reason::StepLatencyHigh
                | Reason::LossSpike
                | Reason::IsolationViolations
                | Reason::HookBudget
                | Reason::PolicyRiskCritical
                | Reason::BlueprintQuarantine
                | Reason::DevicePressureHigh
                | Reason::CpuPressureHigh
        )
    };
    if events.iter().any(|(_, level)| *level == TelemetryLevel::Critical) {
        MessagePriority::Critical
    } else if events.iter().any(|(name, level)| *level >= TelemetryLevel::Warning && urgent(*name))
    {
        MessagePriority::High
    } else {
        MessagePriority::Normal
    }
}

/// Health by the published rule.
pub(crate) fn health(
    action: Action,
    reason: Reason,
    events: &[(Reason, TelemetryLevel)],
) -> (HealthStatus, String) {
    let worst = events.iter().map(|(_, level)| *level).max();
    let status = match worst {
        Some(TelemetryLevel::Critical) => HealthStatus::Critical,
        _ if action == Action::Pause => HealthStatus::Degraded,
        Some(TelemetryLevel::Warning | TelemetryLevel::Error) => HealthStatus::Degraded,
        _ => HealthStatus::Healthy,
    };
    let summary = match events.last() {
        _ if action == Action::Pause => reason.name(),
        Some((name, level)) if *level > TelemetryLevel::Info => name.name(),
        _ => "stable",
    };
    (status, summary.to_owned())
}
