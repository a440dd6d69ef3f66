//! Workloads by which the engine is measured: each by plan and by interpreter, or beside PyTorch, in the same run.

mod passes;
mod torch;
mod workload;

use std::time::{Duration, Instant};

use crate::error::{GraphError, RunError};
use crate::gradient::gradient_name;
use crate::interpret;
use crate::optimiser::OptimiserError;
use crate::store::StoreError;
pub use passes::{Passes, passes};
pub use torch::{Beside, Times, beside};
pub use workload::{Prepared, Workload};

/// Medians of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// What was run.
    pub name: &'static str,
    /// Median time of one step by the plan.
    pub plan: Duration,
    /// Median time of one step by the interpreter, the baseline.
    pub interpreter: Duration,
}

/// Why a workload could not be run; never, unless the engine is at fault or PyTorch is not there.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Its graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its parameters.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its optimiser.
    #[error(transparent)]
    Optimiser(#[from] OptimiserError),
    /// The process that runs PyTorch.
    #[error("PyTorch: {0}")]
    Torch(String),
}

/// [`Workload::mlp`] by plan and by interpreter.
///
/// # Errors
/// None, unless the engine is at fault.
pub fn mlp_step(plan_steps: usize, interpreter_steps: usize) -> Result<Comparison, BenchError> {
    compare(&Workload::mlp()?, plan_steps, interpreter_steps)
}

/// [`Workload::convolution`] by plan and by interpreter.
///
/// # Errors
/// None, unless the engine is at fault.
pub fn conv_gradients(
    plan_steps: usize,
    interpreter_steps: usize,
) -> Result<Comparison, BenchError> {
    compare(&Workload::convolution()?, plan_steps, interpreter_steps)
}

/// [`Workload::transformer`] by plan and by interpreter.
///
/// # Errors
/// None, unless the engine is at fault.
pub fn transformer_step(
    plan_steps: usize,
    interpreter_steps: usize,
) -> Result<Comparison, BenchError> {
    compare(&Workload::transformer()?, plan_steps, interpreter_steps)
}

/// Runs a workload by its plan, then by the interpreter, which moves the parameters with the same optimiser.
fn compare(
    workload: &Workload,
    plan_steps: usize,
    interpreter_steps: usize,
) -> Result<Comparison, BenchError> {
    let mut prepared = workload.prepare()?;
    let plan = median(plan_steps, || prepared.step())?;
    let (mut store, mut optimiser) = workload.start()?;
    let (inputs, names) = (workload.inputs(), workload.moved());
    let interpreter = median(interpreter_steps, || {
        let results = interpret::run::<f32>(&workload.graph, &store.params(), &inputs)?;
        let gradients =
            names.iter().map(|name| (*name, results.outputs[&gradient_name(name)].data.as_slice()));
        Ok(optimiser.step_with(&mut store, gradients, 1.0)?)
    })?;
    Ok(Comparison { name: workload.title, plan, interpreter })
}

/// The median time of a step; at least one is run.
fn median(
    steps: usize,
    mut step: impl FnMut() -> Result<(), BenchError>,
) -> Result<Duration, BenchError> {
    let mut times = Vec::with_capacity(steps.max(1));
    for _ in 0..steps.max(1) {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_run() {
        let comparisons = [mlp_step(3, 1), conv_gradients(1, 1), transformer_step(1, 1)];
        for comparison in comparisons.map(Result::unwrap) {
            assert!(!comparison.plan.is_zero() && !comparison.interpreter.is_zero());
        }
    }
}
