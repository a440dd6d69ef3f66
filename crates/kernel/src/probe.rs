//! The probe: fixed inputs and the digest of what the interpreter makes of them. The same on every machine, so a
//! kernel can be recomputed and compared anywhere.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::error::RunError;
use crate::graph::{Graph, Node, NodeId};
use crate::init::Init;
use crate::interpret;
use crate::op::Op;
use crate::tensor::Params;

/// Seed of the probe's inputs. Part of the artifact format: changing it changes every probe digest.
const SEED: u64 = 0x4573_7065_7221;

/// Fixed inputs for a graph: uniform in [-1, 1), scalars 1, indices 0.
pub fn probe_inputs(graph: &Graph) -> BTreeMap<String, Vec<f32>> {
    let rule = Init::Uniform { low: -1.0, high: 1.0 };
    let value = |name: &str, shape: &[usize]| {
        let is_index =
            graph.input_node(name).is_some_and(|input| index_limit(graph, input).is_some());
        match (is_index, shape) {
            (true, _) => vec![0.0; shape.iter().product()],
            (false, []) => vec![1.0],
            (false, _) => rule.values(name, shape, SEED),
        }
    };
    graph.inputs().map(|(name, shape)| (name.to_owned(), value(name, shape))).collect()
}

/// Below what an input's whole numbers must stay, where an operator takes it for row or class numbers.
pub(crate) fn index_limit(graph: &Graph, input: NodeId) -> Option<usize> {
    let limit = |node: &Node| {
        let operands = node.operands();
        let (position, limit) = match node.op() {
            Op::Gather => (1, graph.shape(operands[0])[0]),
            Op::CrossEntropy | Op::CrossEntropyGradient => (1, *graph.shape(operands[0]).last()?),
            Op::ScatterAdd => (0, graph.shape(operands[2])[0]),
            _ => return None,
        };
        (operands[position] == input).then_some(limit)
    };
    graph.nodes().iter().filter_map(limit).min()
}

/// SHA-256 of the `f32` outputs, little-endian, in the order of their names, that the interpreter gives for the
/// probe inputs.
///
/// # Errors
/// [`RunError`] when the parameters are not those of the graph, or an index is computed and out of range.
pub fn probe_digest(graph: &Graph, params: &Params) -> Result<Digest, RunError> {
    let inputs = probe_inputs(graph);
    let inputs: Vec<(&str, &[f32])> =
        inputs.iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect();
    let results = interpret::run::<f32>(graph, params, &inputs)?;
    let values = results.outputs.values().flat_map(|array| &array.data);
    Ok(Digest::of(values.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()))
}
