//! Settings of the seed manager.

use std::collections::BTreeMap;
use std::time::Duration;

use leyline::ids::BlueprintId;

use crate::blend::{BlendMode, Ramp};
use crate::breaker::BreakerConfig;
use crate::gates::Limits;

/// Settings of one seed manager. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What the gates demand.
    pub limits: Limits,
    /// Alpha over the steps of BLENDING: 20 steps, temperature 2.
    pub ramp: Ramp,
    /// How a seed blends when its command does not say: CONVEX.
    pub blend: BlendMode,
    /// 30 s: how long a slot is held after a gate failed.
    pub embargo: Duration,
    /// 180 s: a seed whose kernel has not come by then is given up, whatever the coordinator does.
    pub fetch_deadline: Duration,
    /// For fetching kernels.
    pub kernel_breaker: BreakerConfig,
    /// For gradient isolation.
    pub isolation_breaker: BreakerConfig,
    /// Blueprints that no command may germinate, with the stable name of the reason: those that need an approval
    /// nobody gave, and those that run in quarantine only. Empty: whoever wires this has no catalogue.
    pub withheld: BTreeMap<BlueprintId, &'static str>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            ramp: Ramp::default(),
            blend: BlendMode::default(),
            embargo: Duration::from_secs(30),
            fetch_deadline: Duration::from_secs(180),
            kernel_breaker: BreakerConfig::KERNEL,
            isolation_breaker: BreakerConfig::ISOLATION,
            withheld: BTreeMap::new(),
        }
    }
}
