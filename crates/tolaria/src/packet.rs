//! What a run tells others: the state packet of an epoch, filled with what was measured and nothing else.

use std::collections::BTreeMap;

use leyline::ids::RunId;
use leyline::time;
use leyline::wire::{
    HardwareContext, HealthStatus, MetricPoint, SeedState, SystemHealth, SystemStatePacket,
    TelemetryLevel, TelemetryPacket,
};

use crate::network::Score;

/// Name under which packets are sent.
const SOURCE: &str = "tolaria";

/// What was measured. Times are those of the epoch before: this one's hook is not over yet.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) run: RunId,
    pub(crate) experiment: String,
    pub(crate) epoch: u32,
    pub(crate) epochs_total: u32,
    pub(crate) step: u64,
    pub(crate) training_loss: f32,
    pub(crate) validation: Score,
    pub(crate) loss_delta: Option<f32>,
    pub(crate) loss_average: f32,
    pub(crate) loss_volatility: f32,
    pub(crate) gradient_norm: f32,
    pub(crate) gradient_norm_average: f32,
    pub(crate) gradient_variance: f32,
    pub(crate) learning_rate: f32,
    pub(crate) samples_per_s: f32,
    pub(crate) step_ms: f32,
    pub(crate) hook_ms: Option<f32>,
    pub(crate) decide_ms: Option<f32>,
    pub(crate) apply_ms: Option<f32>,
    pub(crate) finalize_ms: Option<f32>,
    pub(crate) violations: u32,
    /// Numbers in the host's own parameters, and in all the host sees.
    pub(crate) parameters: [usize; 2],
}

/// The state packet of an epoch.
pub(crate) fn state(figures: &Figures, seeds: Vec<SeedState>) -> SystemStatePacket {
    let entries = [
        ("loss", Some(figures.training_loss)),
        ("training_loss", Some(figures.training_loss)),
        ("validation_loss", Some(figures.validation.loss)),
        ("loss_delta", figures.loss_delta),
        ("loss_ewma", Some(figures.loss_average)),
        ("loss_volatility", Some(figures.loss_volatility)),
        ("gradient_norm", Some(figures.gradient_norm)),
        ("grad_norm_ewma", Some(figures.gradient_norm_average)),
        ("grad_var", Some(figures.gradient_variance)),
        ("optimizer_lr", Some(figures.learning_rate)),
        ("samples_per_s", Some(figures.samples_per_s)),
        ("step_latency_ms", Some(figures.step_ms)),
        ("hook_latency_ms", figures.hook_ms),
        ("tamiyo_latency_ms", figures.decide_ms),
        ("kasmina.apply_ms", figures.apply_ms),
        ("kasmina.finalize_ms", figures.finalize_ms),
        ("kasmina.isolation.violations", Some(figures.violations as f32)),
        ("epochs_total", Some(figures.epochs_total as f32)),
        ("host_parameters", Some(figures.parameters[0] as f32)),
        ("grown_parameters", Some(figures.parameters[1] as f32)),
    ];
    let training_metrics: BTreeMap<String, f32> = entries
        .into_iter()
        .filter_map(|(name, value)| {
            Some((name.to_owned(), value.filter(|value| value.is_finite())?))
        })
        .collect();
    SystemStatePacket {
        version: 1,
        current_epoch: figures.epoch,
        validation_accuracy: figures.validation.accuracy,
        validation_loss: figures.validation.loss,
        timestamp_ns: time::now_unix_ms().saturating_mul(1_000_000),
        hardware_context: Some(HardwareContext {
            device_type: "cpu".to_owned(),
            ..HardwareContext::default()
        }),
        training_metrics,
        seed_states: seeds,
        packet_id: format!("{}-epoch-{}", figures.run, figures.epoch),
        global_step: figures.step,
        training_loss: figures.training_loss,
        source_subsystem: SOURCE.to_owned(),
        training_run_id: figures.run.to_string(),
        experiment_name: figures.experiment.clone(),
    }
}

/// What goes into the telemetry of an epoch beside the score.
#[derive(Debug)]
pub(crate) struct EpochTimes {
    pub(crate) hook_ms: Option<f32>,
    pub(crate) step_ms: f32,
    pub(crate) seeds_active: usize,
}

/// The telemetry packet of an epoch.
pub(crate) fn telemetry(
    run: &RunId,
    epoch: u32,
    score: Option<Score>,
    times: &EpochTimes,
) -> TelemetryPacket {
    let point = |name: &str, value: f64, unit: &str| MetricPoint {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        attributes: BTreeMap::from([("training_run_id".to_owned(), run.to_string())]),
    };
    let mut metrics = vec![
        point("tolaria.training.latency_ms", f64::from(times.step_ms), "ms"),
        point("tolaria.seeds.active", times.seeds_active as f64, "count"),
        point("tolaria.epochs.total", f64::from(epoch), "count"),
    ];
    if let Some(score) = score {
        metrics.push(point("tolaria.training.loss", f64::from(score.loss), "nat"));
        metrics.push(point("tolaria.training.accuracy", f64::from(score.accuracy), "ratio"));
    }
    if let Some(hook) = times.hook_ms {
        metrics.push(point("tolaria.epoch_hook.latency_ms", f64::from(hook), "ms"));
    }
    TelemetryPacket {
        packet_id: format!("{run}-telemetry-{epoch}"),
        timestamp: Some(time::timestamp(time::now_unix_ms())),
        source_subsystem: SOURCE.to_owned(),
        level: TelemetryLevel::Info.into(),
        metrics,
        events: Vec::new(),
        spans: Vec::new(),
        system_health: Some(SystemHealth {
            status: HealthStatus::Healthy.into(),
            summary: "training".to_owned(),
            indicators: BTreeMap::from([("epoch".to_owned(), epoch.to_string())]),
        }),
    }
}
