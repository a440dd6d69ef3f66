//! The plain interpreter: what every operator means, in `f32` or `f64`.
//!
//! The reference for gradients and plans, written to be read: one loop per operator, every value kept, no
//! shared tricks with the plan executor (only the dropout mask, which is a definition).

mod elementwise;
mod layout;
mod product;
mod real;
mod statistics;
mod window;

use std::collections::BTreeMap;

pub use real::Real;

use crate::error::RunError;
use crate::graph::{Graph, Named, Node};
use crate::op::Op;
use crate::stop;
use crate::tensor::Params;

/// A dense row-major array of either precision.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<T> {
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Vec<T>,
}

impl<T: Real> Array<T> {
    /// An array computed element by element from its index.
    fn from_fn(shape: &[usize], mut value: impl FnMut(&[usize]) -> T) -> Self {
        let mut index = vec![0; shape.len()];
        let count = shape.iter().product();
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(value(&index));
            advance(&mut index, shape);
        }
        Self { shape: shape.to_vec(), data }
    }

    fn full(shape: &[usize], value: T) -> Self {
        Self { shape: shape.to_vec(), data: vec![value; shape.iter().product()] }
    }

    /// Position of an index in `data`.
    fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.shape).fold(0, |offset, (&at, &size)| offset * size + at)
    }

    fn at(&self, index: &[usize]) -> T {
        self.data[self.offset(index)]
    }
}

/// The next index in row-major order; wraps around at the end.
fn advance(index: &mut [usize], shape: &[usize]) {
    for (at, &size) in index.iter_mut().zip(shape).rev() {
        *at += 1;
        if *at < size {
            return;
        }
        *at = 0;
    }
}

/// Values for a run in the precision of the run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bindings<T> {
    /// Parameters by name, row-major.
    pub parameters: BTreeMap<String, Vec<T>>,
    /// Inputs by name, row-major.
    pub inputs: BTreeMap<String, Vec<T>>,
}

impl<T: Real> Bindings<T> {
    /// Parameters and inputs given in `f32`.
    pub fn new(params: &Params, inputs: &[(&str, &[f32])]) -> Self {
        let convert = |data: &[f32]| data.iter().map(|&value| T::from_f32(value)).collect();
        Self {
            parameters: params
                .iter()
                .map(|(name, tensor)| (name.to_owned(), convert(tensor.data())))
                .collect(),
            inputs: inputs.iter().map(|&(name, data)| (name.to_owned(), convert(data))).collect(),
        }
    }
}

/// What a run gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Results<T> {
    /// The graph's outputs by name.
    pub outputs: BTreeMap<String, Array<T>>,
    /// New values of the parameters the graph updates, by parameter.
    pub updates: BTreeMap<String, Array<T>>,
}

/// Runs a graph on parameters and inputs given in `f32`.
///
/// # Errors
/// As [`run_bound`]; also [`RunError::Unknown`] for an input the graph does not have.
pub fn run<T: Real>(
    graph: &Graph,
    params: &Params,
    inputs: &[(&str, &[f32])],
) -> Result<Results<T>, RunError> {
    if let Some((name, _)) = inputs.iter().find(|(name, _)| graph.input_node(name).is_none()) {
        return Err(RunError::Unknown { name: (*name).to_owned() });
    }
    run_bound(graph, &Bindings::new(params, inputs))
}

/// Runs a graph on values in the precision of the run.
///
/// # Errors
/// [`RunError::Missing`] or [`RunError::Size`] when the bindings do not fit, [`RunError::Index`] for a label or
/// table index out of range.
pub fn run_bound<T: Real>(graph: &Graph, bindings: &Bindings<T>) -> Result<Results<T>, RunError> {
    let values = trace(graph, bindings)?;
    let collect = |named: &[Named]| {
        named.iter().map(|item| (item.name.clone(), values[item.node.index()].clone())).collect()
    };
    Ok(Results { outputs: collect(graph.outputs()), updates: collect(graph.updates()) })
}

/// The value of every node, in the order of [`Graph::nodes`].
///
/// # Errors
/// As [`run_bound`].
pub fn trace<T: Real>(graph: &Graph, bindings: &Bindings<T>) -> Result<Vec<Array<T>>, RunError> {
    let mut values: Vec<Array<T>> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        stop::check()?;
        let value = evaluate(node, &values, bindings)?;
        debug_assert_eq!(
            value.shape,
            node.shape(),
            "shape inference and evaluation agree on {}",
            node.op().name()
        );
        values.push(value);
    }
    Ok(values)
}

fn evaluate<T: Real>(
    node: &Node,
    values: &[Array<T>],
    bindings: &Bindings<T>,
) -> Result<Array<T>, RunError> {
    let operand = |position: usize| &values[node.operands()[position].index()];
    let shape = node.shape();
    Ok(match node.op() {
        Op::Input { name, .. } => bound("input", name, shape, &bindings.inputs)?,
        Op::Parameter { name, .. } => bound("parameter", name, shape, &bindings.parameters)?,
        Op::Constant(tensor) => Array {
            shape: shape.to_vec(),
            data: tensor.data().iter().map(|&value| T::from_f32(value)).collect(),
        },
        Op::Unary(function) => elementwise::unary(*function, operand(0)),
        Op::UnaryGradient(function) => {
            elementwise::unary_gradient(*function, operand(0), operand(1))
        }
        Op::Binary(function) => elementwise::binary(*function, operand(0), operand(1), shape),
        Op::MatMul { transpose_a, transpose_b } => {
            product::mat_mul(operand(0), *transpose_a, operand(1), *transpose_b, shape)
        }
        Op::Conv2d(conv) => product::conv2d(conv, operand(0), operand(1), shape),
        Op::Conv2dInputGradient(conv) => {
            product::conv2d_input_gradient(conv, operand(0), operand(1), shape)
        }
        Op::Conv2dWeightGradient(conv) => {
            product::conv2d_weight_gradient(conv, operand(0), operand(1), shape)
        }
        Op::MaxPool(pool) => window::max_pool_pick(pool, operand(0), operand(0), shape),
        Op::MaxPoolPick(pool) => window::max_pool_pick(pool, operand(0), operand(1), shape),
        Op::MaxPoolGradient(pool) => window::max_pool_gradient(pool, operand(0), operand(1)),
        Op::AvgPool(pool) => window::avg_pool(pool, operand(0), shape),
        Op::AvgPoolGradient(pool) => window::avg_pool_gradient(pool, operand(0), shape),
        Op::Softmax => statistics::softmax(operand(0)),
        Op::LogSoftmax => statistics::log_softmax(operand(0)),
        Op::Normalise(attributes) => statistics::normalise(attributes, operand(0)),
        Op::NormaliseGradient(attributes) => {
            statistics::normalise_gradient(attributes, operand(0), operand(1))
        }
        Op::Dropout { rate, stream } => {
            elementwise::dropout(*rate, *stream, operand(0), operand(1))
        }
        Op::Phase | Op::StopGradient => operand(0).clone(),
        Op::Stress(stress) => return Err(RunError::Quarantined { operator: stress.name() }),
        Op::Gather => layout::gather(operand(0), operand(1), shape)?,
        Op::ScatterAdd => layout::scatter_add(operand(0), operand(1), shape)?,
        Op::Reshape(_) | Op::ReshapeLike => {
            Array { shape: shape.to_vec(), data: operand(0).data.clone() }
        }
        Op::Permute(order) => layout::permute(order, operand(0), shape),
        Op::Concat { axis } => {
            let parts: Vec<&Array<T>> = (0..node.operands().len()).map(operand).collect();
            layout::concat(*axis, &parts, shape)
        }
        Op::Slice { axis, start, .. } => layout::slice(*axis, *start, operand(0), shape),
        Op::PadLike { axis, start } => layout::pad(*axis, *start, operand(0), shape),
        Op::Reduce { kind, .. } | Op::ReduceLike(kind) => {
            statistics::reduce(*kind, operand(0), shape)
        }
        Op::BroadcastLike(kind) => statistics::broadcast(*kind, operand(0), shape),
        Op::CrossEntropy => statistics::cross_entropy(operand(0), operand(1))?,
        Op::CrossEntropyGradient => {
            statistics::cross_entropy_gradient(operand(0), operand(1), operand(2))?
        }
    })
}

fn bound<T: Real>(
    kind: &'static str,
    name: &str,
    shape: &[usize],
    values: &BTreeMap<String, Vec<T>>,
) -> Result<Array<T>, RunError> {
    let Some(data) = values.get(name) else {
        return Err(RunError::Missing { kind, name: name.to_owned(), shape: shape.to_vec() });
    };
    if data.len() != shape.iter().product::<usize>() {
        return Err(RunError::Size {
            kind,
            name: name.to_owned(),
            expected: shape.to_vec(),
            found: data.len(),
        });
    }
    Ok(Array { shape: shape.to_vec(), data: data.clone() })
}

/// A whole number below `limit` out of a floating-point operand.
fn whole<T: Real>(operator: &'static str, value: T, limit: usize) -> Result<usize, RunError> {
    let found = value.to_f64();
    if found >= 0.0 && found < limit as f64 && found.fract() == 0.0 {
        return Ok(found as usize);
    }
    Err(RunError::Index { operator, found: found.to_string(), limit })
}
