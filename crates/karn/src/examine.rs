//! A blueprint put to the test on a site: it must run, forward and backward, on finite numbers, and everything
//! trainable must matter.

use kernel::{
    Cost, Graph, GraphError, Init, Params, RunError, STEP_INPUT, differentiate, gradient_name,
    interpret, probe_inputs,
};

use crate::blueprint::Blueprint;
use crate::build::{BuildError, INPUT, OUTPUT, build};
use crate::parameters::Parameters;
use crate::site::Site;

/// Samples it is run on: two, as samples may see each other while training.
const SAMPLES: usize = 2;
/// Most operations of a run: the interpreter, which is plain, needs seconds for them.
const OPERATIONS_MAX: u64 = 50_000_000;
/// How far everything trainable is moved from its start, behind which a zero projection would hide it.
const MOVE: f32 = 0.3;
/// Seed of the starting weights.
const SEED: u64 = 1;
/// Inputs and outputs added to the graph.
const WEIGHTS: &str = "examine.weights";
const LOSS: &str = "examine.loss";

/// What an examination found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Examination {
    /// Numbers in all parameters, trainable or not.
    pub parameters: usize,
    /// Operations of a forward pass over [`crate::BATCH`] samples.
    pub operations: u64,
    /// Whether a fresh kernel gives its input back bit for bit, after training's noise is off.
    pub identity: bool,
}

/// Why a blueprint failed.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// It cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Its graph cannot be rewritten.
    #[error("the graph has no gradient: {0}")]
    Graph(#[from] GraphError),
    /// Its graph cannot be run.
    #[error("the graph cannot be run: {0}")]
    Run(#[from] RunError),
    /// A run would take too long.
    #[error(
        "a run over {SAMPLES} samples takes {found} operations; at most {OPERATIONS_MAX} may be"
    )]
    TooCostly {
        /// Operations.
        found: u64,
    },
    /// A value is infinite or no number.
    #[error("{value:?} is not finite on ordinary numbers")]
    NotFinite {
        /// The output or gradient.
        value: String,
    },
    /// A parameter does nothing.
    #[error("weight {parameter:?} has no effect on the output; remove it or use it")]
    NoEffect {
        /// Its name.
        parameter: String,
    },
}

/// Examines a blueprint on a site.
///
/// # Errors
/// [`ExamineError`] names the first thing that fails.
pub fn examine(
    blueprint: &Blueprint,
    parameters: &Parameters,
    site: &Site,
) -> Result<Examination, ExamineError> {
    let graph = build(blueprint, parameters, site)?;
    let Cost { operations, .. } = Cost::of(&graph);
    let few = graph.with_batch(SAMPLES)?;
    let found = Cost::of(&few).operations;
    if found > OPERATIONS_MAX {
        return Err(ExamineError::TooCostly { found });
    }
    let params = few.init_params(SEED);
    let identity = is_identity(&few.inference()?, &params)?;
    run_backward(&few, &params)?;
    Ok(Examination { parameters: graph.parameter_count(), operations, identity })
}

fn is_identity(graph: &Graph, params: &Params) -> Result<bool, ExamineError> {
    let inputs = probe_inputs(graph);
    let given: Vec<(&str, &[f32])> =
        inputs.iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect();
    let results = interpret::run::<f64>(graph, params, &given)?;
    let output = &results.outputs[OUTPUT].data;
    if !output.iter().all(|value| value.is_finite()) {
        return Err(ExamineError::NotFinite { value: OUTPUT.to_owned() });
    }
    let Some(input) = inputs.get(INPUT) else { return Ok(false) };
    Ok(output.iter().zip(input).all(|(out, &given)| out.to_bits() == f64::from(given).to_bits()))
}

fn run_backward(graph: &Graph, params: &Params) -> Result<(), ExamineError> {
    let trainable: Vec<String> = graph.trainable().map(str::to_owned).collect();
    let mut graph = graph.clone();
    let output = graph.output_node(OUTPUT)?;
    let shape = graph.shape(output).to_vec();
    let weights = graph.input(WEIGHTS, &shape)?;
    let product = graph.mul(output, weights)?;
    let loss = graph.sum_all(product)?;
    graph.output(LOSS, loss)?;
    let names: Vec<&str> = trainable.iter().map(String::as_str).chain([INPUT]).collect();
    let graph = differentiate(&graph, LOSS, &names)?;

    let moves = moves(&graph, &trainable)?;
    let moved: Params = params
        .iter()
        .map(|(name, tensor)| {
            let mut tensor = tensor.clone();
            if let Some(by) = moves.get(name) {
                let pairs = tensor.data_mut().iter_mut().zip(by.data());
                pairs.for_each(|(value, by)| *value += MOVE * by);
            }
            (name.to_owned(), tensor)
        })
        .collect();
    let mut inputs = probe_inputs(&graph);
    inputs.entry(STEP_INPUT.to_owned()).and_modify(|step| step.fill(3.0));
    let given: Vec<(&str, &[f32])> =
        inputs.iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect();
    let results = interpret::run::<f64>(&graph, &moved, &given)?;
    for (name, value) in &results.outputs {
        if !value.data.iter().all(|value| value.is_finite()) {
            return Err(ExamineError::NotFinite { value: name.clone() });
        }
    }
    for parameter in trainable {
        let gradient = &results.outputs[&gradient_name(&parameter)].data;
        if gradient.iter().all(|&value| value == 0.0) {
            return Err(ExamineError::NoEffect { parameter });
        }
    }
    Ok(())
}

/// By how much each trainable parameter is moved, before [`MOVE`].
fn moves(graph: &Graph, trainable: &[String]) -> Result<Params, GraphError> {
    let mut noise = Graph::new();
    for (name, shape) in
        graph.parameters().filter(|(name, _)| trainable.iter().any(|one| one == name))
    {
        noise.parameter(name, shape, Init::Normal { mean: 0.0, deviation: 1.0 })?;
    }
    Ok(noise.init_params(SEED + 1))
}
