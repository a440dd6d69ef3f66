//! Latencies of a kernel on this machine.

use std::time::Instant;

use kernel::{Execution, Graph, ParamStore, Params, Runner};
use tokio_util::sync::CancellationToken;
use urza::Prewarm;

use crate::error::CompileError;
use crate::job::ENGINE;
use crate::noise;

/// Runs before the first timed one, so that memory and caches are warm.
const WARM_UPS: usize = 3;

/// Times up to `samples` forward runs of the inference form, one by one, for as long as it `goes_on`; at least one.
pub(crate) fn measure(
    graph: &Graph,
    params: &Params,
    execution: &Execution,
    samples: usize,
    goes_on: &dyn Fn() -> bool,
    cancel: &CancellationToken,
) -> Result<Prewarm, CompileError> {
    let graph = graph.inference()?;
    let mut runner = Runner::with(&graph, execution);
    let store = ParamStore::with_group("prewarm", params)?;
    let mut given = Vec::new();
    for (name, shape) in graph.inputs() {
        given.push((name, noise::normal(name, shape.iter().product(), 0)?));
    }
    let inputs: Vec<(&str, &[f32])> =
        given.iter().map(|(name, values)| (*name, values.as_slice())).collect();
    let mut samples_ms = Vec::with_capacity(samples);
    let mut warm_ups = 0;
    while samples_ms.len() < samples && (goes_on() || samples_ms.is_empty()) {
        if cancel.is_cancelled() {
            return Err(CompileError::Cancelled);
        }
        let started = Instant::now();
        runner.run(&store, &inputs)?;
        // A clock too coarse to see a run shows its resolution, not nothing.
        let ms = (started.elapsed().as_secs_f64() * 1e3).max(1e-6);
        if warm_ups < WARM_UPS && goes_on() {
            warm_ups += 1;
        } else {
            samples_ms.push(ms);
        }
    }
    Ok(Prewarm::new(machine(), samples_ms))
}

/// What latencies depend on beside the artifact, in one line: processor, its cores, the engine. Kernels whose latencies
/// carry another one were timed elsewhere.
pub fn machine() -> String {
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
        let (params, never) = (graph.init_params(0), CancellationToken::new());
        let run = |goes_on: &dyn Fn() -> bool| {
            measure(&graph, &params, &Execution::Plan, 20, goes_on, &never)
        };
        let prewarm = run(&|| true).unwrap();
        assert_eq!(prewarm.samples_ms.len(), 20);
        assert!(0.0 < prewarm.p50_ms() && prewarm.p50_ms() <= prewarm.p95_ms());
        assert!(prewarm.machine.contains(ENGINE));
        assert_eq!(run(&|| false).unwrap().samples_ms.len(), 1, "one, where there is no time");
        never.cancel();
        assert!(matches!(run(&|| true), Err(CompileError::Cancelled)));
    }
}
