//! Algebra: operators that do nothing, undo each other, or are one operator written as two.
//!
//! A rewrite is made only where every result stays the same number, infinities and NaN included. Hence `x * 0` stays
//! (it may be NaN), `(x * 1e30) * 1e-30` stays (it may overflow on the way), and `x + 0`, or a sum
//! over nothing, goes only where nothing divides, because it turns -0 into 0.

use crate::graph::{Graph, NodeId};
use crate::op::{Binary, Extent, Op, Reduction, Unary};

/// What takes the place of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rewrite {
    /// A node there is already.
    Same(NodeId),
    /// Another operator.
    Other(Op, Vec<NodeId>),
}

/// Whether the sign of a zero can show: something may be divided by it.
pub(super) fn divides(graph: &Graph) -> bool {
    graph.nodes.iter().any(|node| {
        matches!(node.op, Op::Binary(Binary::Div) | Op::UnaryGradient(Unary::Log | Unary::Sqrt))
    })
}

/// A simpler way to the value of `op` on nodes of `graph`, if there is one. The result has the shape of the node's,
/// for this and every other batch.
pub(super) fn simplify(
    graph: &Graph,
    op: &Op,
    operands: &[NodeId],
    keeps_zero_sign: bool,
) -> Option<Rewrite> {
    let node = |id: NodeId| &graph.nodes[id.0];
    match op {
        Op::Unary(function) => unary(graph, *function, operands[0], keeps_zero_sign),
        Op::Binary(function) => binary(graph, *function, operands, keeps_zero_sign),
        Op::Reshape(extents) => {
            let x = operands[0];
            if is_same_shape(extents, graph.shape(x)) {
                return Some(Rewrite::Same(x));
            }
            let from = unreshaped(graph, x)?;
            Some(Rewrite::Other(op.clone(), vec![from]))
        }
        Op::ReshapeLike => {
            let [x, like] = [operands[0], operands[1]];
            if is_stable_pair(graph, x, like) {
                return Some(Rewrite::Same(x));
            }
            let from = unreshaped(graph, x)?;
            Some(if is_stable_pair(graph, from, like) {
                Rewrite::Same(from)
            } else {
                Rewrite::Other(op.clone(), vec![from, like])
            })
        }
        Op::Permute(order) => {
            if order.iter().copied().eq(0..order.len()) {
                return Some(Rewrite::Same(operands[0]));
            }
            let Op::Permute(first) = &node(operands[0]).op else { return None };
            let both = order.iter().map(|&axis| first[axis]).collect();
            Some(Rewrite::Other(Op::Permute(both), node(operands[0]).operands.clone()))
        }
        Op::MatMul { transpose_a, transpose_b } => {
            mat_mul(graph, *transpose_a, *transpose_b, operands)
        }
        // A sum begins with 0, which turns the only -0 that it takes into 0.
        Op::Reduce { axes, .. } => {
            (!keeps_zero_sign && axes.is_empty()).then(|| Rewrite::Same(operands[0]))
        }
        Op::ReduceLike(_) => {
            let is_same = !keeps_zero_sign && is_stable_pair(graph, operands[0], operands[1]);
            is_same.then(|| Rewrite::Same(operands[0]))
        }
        Op::BroadcastLike(_) => {
            is_stable_pair(graph, operands[0], operands[1]).then(|| Rewrite::Same(operands[0]))
        }
        Op::Concat { .. } => (operands.len() == 1).then(|| Rewrite::Same(operands[0])),
        Op::Slice { axis, start, end } => {
            // The leading dimension may be the batch, which is then cut at another place.
            let is_whole = *axis > 0 && *start == 0 && *end == graph.shape(operands[0])[*axis];
            is_whole.then(|| Rewrite::Same(operands[0]))
        }
        _ => None,
    }
}

fn unary(graph: &Graph, function: Unary, x: NodeId, keeps_zero_sign: bool) -> Option<Rewrite> {
    let inner = &graph.nodes[x.0];
    let before = match inner.op {
        Op::Unary(before) => Some(before),
        _ => None,
    };
    let of_inner = |function: Unary| Rewrite::Other(Op::Unary(function), inner.operands.clone());
    match (function, before) {
        (Unary::Scale { factor: 1.0 }, _) => Some(Rewrite::Same(x)),
        (Unary::Offset { by: 0.0 }, _) => {
            // `x + -0` is `x`, and -0 matches this pattern too.
            let is_exact = is_negative_zero(function) || !keeps_zero_sign;
            is_exact.then_some(Rewrite::Same(x))
        }
        (Unary::Neg, Some(Unary::Neg)) => Some(Rewrite::Same(inner.operands[0])),
        (Unary::Neg, Some(Unary::Scale { factor }))
        | (Unary::Scale { factor }, Some(Unary::Neg)) => {
            Some(of_inner(Unary::Scale { factor: -factor }))
        }
        (Unary::Scale { factor: second }, Some(Unary::Scale { factor: first })) => {
            let factor = exact_product(first, second)?;
            Some(of_inner(Unary::Scale { factor }))
        }
        (Unary::Abs, Some(Unary::Neg | Unary::Abs)) => {
            Some(Rewrite::Other(Op::Unary(Unary::Abs), inner.operands.clone()))
        }
        (Unary::Relu, Some(Unary::Relu)) => Some(Rewrite::Same(x)),
        _ => None,
    }
}

fn is_negative_zero(function: Unary) -> bool {
    matches!(function, Unary::Offset { by } if by.is_sign_negative())
}

/// The product of two factors, where applying it once gives what applying them in turn does: it is exact, and neither
/// overflow nor underflow can happen on the way only.
fn exact_product(first: f32, second: f32) -> Option<f32> {
    let product = f64::from(first) * f64::from(second);
    let is_exact = f64::from(product as f32) == product && (product as f32).is_normal();
    let is_monotone =
        (first.abs() >= 1.0 && second.abs() >= 1.0) || (first.abs() <= 1.0 && second.abs() <= 1.0);
    (is_exact && is_monotone).then_some(product as f32)
}

fn binary(
    graph: &Graph,
    function: Binary,
    operands: &[NodeId],
    keeps_zero_sign: bool,
) -> Option<Rewrite> {
    let [a, b] = [operands[0], operands[1]];
    let is_neutral = |constant: NodeId, other: NodeId, value: f32| {
        all_equal(graph, constant, value) && absorbs(graph, other, constant)
    };
    match function {
        Binary::Mul if is_neutral(b, a, 1.0) => Some(Rewrite::Same(a)),
        Binary::Mul if is_neutral(a, b, 1.0) => Some(Rewrite::Same(b)),
        Binary::Div if is_neutral(b, a, 1.0) => Some(Rewrite::Same(a)),
        Binary::Sub if is_neutral(b, a, 0.0) => Some(Rewrite::Same(a)),
        Binary::Add if !keeps_zero_sign && is_neutral(b, a, 0.0) => Some(Rewrite::Same(a)),
        Binary::Add if !keeps_zero_sign && is_neutral(a, b, 0.0) => Some(Rewrite::Same(b)),
        Binary::Mul | Binary::Div | Binary::Sub | Binary::Add => None,
    }
}

/// Whether every element of a node is `value`, whatever the inputs. Zero means the positive one.
fn all_equal(graph: &Graph, id: NodeId, value: f32) -> bool {
    let node = &graph.nodes[id.0];
    match &node.op {
        Op::Constant(tensor) => {
            tensor.data().iter().all(|element| element.to_bits() == value.to_bits())
        }
        Op::BroadcastLike(Reduction::Sum) | Op::Reshape(_) | Op::ReshapeLike => {
            all_equal(graph, node.operands[0], value)
        }
        _ => false,
    }
}

/// Whether broadcasting `constant` against `x` gives the shape of `x`, for every batch.
fn absorbs(graph: &Graph, x: NodeId, constant: NodeId) -> bool {
    let (large, small) = (graph.shape(x), graph.shape(constant));
    let lead = large.len().checked_sub(small.len());
    lead.is_some_and(|lead| {
        let pairs = large[lead..].iter().zip(small);
        // A leading 1 of `x` may be fixed while that of the constant is a batch of one.
        let is_safe = lead > 0 || small.is_empty() || large[0] != 1;
        is_safe && pairs.into_iter().all(|(&large, &small)| small == 1 || small == large)
    })
}

/// Whether two nodes have the same shape now and with every batch that both can have. With a batch of one the shapes
/// could agree by chance.
fn is_stable_pair(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let shape = graph.shape(a);
    shape == graph.shape(b) && shape.first() != Some(&1)
}

/// Whether a reshape gives the shape its operand has, for every batch.
fn is_same_shape(extents: &[Extent], shape: &[usize]) -> bool {
    extents.len() == shape.len()
        && extents.iter().zip(shape).enumerate().all(|(axis, (extent, &size))| match extent {
            Extent::Size(given) => *given == size,
            Extent::Rest => axis == 0,
        })
}

/// What was reshaped into this node, if it is a reshape.
fn unreshaped(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = &graph.nodes[id.0];
    matches!(node.op, Op::Reshape(_) | Op::ReshapeLike).then(|| node.operands[0])
}

/// A transposed operand is read transposed by the product itself.
fn mat_mul(
    graph: &Graph,
    transpose_a: bool,
    transpose_b: bool,
    operands: &[NodeId],
) -> Option<Rewrite> {
    let [a, b] = [operands[0], operands[1]];
    // A shared second operand wants an untransposed first one, unless that is a matrix too.
    let may_turn_a = graph.shape(a).len() == 2 || graph.shape(b).len() > 2;
    if let Some(from) = untransposed(graph, a).filter(|_| may_turn_a) {
        let op = Op::MatMul { transpose_a: !transpose_a, transpose_b };
        return Some(Rewrite::Other(op, vec![from, b]));
    }
    let from = untransposed(graph, b)?;
    let op = Op::MatMul { transpose_a, transpose_b: !transpose_b };
    Some(Rewrite::Other(op, vec![a, from]))
}

/// What was transposed into this node, if it swaps the last two dimensions and nothing else.
fn untransposed(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = &graph.nodes[id.0];
    let Op::Permute(order) = &node.op else { return None };
    let rank = order.len();
    let is_swap = rank >= 2
        && order[rank - 2..] == [rank - 1, rank - 2]
        && order[..rank - 2].iter().copied().eq(0..rank - 2);
    is_swap.then(|| node.operands[0])
}
