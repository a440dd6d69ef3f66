//! Workloads by which the engine is measured, each by plan and by interpreter in the same run.

use std::time::{Duration, Instant};

use crate::error::{GraphError, RunError};
use crate::gradient::{differentiate, differentiate_trainable, gradient_name};
use crate::graph::Graph;
use crate::init::Init;
use crate::interpret;
use crate::op::Conv;
use crate::optimiser::{Adam, Optimiser, OptimiserError};
use crate::plan::Plan;
use crate::store::{ParamStore, StoreError};

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

/// Why a workload could not be run; never, unless the engine is at fault.
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
}

/// A training step of a perceptron 64-128-10 with ReLU at batch 64: loss, all gradients, Adam.
///
/// # Errors
/// None, unless the engine is at fault.
pub fn mlp_step(plan_steps: usize, interpreter_steps: usize) -> Result<Comparison, BenchError> {
    let mut graph = Graph::new();
    let x = graph.input("x", &[64, 64])?;
    let hidden = graph.linear_layer(x, "hidden", 128)?;
    let hidden = graph.relu(hidden)?;
    let logits = graph.linear_layer(hidden, "head", 10)?;
    let labels = graph.input("labels", &[64])?;
    let loss = graph.cross_entropy(logits, labels)?;
    graph.output("loss", loss)?;
    let graph = differentiate_trainable(&graph, "loss")?;

    let x = values("x", 64 * 64);
    let labels: Vec<f32> = (0..64).map(|index| (index % 10) as f32).collect();
    let inputs: [(&str, &[f32]); 2] = [("x", &x), ("labels", &labels)];
    let start = || -> Result<(ParamStore, Optimiser), BenchError> {
        let mut optimiser = Optimiser::adam(Adam::default());
        optimiser.add_group("all", 1e-3)?;
        Ok((ParamStore::with_group("all", &graph.init_params(1))?, optimiser))
    };

    let mut plan = Plan::compile(&graph)?;
    let (mut store, mut optimiser) = start()?;
    let planned = median(plan_steps, || {
        let outputs = plan.run(&store, &inputs)?;
        Ok(optimiser.step(&mut store, &outputs, 1.0)?)
    })?;
    let (mut store, mut optimiser) = start()?;
    let interpreted = median(interpreter_steps, || {
        let results = interpret::run::<f32>(&graph, &store.params(), &inputs)?;
        let names: Vec<&str> = graph.trainable().collect();
        let gradients =
            names.iter().map(|name| (*name, results.outputs[&gradient_name(name)].data.as_slice()));
        Ok(optimiser.step_with(&mut store, gradients, 1.0)?)
    })?;
    Ok(Comparison {
        name: "mlp 64-128-10, batch 64, training step",
        plan: planned,
        interpreter: interpreted,
    })
}

/// A 3x3 convolution of 16 channels over 16x16 at batch 32 with the gradients of input, weight and bias.
///
/// # Errors
/// None, unless the engine is at fault.
pub fn conv_gradients(
    plan_steps: usize,
    interpreter_steps: usize,
) -> Result<Comparison, BenchError> {
    let mut graph = Graph::new();
    let x = graph.input("x", &[32, 16, 16, 16])?;
    let y = graph.conv2d_layer(x, "conv", 16, 3, Conv { padding: [1, 1], ..Conv::default() })?;
    let squares = graph.square(y)?;
    let loss = graph.mean_all(squares)?;
    graph.output("loss", loss)?;
    let graph = differentiate(&graph, "loss", &["x", "conv.weight", "conv.bias"])?;

    let x = values("x", 32 * 16 * 16 * 16);
    let inputs: [(&str, &[f32]); 1] = [("x", &x)];
    let params = graph.init_params(1);
    let store = ParamStore::with_group("all", &params)?;
    let mut plan = Plan::compile(&graph)?;
    let planned = median(plan_steps, || Ok(plan.run(&store, &inputs).map(|_| ())?))?;
    let interpreted = median(interpreter_steps, || {
        Ok(interpret::run::<f32>(&graph, &params, &inputs).map(|_| ())?)
    })?;
    Ok(Comparison {
        name: "convolution 3x3, 16 channels, 16x16, batch 32, all gradients",
        plan: planned,
        interpreter: interpreted,
    })
}

fn values(name: &str, len: usize) -> Vec<f32> {
    Init::Uniform { low: -1.0, high: 1.0 }.values(name, &[len], 1)
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
        for comparison in [mlp_step(3, 1).unwrap(), conv_gradients(1, 1).unwrap()] {
            assert!(comparison.plan < comparison.interpreter, "{comparison:?}");
        }
    }
}
