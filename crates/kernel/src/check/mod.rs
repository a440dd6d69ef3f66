//! Whether a graph's plan is the graph: both are run on the same numbers, forward and backward.
//!
//! Two questions are asked. Each *value* (output, gradient, update) of the whole plan is compared with the
//! interpreter's in double precision; that is what counts for whoever uses the plan. And each *operator* the plan has
//! is run alone on the operands it has in the graph, against a tolerance of its own ([`tolerance`]); that is far
//! sharper and says where a fault lies.

mod operators;
mod tolerance;

pub use tolerance::{Tolerance, tolerance};

use crate::cost::Cost;
use crate::error::{GraphError, RunError};
use crate::gradient::differentiate;
use crate::graph::{Graph, STEP_INPUT};
use crate::init::Init;
use crate::interpret::{self, Bindings};
use crate::plan::Plan;
use crate::probe::index_limit;
use crate::runner::{Execution, Fallback};
use crate::store::{ParamStore, StoreError};
use crate::tensor::{Params, Tensor};

/// Largest difference between a plan in single precision and the interpreter in double, as a share of one plus the
/// largest magnitude of the value compared. Sums of some thousand terms through some ten layers stay well below it; a
/// wrong operand, order or broadcast is far above.
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

/// What is to be checked.
#[derive(Debug, Clone, Copy)]
pub struct Check<'a> {
    /// A graph in training form.
    pub graph: &'a Graph,
    /// Its parameters.
    pub params: &'a Params,
    /// The output whose weighted sum is the loss.
    pub output: &'a str,
    /// The input whose gradient is compared beside those of everything trainable.
    pub input: &'a str,
    /// Numbers the random inputs, so that each probe looks elsewhere.
    pub probe: u64,
    /// How plans are made: [`Plan::compile`], or something worse to see what happens.
    pub compile: fn(&Graph) -> Result<Plan, GraphError>,
}

/// Which form of the graph a value was compared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// With dropout, batch statistics, gradients and updates.
    Training,
    /// See [`Graph::inference`].
    Inference,
}

/// How far one value of the plan is from the interpreter's.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueDifference {
    /// In which form of the graph.
    pub form: Form,
    /// Output, gradient or updated parameter.
    pub value: String,
    /// In the measure of [`TOLERANCE`]; infinite where the plan's is missing or not finite.
    pub difference: f32,
}

/// How far the loop of one kind of operator is from the interpreter, at worst.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorDifference {
    /// Operator, in the spelling of the manifest.
    pub operator: &'static str,
    /// How many of them, of different attributes or shapes, were run.
    pub count: usize,
    /// In the measure of [`TOLERANCE`].
    pub difference: f32,
    /// Its tolerance.
    pub tolerance: f32,
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Every value of both forms.
    pub values: Vec<ValueDifference>,
    /// Every kind of operator in the training form with its gradients, in name order.
    pub operators: Vec<OperatorDifference>,
    /// Why the plan is not to be used, if so.
    pub fault: Option<Fallback>,
}

/// Why a graph could not be checked at all: it, not its plan, is at fault.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It has no such output, or cannot be differentiated.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// It cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its parameters clash.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It gives something that is no number on ordinary inputs.
    #[error("{value} is not finite on random inputs; look for an overflow or a division by zero")]
    NotFinite {
        /// Output, gradient or update.
        value: String,
    },
}

impl Report {
    /// The largest difference of any value, in the measure of [`TOLERANCE`].
    pub fn difference(&self) -> f32 {
        self.values.iter().map(|value| value.difference).fold(0.0, f32::max)
    }

    /// What is to run the graph.
    pub fn execution(&self) -> Execution {
        match &self.fault {
            None => Execution::Plan,
            Some(reason) => Execution::Interpreter { reason: reason.clone() },
        }
    }

    fn failed(fault: Fallback) -> Self {
        Self { values: Vec::new(), operators: Vec::new(), fault: Some(fault) }
    }
}

impl<'a> Check<'a> {
    /// A check of what [`Plan::compile`] makes, on the first set of random numbers.
    pub fn new(graph: &'a Graph, params: &'a Params, input: &'a str, output: &'a str) -> Self {
        Self { graph, params, output, input, probe: 0, compile: Plan::compile }
    }

    /// Compares training form with the gradients of everything trainable and of the input, inference form, and each
    /// operator alone.
    ///
    /// Trainable parameters are moved away from their start first: behind a projection that starts at zero everything
    /// would agree.
    ///
    /// # Errors
    /// [`CheckError`] when the graph itself is at fault. A plan that is wrong is no error: see [`Report::fault`].
    pub fn run(&self) -> Result<Report, CheckError> {
        let small = within_budget(self.graph)?;
        let graph = small.as_ref().unwrap_or(self.graph);
        let moved = self.moved(graph);
        let training = self.with_gradients(graph)?;
        let mut report = Report { values: Vec::new(), operators: Vec::new(), fault: None };
        for (form, graph) in [(Form::Training, &training), (Form::Inference, &graph.inference()?)] {
            match self.compare(form, graph, &moved)? {
                Ok(values) => report.values.extend(values),
                Err(fault) => return Ok(Report::failed(fault)),
            }
        }
        report.fault = report.values.iter().find_map(value_fault);
        let bindings = Bindings::<f64>::new(&moved, &self.inputs(&training).borrowed());
        report.operators = match operators::compare(&training, &bindings, self.compile)? {
            Ok(operators) => operators,
            Err(fault) => return Ok(Report::failed(fault)),
        };
        report.fault = report.fault.or_else(|| report.operators.iter().find_map(operator_fault));
        Ok(report)
    }

    fn moved(&self, graph: &Graph) -> Params {
        let trainable: Vec<&str> = graph.trainable().collect();
        let move_one = |(name, tensor): (&str, &Tensor)| {
            let mut tensor = tensor.clone();
            if trainable.contains(&name) {
                let by = normal(name, tensor.len(), self.probe);
                let step = step_size(tensor.shape());
                tensor.data_mut().iter_mut().zip(by).for_each(|(value, by)| *value += step * by);
            }
            (name.to_owned(), tensor)
        };
        self.params.iter().map(move_one).collect()
    }

    /// The graph with the weighted sum of its output as loss, and that loss's gradients.
    fn with_gradients(&self, graph: &Graph) -> Result<Graph, GraphError> {
        let mut graph = graph.clone();
        let output = graph.output_node(self.output)?;
        let shape = graph.shape(output).to_vec();
        let weights = graph.fixed_input(WEIGHTS, &shape)?;
        let weighted = graph.mul(output, weights)?;
        let loss = graph.sum_all(weighted)?;
        graph.output(LOSS, loss)?;
        let names: Vec<String> = graph.trainable().map(str::to_owned).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).chain([self.input]).collect();
        differentiate(&graph, LOSS, &names)
    }

    fn inputs(&self, graph: &Graph) -> Inputs {
        let value = |name: &str, shape: &[usize]| {
            let len = shape.iter().product();
            let limit = graph.input_node(name).and_then(|input| index_limit(graph, input));
            match limit {
                Some(limit) => (0..len).map(|at| ((at * 5 + 1) % limit) as f32).collect(),
                None if name == STEP_INPUT => vec![STEP + self.probe as f32],
                None => normal(name, len, self.probe),
            }
        };
        Inputs(graph.inputs().map(|(name, shape)| (name.to_owned(), value(name, shape))).collect())
    }

    fn compare(
        &self,
        form: Form,
        graph: &Graph,
        params: &Params,
    ) -> Result<Result<Vec<ValueDifference>, Fallback>, CheckError> {
        let inputs = self.inputs(graph);
        let inputs = inputs.borrowed();
        let expected = interpret::run::<f64>(graph, params, &inputs)?;
        let all = || expected.outputs.iter().chain(&expected.updates);
        if let Some((name, _)) = all().find(|(_, value)| !value.data.iter().all(|v| v.is_finite()))
        {
            return Err(CheckError::NotFinite { value: name.clone() });
        }
        let mut plan = match (self.compile)(graph) {
            Ok(plan) => plan,
            Err(error) => return Ok(Err(Fallback::NoPlan { error: error.to_string() })),
        };
        let store = ParamStore::with_group("check", params)?;
        let outputs = match plan.run(&store, &inputs) {
            Ok(outputs) => outputs,
            Err(error) => return Ok(Err(Fallback::Run { error: error.to_string() })),
        };
        let find = |name: &str| {
            let update = || outputs.updates().find(|(known, _)| *known == name);
            outputs.get(name).or_else(|| update().map(|(_, values)| values))
        };
        let differences = all().map(|(name, expected)| ValueDifference {
            form,
            value: name.clone(),
            difference: difference(&expected.data, find(name)),
        });
        Ok(Ok(differences.collect()))
    }
}

struct Inputs(Vec<(String, Vec<f32>)>);

impl Inputs {
    fn borrowed(&self) -> Vec<(&str, &[f32])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect()
    }
}

fn value_fault(value: &ValueDifference) -> Option<Fallback> {
    let &ValueDifference { difference, .. } = value;
    let name = value.value.clone();
    if difference.is_finite() {
        let fault = Fallback::Value { value: name, difference, tolerance: TOLERANCE };
        return (difference > TOLERANCE).then_some(fault);
    }
    Some(Fallback::NotFinite { value: name })
}

fn operator_fault(operator: &OperatorDifference) -> Option<Fallback> {
    let &OperatorDifference { operator: name, difference, tolerance, .. } = operator;
    if !difference.is_finite() {
        return Some(Fallback::NotFinite { value: name.to_owned() });
    }
    let fault = Fallback::Operator { operator: name.to_owned(), difference, tolerance };
    (difference > tolerance).then_some(fault)
}

/// The graph for two samples, where the interpreter would be long over the graph's own batch. Two, because batch norm
/// over one sample of one position is zero whatever it computes.
fn within_budget(graph: &Graph) -> Result<Option<Graph>, GraphError> {
    let is_large = Cost::of(graph).operations > OPERATIONS_MAX;
    is_large.then(|| graph.with_batch(2)).transpose()
}

/// How far a parameter is moved: a matrix or a convolution by so much that what it adds has about half the size of its
/// input, whatever its width. Larger moves make values explode with depth, and with them their rounding.
fn step_size(shape: &[usize]) -> f32 {
    match shape {
        [_, rest @ ..] if !rest.is_empty() => 0.5 / (rest.iter().product::<usize>() as f32).sqrt(),
        _ => 0.1,
    }
}

/// Numbers of a normal distribution of mean 0 and deviation 1; a function of the arguments only.
fn normal(name: &str, len: usize, number: u64) -> Vec<f32> {
    Init::Normal { mean: 0.0, deviation: 1.0 }.values(name, &[len], number)
}

/// The largest difference between two values, in the measure of [`TOLERANCE`]; infinite where the found one is
/// missing, of another size or not finite.
fn difference(expected: &[f64], found: Option<&[f32]>) -> f32 {
    let Some(found) = found.filter(|found| found.len() == expected.len()) else {
        return f32::INFINITY;
    };
    if !found.iter().all(|value| value.is_finite()) {
        return f32::INFINITY;
    }
    let scale = expected.iter().fold(1.0, |most: f64, value| most.max(1.0 + value.abs()));
    let pairs = expected.iter().zip(found);
    let worst = pairs.fold(0.0, |worst: f64, (a, &b)| worst.max((a - f64::from(b)).abs()));
    (worst / scale) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_judged_by_the_size_of_the_value() {
        assert_eq!(difference(&[0.0, 100.0], Some(&[0.0, 100.0])), 0.0);
        assert!(difference(&[0.0, 100.0], Some(&[0.005, 100.0])) <= TOLERANCE);
        assert!(difference(&[0.0, 100.0], Some(&[0.02, 100.0])) > TOLERANCE);
        assert_eq!(difference(&[1.0], None), f32::INFINITY);
        assert_eq!(difference(&[1.0], Some(&[1.0, 1.0])), f32::INFINITY);
        assert_eq!(difference(&[1.0], Some(&[f32::NAN])), f32::INFINITY);
    }
}
