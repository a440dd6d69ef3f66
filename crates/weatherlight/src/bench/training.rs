//! One training step of the demo's host, with and without a seed.

use std::time::Instant;

use kernel::optimiser::{Adam, Optimiser, OptimiserError};
use kernel::{
    Graph, GraphError, NodeId, ParamStore, Plan, RunError, StoreError, differentiate_trainable,
};

use super::{Figure, median};

const BATCH: usize = 64;
const WIDTH: usize = 32;
const SEED_WIDTH: usize = 64;
const WARM_UP_STEPS: usize = 200;
const STEPS: usize = 2000;
const GROUP: &str = "all";

/// Why a step could not be measured. The graph is fixed, so this is a fault of the engine.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Building the graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Running it.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Keeping its parameters.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Moving them.
    #[error(transparent)]
    Optimiser(#[from] OptimiserError),
}

pub(super) fn measure() -> Result<Vec<Figure>, StepError> {
    let without = step_us(&host(None)?)?;
    let with = step_us(&host(Some(SEED_WIDTH))?)?;
    Ok(vec![
        Figure::new("training_step_without_seed", "us", without, without, 100.0),
        Figure::new("training_step_with_seed", "us", with, without, 300.0),
    ])
}

/// Two inputs, an embedding of width 32, a slot, two classes; in the slot a residual block of two
/// layers where there is a seed.
fn host(seed: Option<usize>) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let x = graph.input("x", &[BATCH, 2])?;
    let labels = graph.input("labels", &[BATCH])?;
    let embedded = graph.linear_layer(x, "embed", WIDTH)?;
    let slot = match seed {
        Some(width) => residual(&mut graph, embedded, width)?,
        None => embedded,
    };
    let logits = graph.linear_layer(slot, "head", 2)?;
    let loss = graph.cross_entropy(logits, labels)?;
    graph.output("loss", loss)?;
    differentiate_trainable(&graph, "loss")
}

fn residual(graph: &mut Graph, x: NodeId, width: usize) -> Result<NodeId, GraphError> {
    let inner = graph.linear_layer(x, "seed.in", width)?;
    let inner = graph.relu(inner)?;
    let outer = graph.linear_layer(inner, "seed.out", WIDTH)?;
    graph.add(x, outer)
}

fn step_us(graph: &Graph) -> Result<f64, StepError> {
    let mut plan = Plan::compile(graph)?;
    let mut store = ParamStore::with_group(GROUP, &graph.init_params(1))?;
    let mut optimiser = Optimiser::adam(Adam::default());
    optimiser.add_group(GROUP, 1e-3)?;
    let x: Vec<f32> = (0..BATCH * 2).map(|n| ((n * 37 % 64) as f32) / 32.0 - 1.0).collect();
    let labels: Vec<f32> = (0..BATCH).map(|n| (n % 2) as f32).collect();
    let inputs: [(&str, &[f32]); 2] = [("x", &x), ("labels", &labels)];
    let mut spans = Vec::with_capacity(STEPS);
    for step in 0..WARM_UP_STEPS + STEPS {
        let begun = Instant::now();
        let outputs = plan.run(&store, &inputs)?;
        optimiser.step(&mut store, &outputs, 1.0)?;
        if step >= WARM_UP_STEPS {
            spans.push(begun.elapsed());
        }
    }
    Ok(median(spans).as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_steps_are_measured() {
        let figures = measure().unwrap();
        assert_eq!(figures.len(), 2);
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.baseline > 0.0));
    }
}
