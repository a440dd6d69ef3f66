//! Reverse-mode differentiation on the graph: the gradient of a graph is a graph.

mod rules;

use std::collections::HashMap;

use crate::error::GraphError;
use crate::graph::{Graph, NodeId};
use crate::op::{Op, Reduction};
use crate::tensor::Tensor;

/// Name of the output that holds the gradient with respect to `name`.
pub fn gradient_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// What an output is the gradient of, if it is one.
pub(crate) fn gradient_target(output: &str) -> Option<&str> {
    output.strip_prefix(PREFIX)
}

const PREFIX: &str = "gradient/";

/// The graph together with the gradients of the scalar output `loss` with respect to the named parameters or inputs.
///
/// The result has the outputs and updates of `graph` and, for each name of `wrt`, one more output called
/// [`gradient_name`]. Where a parameter and an input share a name, the parameter is meant. A value on which the loss
/// does not depend has a gradient of zeros. Every operator can be differentiated, those of gradients too.
///
/// # Errors
/// [`GraphError::UnknownName`] for a name that does not exist, [`GraphError::NotScalar`] when the loss is not a
/// scalar, [`GraphError::Name`] when a gradient is asked for twice.
pub fn differentiate(graph: &Graph, loss: &str, wrt: &[&str]) -> Result<Graph, GraphError> {
    let mut graph = rules::expand(graph)?;
    let loss_node = graph.output_node(loss)?;
    if !graph.shape(loss_node).is_empty() {
        return Err(GraphError::NotScalar {
            name: loss.to_owned(),
            shape: graph.shape(loss_node).to_vec(),
        });
    }
    let targets = wrt.iter().map(|name| target(&graph, name)).collect::<Result<Vec<_>, _>>()?;
    let adjoints = sweep(&mut graph, loss_node, &targets)?;
    for (&name, &node) in wrt.iter().zip(&targets) {
        let gradient = match adjoints.get(&node) {
            Some(&gradient) => gradient,
            None => zeros_like(&mut graph, node)?,
        };
        graph.output(&gradient_name(name), gradient)?;
    }
    Ok(graph)
}

/// [`differentiate`] with respect to every trainable parameter.
///
/// # Errors
/// As [`differentiate`].
pub fn differentiate_trainable(graph: &Graph, loss: &str) -> Result<Graph, GraphError> {
    let wrt: Vec<&str> = graph.trainable().collect();
    differentiate(graph, loss, &wrt)
}

fn target(graph: &Graph, name: &str) -> Result<NodeId, GraphError> {
    let found = graph.parameter_node(name).or_else(|| graph.input_node(name));
    found.ok_or_else(|| GraphError::UnknownName {
        kind: "parameter or input",
        name: name.to_owned(),
        known: graph.parameters().chain(graph.inputs()).map(|(name, _)| name.to_owned()).collect(),
    })
}

/// Walks back from the loss and returns the adjoint of every node on a way to a target.
fn sweep(
    graph: &mut Graph,
    loss: NodeId,
    targets: &[NodeId],
) -> Result<HashMap<NodeId, NodeId>, GraphError> {
    let on_the_way = depends_on(graph, targets);
    let mut adjoints = HashMap::new();
    if !on_the_way[loss.0] {
        return Ok(adjoints);
    }
    let one = graph.constant(Tensor::scalar(1.0))?;
    adjoints.insert(loss, one);
    for index in (0..=loss.0).rev() {
        let node = NodeId(index);
        let Some(&adjoint) = adjoints.get(&node) else { continue };
        let operands = graph.nodes[index].operands.clone();
        let wanted = |position: usize| on_the_way[operands[position].0];
        for (position, contribution) in rules::pull_back(graph, node, adjoint, &wanted)? {
            let operand = operands[position];
            let sum = match adjoints.get(&operand) {
                Some(&sum) => graph.add(sum, contribution)?,
                None => contribution,
            };
            adjoints.insert(operand, sum);
        }
    }
    Ok(adjoints)
}

/// Which nodes change when a target changes.
fn depends_on(graph: &Graph, targets: &[NodeId]) -> Vec<bool> {
    let mut depends = vec![false; graph.nodes.len()];
    targets.iter().for_each(|target| depends[target.0] = true);
    for (index, node) in graph.nodes.iter().enumerate() {
        let data = &node.operands[..node.op.data_operands(node.operands.len())];
        depends[index] |= data.iter().any(|operand| depends[operand.0]);
    }
    depends
}

fn zeros_like(graph: &mut Graph, node: NodeId) -> Result<NodeId, GraphError> {
    let zero = graph.constant(Tensor::scalar(0.0))?;
    graph.push(Op::BroadcastLike(Reduction::Sum), &[zero, node])
}
