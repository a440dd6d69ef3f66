//! What a graph costs, counted on the IR: the same number on every machine.

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Node};
use crate::op::Op;

/// Cost of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Scalars in all parameters.
    pub parameters: u64,
    /// Arithmetic operations of one forward pass at the graph's batch size; a multiply-add counts as two.
    pub operations: u64,
    /// Bytes of all parameters and of every value of one forward pass, as if nothing shared memory.
    pub bytes: u64,
}

impl Cost {
    /// Counts the cost of a graph.
    pub fn of(graph: &Graph) -> Self {
        let elements = |node: &Node| node.shape().iter().map(|&size| size as u64).product::<u64>();
        let per_node = |count: fn(&Graph, &Node, u64) -> u64| {
            graph
                .nodes()
                .iter()
                .fold(0_u64, |sum, node| sum.saturating_add(count(graph, node, elements(node))))
        };
        Self {
            parameters: graph.parameter_count() as u64,
            operations: per_node(operations),
            bytes: per_node(|_, _, elements| elements.saturating_mul(size_of::<f32>() as u64)),
        }
    }
}

/// Operations of one node; a transcendental function counts as one.
fn operations(graph: &Graph, node: &Node, elements: u64) -> u64 {
    let operand = |position: usize| graph.shape(node.operands()[position]);
    let count = |sizes: &[usize]| sizes.iter().map(|&size| size as u64).product::<u64>();
    match node.op() {
        Op::Input { .. }
        | Op::Parameter { .. }
        | Op::Constant(_)
        | Op::Phase
        | Op::Gather
        | Op::Reshape(_)
        | Op::ReshapeLike
        | Op::Permute(_)
        | Op::Concat { .. }
        | Op::Slice { .. }
        | Op::PadLike { .. }
        | Op::StopGradient
        | Op::Stress(_) => 0,
        Op::MatMul { transpose_a, .. } => {
            let a = operand(0);
            let inner = if *transpose_a { a[a.len() - 2] } else { a[a.len() - 1] };
            elements.saturating_mul(2 * inner as u64)
        }
        Op::Conv2d(_) => elements.saturating_mul(2 * count(&operand(1)[1..])),
        Op::Conv2dInputGradient(_) => count(operand(0)).saturating_mul(2 * count(&operand(1)[1..])),
        Op::Conv2dWeightGradient(_) => {
            count(operand(1)).saturating_mul(2 * count(&operand(2)[1..]))
        }
        Op::MaxPool(pool) | Op::MaxPoolPick(pool) | Op::AvgPool(pool) => {
            elements.saturating_mul(count(&pool.kernel))
        }
        Op::MaxPoolGradient(pool) => count(operand(1)).saturating_mul(count(&pool.kernel)),
        Op::AvgPoolGradient(pool) => count(operand(0)).saturating_mul(count(&pool.kernel)),
        Op::Unary(_)
        | Op::UnaryGradient(_)
        | Op::Binary(_)
        | Op::Dropout { .. }
        | Op::BroadcastLike(_) => elements,
        // Largest, difference, exponential, sum, quotient.
        Op::Softmax | Op::LogSoftmax => elements.saturating_mul(5),
        Op::CrossEntropy | Op::CrossEntropyGradient => count(operand(0)).saturating_mul(5),
        // Mean, difference, square, sum, product.
        Op::Normalise(_) => elements.saturating_mul(5),
        Op::NormaliseGradient(_) => elements.saturating_mul(12),
        Op::Reduce { .. } | Op::ReduceLike(_) => count(operand(0)),
        Op::ScatterAdd => count(operand(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_counted() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[8, 32]).unwrap();
        let y = graph.linear_layer(x, "fc", 16).unwrap();
        graph.output("y", y).unwrap();
        let cost = Cost::of(&graph);
        assert_eq!(cost.parameters, 32 * 16 + 16);
        assert_eq!(cost.operations, 2 * 8 * 32 * 16 + 8 * 16);
        assert_eq!(cost.bytes, 4 * (8 * 32 + 32 * 16 + 16 + 8 * 16 + 8 * 16));
    }
}
