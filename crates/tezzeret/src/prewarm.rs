//! Latencies of a fresh kernel on this machine.

use std::time::Instant;

use kernel::{Graph, ParamStore, Params, Plan};
use tokio_util::sync::CancellationToken;
use urza::Prewarm;

use crate::error::CompileError;
use crate::job::ENGINE;
use crate::noise;

/// Runs before the first timed one, so that memory and caches are warm.
const WARM_UPS: usize = 3;

/// Times `samples` forward runs of the inference form, one by one.
pub(crate) fn measure(
    graph: &Graph,
    params: &Params,
    samples: usize,
    cancel: &CancellationToken,
) -> Result<Prewarm, CompileError> {
    let graph = graph.inference()?;
    let mut plan = Plan::compile(&graph)?;
    let store = ParamStore::with_group("prewarm", params)?;
    let mut given = Vec::new();
    for (name, shape) in graph.inputs() {
        given.push((name, noise::normal(name, shape.iter().product(), 0)?));
    }
    let inputs: Vec<(&str, &[f32])> =
        given.iter().map(|(name, values)| (*name, values.as_slice())).collect();
    let mut samples_ms = Vec::with_capacity(samples);
    for run in 0..WARM_UPS + samples {
        if cancel.is_cancelled() {
            return Err(CompileError::Cancelled);
        }
        let started = Instant::now();
        plan.run(&store, &inputs)?;
        // A clock too coarse to see a run shows its resolution, not nothing.
        let ms = (started.elapsed().as_secs_f64() * 1e3).max(1e-6);
        if run >= WARM_UPS {
            samples_ms.push(ms);
        }
    }
    Ok(Prewarm::new(machine(), samples_ms))
}

/// What latencies depend on beside the artifact: processor, its cores, the engine.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    let model = model.unwrap_or(std::env::consts::ARCH);
    format!("{model}, {cores} cores, {ENGINE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_a_sample() {
        let block = karn::find(&"BP009".into()).unwrap();
        let site = karn::Site::Vector { features: 8 };
        let graph = karn::build(block, &block.midpoints(), &site).unwrap();
        let never = CancellationToken::new();
        let prewarm = measure(&graph, &graph.init_params(0), 20, &never).unwrap();
        assert_eq!(prewarm.samples_ms.len(), 20);
        assert!(0.0 < prewarm.p50_ms() && prewarm.p50_ms() <= prewarm.p95_ms());
        assert!(prewarm.machine.contains(ENGINE));
        never.cancel();
        let stopped = measure(&graph, &graph.init_params(0), 20, &never);
        assert!(matches!(stopped, Err(CompileError::Cancelled)));
    }
}
