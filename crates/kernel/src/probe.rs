//! The probe: fixed inputs and the digest of what the interpreter makes of them. The same on every machine, so a
//! kernel can be recomputed and compared anywhere.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::error::RunError;
use crate::graph::{Graph, NodeId};
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
        let is_index = graph.input_node(name).is_some_and(|input| is_index(graph, input));
        match (is_index, shape) {
            (true, _) => vec![0.0; shape.iter().product()],
            (false, []) => vec![1.0],
            (false, _) => rule.values(name, shape, SEED),
        }
    };
    graph.inputs().map(|(name, shape)| (name.to_owned(), value(name, shape))).collect()
}

/// Whether an operator takes this input for row or class numbers.
fn is_index(graph: &Graph, input: NodeId) -> bool {
    graph.nodes().iter().any(|node| {
        let position = match node.op() {
            Op::Gather | Op::CrossEntropy | Op::CrossEntropyGradient => 1,
            Op::ScatterAdd => 0,
            _ => return false,
        };
        node.operands()[position] == input
    })
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
