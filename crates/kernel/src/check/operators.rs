//! Each operator of a graph alone, on the operands it has there.

use std::collections::{BTreeMap, HashSet};

use super::{OperatorDifference, difference, tolerance};
use crate::error::{GraphError, RunError};
use crate::graph::{Graph, Node};
use crate::interpret::{self, Array, Bindings};
use crate::plan::Plan;
use crate::runner::Fallback;
use crate::store::ParamStore;
use crate::tensor::Params;

const RESULT: &str = "result";

/// Runs one operator of each kind, attributes and operand shapes by a plan of its own and by the interpreter.
pub(super) fn compare(
    graph: &Graph,
    bindings: &Bindings<f64>,
    compile: fn(&Graph) -> Result<Plan, GraphError>,
) -> Result<Result<Vec<OperatorDifference>, Fallback>, RunError> {
    let values = interpret::trace(graph, bindings)?;
    let mut seen = HashSet::new();
    let mut kinds: BTreeMap<&'static str, OperatorDifference> = BTreeMap::new();
    for node in graph.nodes().iter().filter(|node| !node.operands().is_empty()) {
        let shapes: Vec<&[usize]> =
            node.operands().iter().map(|&operand| graph.shape(operand)).collect();
        if !seen.insert(format!("{:?}{shapes:?}", node.op())) {
            continue;
        }
        let operands: Vec<&Array<f64>> =
            node.operands().iter().map(|operand| &values[operand.index()]).collect();
        let found = match alone(node, &operands, compile) {
            Ok(found) => found,
            Err(fault) => return Ok(Err(fault)),
        };
        let limit = tolerance(node.op()).limit;
        let name = node.op().name();
        let kind = kinds.entry(name).or_insert_with(|| OperatorDifference {
            operator: name,
            count: 0,
            difference: 0.0,
            tolerance: limit,
        });
        kind.count += 1;
        kind.difference = kind.difference.max(found);
    }
    Ok(Ok(kinds.into_values().collect()))
}

/// The difference of one operator. Its operands are rounded to single precision first, so that both start from the
/// same numbers.
fn alone(
    node: &Node,
    operands: &[&Array<f64>],
    compile: fn(&Graph) -> Result<Plan, GraphError>,
) -> Result<f32, Fallback> {
    let refused = |error: GraphError| Fallback::NoPlan { error: error.to_string() };
    let failed = |error: RunError| Fallback::Run { error: error.to_string() };
    let mut graph = Graph::new();
    let mut nodes = Vec::with_capacity(operands.len());
    let mut rounded = Vec::with_capacity(operands.len());
    for (position, operand) in operands.iter().enumerate() {
        let name = position.to_string();
        nodes.push(graph.fixed_input(&name, &operand.shape).map_err(refused)?);
        rounded.push((name, operand.data.iter().map(|&value| value as f32).collect::<Vec<_>>()));
    }
    let result = graph.push(node.op().clone(), &nodes).map_err(refused)?;
    graph.output(RESULT, result).map_err(refused)?;
    let inputs: Vec<(&str, &[f32])> =
        rounded.iter().map(|(name, values)| (name.as_str(), values.as_slice())).collect();
    let expected = interpret::run::<f64>(&graph, &Params::new(), &inputs).map_err(failed)?;
    let expected = &expected.outputs[RESULT].data;
    if !expected.iter().all(|value| value.is_finite()) {
        // A value nothing depends on, or one whose infinity a later operator takes back; what matters of it is
        // compared as a value.
        return Ok(0.0);
    }
    let mut plan = compile(&graph).map_err(refused)?;
    let outputs = plan.run(&ParamStore::new(), &inputs).map_err(failed)?;
    Ok(difference(expected, outputs.get(RESULT)))
}
