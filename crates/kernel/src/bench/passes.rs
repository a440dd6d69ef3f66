//! Any graph's forward and backward pass, by plan and by interpreter.

use std::time::Duration;

use super::{BenchError, median};
use crate::gradient::differentiate;
use crate::graph::{Graph, STEP_INPUT};
use crate::init::Init;
use crate::interpret;
use crate::plan::Plan;
use crate::store::ParamStore;
use crate::tensor::Params;

/// How long a graph's forward and backward pass takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passes {
    /// Median time by the plan.
    pub plan: Duration,
    /// Median time by the interpreter in single precision.
    pub interpreter: Duration,
    /// Loops of the plan.
    pub steps: usize,
    /// Nodes of the graph with its gradients.
    pub nodes: usize,
}

/// Times a graph by plan and by interpreter: `output` weighted and summed, with the gradients of everything trainable
/// and of `input`.
///
/// # Errors
/// [`BenchError`] when the graph has no such output or input, or cannot be run.
pub fn passes(
    graph: &Graph,
    params: &Params,
    (input, output): (&str, &str),
    plan_steps: usize,
    interpreter_steps: usize,
) -> Result<Passes, BenchError> {
    let mut graph = graph.clone();
    let result = graph.output_node(output)?;
    let shape = graph.shape(result).to_vec();
    let weights = graph.fixed_input("bench.weights", &shape)?;
    let weighted = graph.mul(result, weights)?;
    let loss = graph.sum_all(weighted)?;
    graph.output("bench.loss", loss)?;
    let names: Vec<String> = graph.trainable().map(str::to_owned).collect();
    let wrt: Vec<&str> = names.iter().map(String::as_str).chain([input]).collect();
    let graph = differentiate(&graph, "bench.loss", &wrt)?;
    let given: Vec<(&str, Vec<f32>)> = graph
        .inputs()
        .map(|(name, shape)| match name {
            STEP_INPUT => (name, vec![1.0]),
            _ => (name, values(name, shape.iter().product())),
        })
        .collect();
    let inputs: Vec<(&str, &[f32])> =
        given.iter().map(|(name, values)| (*name, values.as_slice())).collect();
    let store = ParamStore::with_group("all", params)?;
    let mut plan = Plan::compile(&graph)?;
    let planned = median(plan_steps, || Ok(plan.run(&store, &inputs).map(|_| ())?))?;
    let interpreted = median(interpreter_steps, || {
        Ok(interpret::run::<f32>(&graph, params, &inputs).map(|_| ())?)
    })?;
    Ok(Passes {
        plan: planned,
        interpreter: interpreted,
        steps: plan.step_count(),
        nodes: graph.nodes().len(),
    })
}

fn values(name: &str, len: usize) -> Vec<f32> {
    Init::Uniform { low: -1.0, high: 1.0 }.values(name, &[len], 1)
}
