//! Rewrites that keep every value: operators that do nothing or undo each other go (`simplify`), constants are computed
//! once, equal nodes become one, and what nothing needs is dropped.

mod simplify;

use std::collections::HashMap;

use crate::error::GraphError;
use crate::graph::{Graph, NodeId};
use crate::interpret;
use crate::op::Op;
use crate::tensor::{Params, Tensor};
use simplify::{Rewrite, simplify};

/// Largest tensor that folding may put into the graph, in elements; larger ones cost more to read than to compute.
const FOLD_ELEMENTS_MAX: usize = 4096;

/// The same graph with less to do: neutral and inverse operators removed, constants folded, common subexpressions
/// merged, dead nodes dropped.
///
/// Outputs and updates have the same names and values; the result may still be differentiated, inlined or given
/// another batch. Parameters and inputs on which nothing depends are gone.
///
/// # Errors
/// None in practice; the result is rebuilt through the checks.
pub fn optimise(graph: &Graph) -> Result<Graph, GraphError> {
    let mut merged = Graph::new();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    let mut known: HashMap<(String, Vec<NodeId>), NodeId> = HashMap::new();
    let keeps_zero_sign = simplify::divides(graph);
    for node in &graph.nodes {
        let mut op = node.op.clone();
        let mut operands: Vec<NodeId> =
            node.operands.iter().map(|operand| map[operand.0]).collect();
        let mut same = None;
        // Each rewrite leaves a node less between this one and its sources, so there is an end.
        while let Some(rewrite) = simplify(&merged, &op, &operands, keeps_zero_sign) {
            match rewrite {
                Rewrite::Same(id) => {
                    same = Some(id);
                    break;
                }
                Rewrite::Other(other, of) => (op, operands) = (other, of),
            }
        }
        if let Some(id) = same {
            debug_assert_eq!(merged.shape(id), node.shape, "a rewrite keeps the shape");
            map.push(id);
            continue;
        }
        let op = fold(&merged, &op, &operands, &node.shape).unwrap_or(op);
        let operands = if matches!(op, Op::Constant(_)) { Vec::new() } else { operands };
        let key = (format!("{op:?}"), operands);
        let id = match known.get(&key) {
            Some(&id) => id,
            None => merged.push(op, &key.1)?,
        };
        known.insert(key, id);
        map.push(id);
    }
    for output in &graph.outputs {
        merged.output(&output.name, map[output.node.0])?;
    }
    for update in &graph.updates {
        merged.update(&update.name, map[update.node.0])?;
    }
    merged.without_dead_nodes()
}

/// The constant this node always is, if it is one and small enough.
fn fold(graph: &Graph, op: &Op, operands: &[NodeId], shape: &[usize]) -> Option<Op> {
    let is_constant = |operand: &NodeId| matches!(graph.nodes[operand.0].op, Op::Constant(_));
    let is_small = shape.iter().product::<usize>() <= FOLD_ELEMENTS_MAX;
    if operands.is_empty() || !is_small || !operands.iter().all(is_constant) {
        return None;
    }
    if matches!(op, Op::StopGradient) {
        return None;
    }
    let mut alone = Graph::new();
    let copies: Option<Vec<NodeId>> = operands
        .iter()
        .map(|operand| alone.push(graph.nodes[operand.0].op.clone(), &[]).ok())
        .collect();
    let result = alone.push(op.clone(), &copies?).ok()?;
    alone.output("value", result).ok()?;
    // An operator that fails on these constants is left to fail when the graph runs.
    let results = interpret::run::<f32>(&alone, &Params::new(), &[]).ok()?;
    let value = results.outputs.into_values().next()?;
    let tensor = Tensor::new(value.shape, value.data).ok()?;
    tensor.is_finite().then_some(Op::Constant(tensor))
}
