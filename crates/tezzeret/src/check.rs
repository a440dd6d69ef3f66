//! Whether the compiled plan is the graph: both are run on the same numbers, forward and backward.

use kernel::interpret;
use kernel::{
    Cost, Graph, GraphError, ParamStore, Params, Plan, STEP_INPUT, Tensor, differentiate,
};

use crate::error::CompileError;
use crate::noise;

/// Largest difference between a plan in single precision and the interpreter in double, as a share of one plus the
/// largest magnitude of the value compared. Sums of some thousand terms stay well below it; a wrong operand, order
/// or broadcast is far above.
pub const TOLERANCE: f32 = 1e-4;

/// Operations of a forward pass up to which the graph's own batch is checked; the interpreter needs about a second for
/// them and their gradients.
const OPERATIONS_MAX: u64 = 4_000_000;

/// Input that the check adds: what each output element counts in the loss.
const WEIGHTS: &str = "check.weights";
/// Output that the check adds.
const LOSS: &str = "check.loss";
/// The step given to dropout.
const STEP: f32 = 3.0;

/// Compares the plan of a graph with the interpreter: training form with the gradients of everything trainable and of
/// the input, and inference form. Returns the largest difference found, in the measure of [`TOLERANCE`].
///
/// Trainable parameters are moved away from their start first: behind a projection that starts at zero everything
/// would agree. `probe` numbers the inputs and moves, so that each probe looks elsewhere.
///
/// # Errors
/// [`CompileError::Mismatch`] names the value that differs; [`CompileError::NotFinite`] one that is no number.
pub(crate) fn check(graph: &Graph, params: &Params, probe: u64) -> Result<f32, CompileError> {
    let small = within_budget(graph)?;
    let graph = small.as_ref().unwrap_or(graph);
    let moved = moved(graph, params, probe)?;
    let training = compare(&with_gradients(graph)?, &moved, probe)?;
    let inference = compare(&graph.inference()?, &moved, probe)?;
    Ok(training.max(inference))
}

/// The graph for two samples, where the interpreter would be long over the graph's own batch. Two, because batch norm
/// over one sample of one position is zero whatever it computes.
fn within_budget(graph: &Graph) -> Result<Option<Graph>, GraphError> {
    let is_large = Cost::of(graph).operations > OPERATIONS_MAX;
    is_large.then(|| graph.with_batch(2)).transpose()
}

fn moved(graph: &Graph, params: &Params, probe: u64) -> Result<Params, GraphError> {
    let trainable: Vec<&str> = graph.trainable().collect();
    let move_one = |(name, tensor): (&str, &Tensor)| {
        let mut tensor = tensor.clone();
        if trainable.contains(&name) {
            let by = noise::normal(name, tensor.len(), probe)?;
            let step = step_size(tensor.shape());
            tensor.data_mut().iter_mut().zip(by).for_each(|(value, by)| *value += step * by);
        }
        Ok((name.to_owned(), tensor))
    };
    params.iter().map(move_one).collect()
}

/// How far a parameter is moved: a matrix or a convolution by so much that what it adds has about half the size of its
/// input, whatever its width. Larger moves make values explode with depth, and with them their rounding.
fn step_size(shape: &[usize]) -> f32 {
    match shape {
        [_, rest @ ..] if !rest.is_empty() => 0.5 / (rest.iter().product::<usize>() as f32).sqrt(),
        _ => 0.1,
    }
}

/// The graph with the weighted sum of its output as loss, and that loss's gradients.
fn with_gradients(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.clone();
    let output = graph.output_node(karn::OUTPUT)?;
    let shape = graph.shape(output).to_vec();
    let weights = graph.input(WEIGHTS, &shape)?;
    let weighted = graph.mul(output, weights)?;
    let loss = graph.sum_all(weighted)?;
    graph.output(LOSS, loss)?;
    let names: Vec<String> = graph.trainable().map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain([karn::INPUT]).collect();
    differentiate(&graph, LOSS, &names)
}

fn compare(graph: &Graph, params: &Params, probe: u64) -> Result<f32, CompileError> {
    let mut given = Vec::new();
    for (name, shape) in graph.inputs() {
        let values = match name {
            STEP_INPUT => vec![STEP + probe as f32],
            _ => noise::normal(name, shape.iter().product(), probe)?,
        };
        given.push((name, values));
    }
    let inputs: Vec<(&str, &[f32])> =
        given.iter().map(|(name, values)| (*name, values.as_slice())).collect();
    let expected = interpret::run::<f64>(graph, params, &inputs)?;
    let store = ParamStore::with_group("check", params)?;
    let mut plan = Plan::compile(graph)?;
    let outputs = plan.run(&store, &inputs)?;
    let mut worst = 0.0_f32;
    for (name, expected) in &expected.outputs {
        worst = worst.max(difference(name, &expected.data, outputs.get(name))?);
    }
    let updates: Vec<_> = outputs.updates().collect();
    for (name, expected) in &expected.updates {
        let found = updates.iter().find(|(known, _)| known == name).map(|(_, values)| *values);
        worst = worst.max(difference(name, &expected.data, found)?);
    }
    Ok(worst)
}

/// The largest difference between two values of one name, in the measure of [`TOLERANCE`].
fn difference(name: &str, expected: &[f64], found: Option<&[f32]>) -> Result<f32, CompileError> {
    let found = found.filter(|found| found.len() == expected.len());
    let Some(found) = found else {
        return Err(CompileError::Mismatch { value: name.to_owned(), difference: f32::INFINITY });
    };
    let is_finite = expected.iter().all(|value| value.is_finite());
    if !is_finite || !found.iter().all(|value| value.is_finite()) {
        return Err(CompileError::NotFinite { value: name.to_owned() });
    }
    let scale = expected.iter().fold(1.0, |most: f64, value| most.max(1.0 + value.abs()));
    let pairs = expected.iter().zip(found);
    let worst = pairs.fold(0.0, |worst: f64, (a, &b)| worst.max((a - f64::from(b)).abs()));
    let difference = (worst / scale) as f32;
    if difference <= TOLERANCE {
        return Ok(difference);
    }
    Err(CompileError::Mismatch { value: name.to_owned(), difference })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_judged_by_the_size_of_the_value() {
        assert_eq!(difference("x", &[0.0, 100.0], Some(&[0.0, 100.0])).unwrap(), 0.0);
        assert!(difference("x", &[0.0, 100.0], Some(&[0.005, 100.0])).is_ok());
        let wrong = difference("x", &[0.0, 100.0], Some(&[0.02, 100.0]));
        assert!(matches!(wrong, Err(CompileError::Mismatch { .. })));
        assert!(matches!(difference("x", &[1.0], None), Err(CompileError::Mismatch { .. })));
        assert!(matches!(
            difference("x", &[1.0], Some(&[f32::NAN])),
            Err(CompileError::NotFinite { .. })
        ));
    }

    #[test]
    fn every_graftable_template_agrees_with_its_plan() {
        let sites = [
            karn::Site::Vector { features: 32 },
            karn::Site::Image { channels: 4, height: 6, width: 5 },
            karn::Site::Sequence { length: 6, width: 8 },
        ];
        for blueprint in karn::catalogue().iter().filter(|blueprint| blueprint.graftable()) {
            for site in sites {
                let graph = karn::build(blueprint, &blueprint.midpoints(), &site).unwrap();
                let found = check(&graph, &graph.init_params(9), 0);
                let difference =
                    found.unwrap_or_else(|error| panic!("{} {site}: {error}", blueprint.id()));
                println!("{} {site}: {difference:.1e}", blueprint.id());
                assert!(difference <= TOLERANCE / 10.0, "{} {site} {difference}", blueprint.id());
            }
        }
    }

    #[test]
    fn a_wide_deep_block_is_checked_on_numbers_that_do_not_explode() {
        let block = karn::find(&"BP009".into()).unwrap();
        let site = karn::Site::Vector { features: 160 };
        let deepest = [("depth", 4.0)].into_iter().collect();
        let graph = karn::build(block, &deepest, &site).unwrap();
        assert!(within_budget(&graph).unwrap().is_some(), "two samples are enough for it");
        assert!(check(&graph, &graph.init_params(1), 0).unwrap() <= TOLERANCE / 10.0);
    }

    #[test]
    fn behind_a_zero_projection_the_check_still_sees() {
        let block = karn::find(&"BP009".into()).unwrap();
        let site = karn::Site::Vector { features: 6 };
        let graph = karn::build(block, &block.midpoints(), &site).unwrap();
        let params = graph.init_params(1);
        let moved = moved(&graph, &params, 0).unwrap();
        let projection = moved.get("layer0.project.weight").unwrap();
        assert!(projection.data().iter().all(|&value| value != 0.0));
        assert!(check(&graph, &params, 0).unwrap() <= TOLERANCE);
    }
}
