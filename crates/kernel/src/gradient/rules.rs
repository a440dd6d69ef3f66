//! How each operator pulls a gradient back to its operands.

use crate::error::GraphError;
use crate::graph::{Graph, NodeId};
use crate::op::{Binary, Norm, Normalise, Op, Reduction, Unary};
use crate::tensor::Tensor;

/// Positions of operands with their share of the gradient.
type Shares = Vec<(usize, NodeId)>;

/// The shares of `gradient`, the adjoint of `node`, that go to those operands for which `wanted` holds. An operand
/// left out has a gradient of zero.
pub(super) fn pull_back(
    graph: &mut Graph,
    node: NodeId,
    gradient: NodeId,
    wanted: &impl Fn(usize) -> bool,
) -> Result<Shares, GraphError> {
    let op = graph.nodes[node.0].op.clone();
    let operands = graph.nodes[node.0].operands.clone();
    let rule = Rule { graph, node, operands: &operands, gradient };
    rule.apply(&op, wanted)
}

/// Replaces operators whose own gradient is that of their definition in simpler ones.
pub(super) fn expand(graph: &Graph) -> Result<Graph, GraphError> {
    if !graph.nodes.iter().any(|node| matches!(node.op, Op::NormaliseGradient(_))) {
        return Ok(graph.clone());
    }
    let mut expanded = Graph::new();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let operands: Vec<NodeId> = node.operands.iter().map(|operand| map[operand.0]).collect();
        map.push(match &node.op {
            Op::NormaliseGradient(attributes) => {
                normalise_gradient(&mut expanded, attributes, operands[0], operands[1])?
            }
            op => expanded.push(op.clone(), &operands)?,
        });
    }
    for output in &graph.outputs {
        expanded.output(&output.name, map[output.node.0])?;
    }
    for update in &graph.updates {
        expanded.update(&update.name, map[update.node.0])?;
    }
    Ok(expanded)
}

/// `(g - mean(g) - y mean(g y)) / deviation`; without the middle term for the root mean square.
fn normalise_gradient(
    graph: &mut Graph,
    attributes: &Normalise,
    x: NodeId,
    g: NodeId,
) -> Result<NodeId, GraphError> {
    let axes = &attributes.axes;
    let (centred, reduced) = match attributes.norm {
        Norm::Standard => {
            let mean = graph.mean_keep(x, axes)?;
            let gradient_mean = graph.mean_keep(g, axes)?;
            (graph.sub(x, mean)?, graph.sub(g, gradient_mean)?)
        }
        Norm::RootMeanSquare => (x, g),
    };
    let square = graph.square(centred)?;
    let variance = graph.mean_keep(square, axes)?;
    let variance = graph.offset(variance, attributes.epsilon)?;
    let deviation = graph.sqrt(variance)?;
    let y = graph.div(centred, deviation)?;
    let product = graph.mul(g, y)?;
    let product_mean = graph.mean_keep(product, axes)?;
    let along = graph.mul(y, product_mean)?;
    let rest = graph.sub(reduced, along)?;
    graph.div(rest, deviation)
}

struct Rule<'a> {
    graph: &'a mut Graph,
    node: NodeId,
    operands: &'a [NodeId],
    gradient: NodeId,
}

impl Rule<'_> {
    fn apply(mut self, op: &Op, wanted: &impl Fn(usize) -> bool) -> Result<Shares, GraphError> {
        let g = self.gradient;
        let mut shares = Vec::new();
        match op {
            Op::Input { .. } | Op::Parameter { .. } | Op::Constant(_) | Op::StopGradient => {}
            Op::Stress(_) => shares.push((0, g)),
            Op::Unary(function) => {
                if let Some(share) = self.unary(*function)? {
                    shares.push((0, share));
                }
            }
            Op::UnaryGradient(function) => {
                if wanted(0)
                    && let Some(share) = self.unary_curvature(*function)?
                {
                    shares.push((0, share));
                }
                if wanted(1) {
                    shares.push((1, self.graph.push(op.clone(), &[self.operands[0], g])?));
                }
            }
            Op::Binary(function) => {
                for position in (0..2).filter(|&position| wanted(position)) {
                    shares.push((position, self.binary(*function, position)?));
                }
            }
            Op::MatMul { transpose_a, transpose_b } => {
                for position in (0..2).filter(|&position| wanted(position)) {
                    shares.push((position, self.mat_mul(*transpose_a, *transpose_b, position)?));
                }
            }
            Op::Conv2d(conv) => {
                let [x, weight] = self.pair();
                self.two(
                    wanted,
                    &mut shares,
                    (Op::Conv2dInputGradient(*conv), vec![g, weight, x]),
                    (Op::Conv2dWeightGradient(*conv), vec![x, g, weight]),
                )?;
            }
            Op::Conv2dInputGradient(conv) => {
                let [forward, weight] = self.pair();
                self.two(
                    wanted,
                    &mut shares,
                    (Op::Conv2d(*conv), vec![g, weight]),
                    (Op::Conv2dWeightGradient(*conv), vec![g, forward, weight]),
                )?;
            }
            Op::Conv2dWeightGradient(conv) => {
                let [x, forward] = self.pair();
                self.two(
                    wanted,
                    &mut shares,
                    (Op::Conv2dInputGradient(*conv), vec![forward, g, x]),
                    (Op::Conv2d(*conv), vec![x, g]),
                )?;
            }
            Op::MaxPool(pool) => shares
                .push((0, self.graph.push(Op::MaxPoolGradient(*pool), &[self.operands[0], g])?)),
            // The choice of the largest element is constant almost everywhere, so operand 0 gets nothing.
            Op::MaxPoolGradient(pool) => {
                if wanted(1) {
                    shares.push((
                        1,
                        self.graph.push(Op::MaxPoolPick(*pool), &[self.operands[0], g])?,
                    ));
                }
            }
            Op::MaxPoolPick(pool) => {
                if wanted(1) {
                    shares.push((
                        1,
                        self.graph.push(Op::MaxPoolGradient(*pool), &[self.operands[0], g])?,
                    ));
                }
            }
            Op::AvgPool(pool) => shares
                .push((0, self.graph.push(Op::AvgPoolGradient(*pool), &[g, self.operands[0]])?)),
            Op::AvgPoolGradient(pool) => {
                shares.push((0, self.graph.push(Op::AvgPool(*pool), &[g])?))
            }
            Op::Softmax => shares.push((0, self.softmax()?)),
            Op::LogSoftmax => shares.push((0, self.log_softmax()?)),
            Op::Normalise(attributes) => {
                let op = Op::NormaliseGradient(attributes.clone());
                shares.push((0, self.graph.push(op, &[self.operands[0], g])?));
            }
            Op::NormaliseGradient(_) => unreachable!("expanded before the sweep"),
            Op::Dropout { .. } => {
                if wanted(0) {
                    shares.push((0, self.graph.push(op.clone(), &[g, self.operands[1]])?));
                }
            }
            Op::Phase => shares.push((0, g)),
            Op::Gather => {
                if wanted(0) {
                    let [table, index] = self.pair();
                    shares.push((0, self.graph.push(Op::ScatterAdd, &[index, g, table])?));
                }
            }
            Op::ScatterAdd => {
                if wanted(1) {
                    shares.push((1, self.graph.push(Op::Gather, &[g, self.operands[0]])?));
                }
            }
            Op::Reshape(_) | Op::ReshapeLike => {
                shares.push((0, self.graph.push(Op::ReshapeLike, &[g, self.operands[0]])?));
            }
            Op::Permute(order) => {
                let mut inverse = vec![0; order.len()];
                order.iter().enumerate().for_each(|(position, &axis)| inverse[axis] = position);
                shares.push((0, self.graph.permute(g, &inverse)?));
            }
            Op::Concat { axis } => {
                let mut start = 0;
                for (position, &part) in self.operands.iter().enumerate() {
                    let end = start + self.graph.shape(part)[*axis];
                    if wanted(position) {
                        shares.push((position, self.graph.slice(g, *axis, start, end)?));
                    }
                    start = end;
                }
            }
            Op::Slice { axis, start, .. } => {
                let op = Op::PadLike { axis: *axis, start: *start };
                shares.push((0, self.graph.push(op, &[g, self.operands[0]])?));
            }
            Op::PadLike { axis, start } => {
                let end = start + self.graph.shape(self.operands[0])[*axis];
                shares.push((0, self.graph.slice(g, *axis, *start, end)?));
            }
            Op::Reduce { kind, .. } | Op::ReduceLike(kind) => {
                shares
                    .push((0, self.graph.push(Op::BroadcastLike(*kind), &[g, self.operands[0]])?));
            }
            Op::BroadcastLike(kind) => {
                shares.push((0, self.graph.push(Op::ReduceLike(*kind), &[g, self.operands[0]])?));
            }
            Op::CrossEntropy => {
                if wanted(0) {
                    let [logits, labels] = self.pair();
                    shares.push((
                        0,
                        self.graph.push(Op::CrossEntropyGradient, &[logits, labels, g])?,
                    ));
                }
            }
            Op::CrossEntropyGradient => {
                if wanted(0) {
                    shares.push((0, self.cross_entropy_curvature()?));
                }
                if wanted(2) {
                    shares.push((2, self.cross_entropy_by_seed()?));
                }
            }
        }
        shares.retain(|&(position, _)| wanted(position));
        Ok(shares)
    }

    fn pair(&self) -> [NodeId; 2] {
        [self.operands[0], self.operands[1]]
    }

    /// Pushes the share of each wanted one of the first two operands.
    fn two(
        &mut self,
        wanted: &impl Fn(usize) -> bool,
        shares: &mut Shares,
        first: (Op, Vec<NodeId>),
        second: (Op, Vec<NodeId>),
    ) -> Result<(), GraphError> {
        for (position, (op, operands)) in [first, second].into_iter().enumerate() {
            if wanted(position) {
                shares.push((position, self.graph.push(op, &operands)?));
            }
        }
        Ok(())
    }

    fn unary(&mut self, function: Unary) -> Result<Option<NodeId>, GraphError> {
        let g = self.gradient;
        let share = match function {
            Unary::Neg => self.graph.neg(g)?,
            Unary::Scale { factor } => self.graph.scale(g, factor)?,
            Unary::Offset { .. } => g,
            Unary::Step | Unary::Sign | Unary::Within { .. } => return Ok(None),
            Unary::Exp
            | Unary::Log
            | Unary::Sqrt
            | Unary::Square
            | Unary::Abs
            | Unary::Relu
            | Unary::Gelu
            | Unary::Silu
            | Unary::Sigmoid
            | Unary::Tanh
            | Unary::Softplus
            | Unary::Erf
            | Unary::Clamp { .. } => {
                let v = if function.gradient_by_output() { self.node } else { self.operands[0] };
                self.graph.push(Op::UnaryGradient(function), &[v, g])?
            }
        };
        Ok(Some(share))
    }

    /// For `f'(v) h` with adjoint `g`: `f''(v) h g`, the derivative being that in `v` as the operator takes it.
    fn unary_curvature(&mut self, function: Unary) -> Result<Option<NodeId>, GraphError> {
        let [v, h] = self.pair();
        let g = self.gradient;
        let Some(curvature) = curvature(self.graph, function, v)? else {
            return Ok(None);
        };
        let product = self.graph.mul(h, g)?;
        Ok(Some(self.graph.mul(curvature, product)?))
    }

    fn binary(&mut self, function: Binary, position: usize) -> Result<NodeId, GraphError> {
        let [a, b] = self.pair();
        let g = self.gradient;
        let share = match (function, position) {
            (Binary::Add, _) | (Binary::Sub, 0) => g,
            (Binary::Sub, _) => self.graph.neg(g)?,
            (Binary::Mul, 0) => self.graph.mul(g, b)?,
            (Binary::Mul, _) => self.graph.mul(g, a)?,
            (Binary::Div, 0) => self.graph.div(g, b)?,
            (Binary::Div, _) => {
                let quotient = self.graph.div(self.node, b)?;
                let product = self.graph.mul(g, quotient)?;
                self.graph.neg(product)?
            }
        };
        self.reduce_to(share, self.operands[position])
    }

    /// Undoes a broadcast: sums over what the operand does not have.
    fn reduce_to(&mut self, share: NodeId, operand: NodeId) -> Result<NodeId, GraphError> {
        if self.graph.shape(share) == self.graph.shape(operand) {
            return Ok(share);
        }
        self.graph.push(Op::ReduceLike(Reduction::Sum), &[share, operand])
    }

    /// With `C = A B`: `dA = dC B^T` and `dB = A^T dC`, transposed again where the operand was.
    fn mat_mul(
        &mut self,
        transpose_a: bool,
        transpose_b: bool,
        position: usize,
    ) -> Result<NodeId, GraphError> {
        let [mut a, b] = self.pair();
        let mut g = self.gradient;
        let is_shared = self.graph.shape(b).len() == 2 && self.graph.shape(a).len() > 2;
        if position == 1 && is_shared {
            a = self.as_matrix(a)?;
            g = self.as_matrix(g)?;
        }
        let (transposes, operands) = match (position, transpose_a, transpose_b) {
            (0, false, _) => ((false, !transpose_b), [g, b]),
            (0, true, _) => ((transpose_b, true), [b, g]),
            (_, _, false) => ((!transpose_a, false), [a, g]),
            (_, _, true) => ((true, transpose_a), [g, a]),
        };
        let op = Op::MatMul { transpose_a: transposes.0, transpose_b: transposes.1 };
        self.graph.push(op, &operands)
    }

    /// All leading dimensions as one.
    fn as_matrix(&mut self, x: NodeId) -> Result<NodeId, GraphError> {
        let last = *self
            .graph
            .shape(x)
            .last()
            .expect("the operand of a product has at least two dimensions");
        self.graph.reshape(x, &[last])
    }

    /// `y (g - sum(g y))`
    fn softmax(&mut self) -> Result<NodeId, GraphError> {
        let (y, g) = (self.node, self.gradient);
        softmax_gradient(self.graph, y, g)
    }

    /// `g - softmax sum(g)`
    fn log_softmax(&mut self) -> Result<NodeId, GraphError> {
        let g = self.gradient;
        let last = self.graph.shape(g).len() - 1;
        let probability = self.graph.exp(self.node)?;
        let sum = self.graph.sum_keep(g, &[last])?;
        let along = self.graph.mul(probability, sum)?;
        self.graph.sub(g, along)
    }

    /// The Hessian of the loss times the adjoint: the softmax's gradient, scaled by the incoming one over the rows.
    fn cross_entropy_curvature(&mut self) -> Result<NodeId, GraphError> {
        let (logits, incoming) = (self.operands[0], self.operands[2]);
        let probability = self.graph.softmax(logits)?;
        let along = softmax_gradient(self.graph, probability, self.gradient)?;
        let last = self.graph.shape(logits).len() - 1;
        let per_row = self.graph.sum_keep(along, &[last])?;
        let share = self.graph.push(Op::BroadcastLike(Reduction::Mean), &[incoming, per_row])?;
        self.graph.mul(along, share)
    }

    /// The operator is linear in its third operand: what it gives for 1, times the adjoint, summed.
    fn cross_entropy_by_seed(&mut self) -> Result<NodeId, GraphError> {
        let [logits, labels] = self.pair();
        let one = self.graph.constant(Tensor::scalar(1.0))?;
        let unit = self.graph.push(Op::CrossEntropyGradient, &[logits, labels, one])?;
        let product = self.graph.mul(unit, self.gradient)?;
        self.graph.sum_all(product)
    }
}

/// `y (g - sum(g y))` over the last dimension.
fn softmax_gradient(graph: &mut Graph, y: NodeId, g: NodeId) -> Result<NodeId, GraphError> {
    let last = graph.shape(g).len() - 1;
    let product = graph.mul(g, y)?;
    let sum = graph.sum_keep(product, &[last])?;
    let centred = graph.sub(g, sum)?;
    graph.mul(y, centred)
}

/// The derivative of `f'` in `v`, which is `f`'s result where the function's gradient is taken by its result;
/// `None` where it is zero.
fn curvature(graph: &mut Graph, function: Unary, v: NodeId) -> Result<Option<NodeId>, GraphError> {
    let node = match function {
        // f' = y
        Unary::Exp => ones_like(graph, v)?,
        // f' = 1 / x
        Unary::Log => {
            let square = graph.square(v)?;
            reciprocal(graph, -1.0, square)?
        }
        // f' = 0.5 / y
        Unary::Sqrt => {
            let square = graph.square(v)?;
            reciprocal(graph, -0.5, square)?
        }
        // f' = 2 x
        Unary::Square => {
            let one = ones_like(graph, v)?;
            graph.scale(one, 2.0)?
        }
        // f' = Phi + x phi, so f'' = phi (2 - x^2)
        Unary::Gelu => {
            let square = graph.square(v)?;
            let exponent = graph.scale(square, -0.5)?;
            let density = graph.exp(exponent)?;
            let density = graph.scale(
                density,
                std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 / 2.0,
            )?;
            let minus = graph.neg(square)?;
            let factor = graph.offset(minus, 2.0)?;
            graph.mul(density, factor)?
        }
        // f' = s (1 + x (1 - s)), so f'' = s' (2 + x (1 - 2 s))
        Unary::Silu => {
            let s = graph.sigmoid(v)?;
            let slope = sigmoid_slope(graph, s)?;
            let tilt = one_minus_twice(graph, s)?;
            let product = graph.mul(v, tilt)?;
            let factor = graph.offset(product, 2.0)?;
            graph.mul(slope, factor)?
        }
        // f' = y (1 - y)
        Unary::Sigmoid => one_minus_twice(graph, v)?,
        // f' = 1 - y^2
        Unary::Tanh => graph.scale(v, -2.0)?,
        // f' = s
        Unary::Softplus => {
            let s = graph.sigmoid(v)?;
            sigmoid_slope(graph, s)?
        }
        // f' = 2 / sqrt(pi) e^(-x^2), so f'' = -2 x f'
        Unary::Erf => {
            let square = graph.square(v)?;
            let exponent = graph.neg(square)?;
            let bell = graph.exp(exponent)?;
            let product = graph.mul(v, bell)?;
            graph.scale(product, -2.0 * std::f32::consts::FRAC_2_SQRT_PI)?
        }
        Unary::Neg
        | Unary::Abs
        | Unary::Relu
        | Unary::Step
        | Unary::Sign
        | Unary::Clamp { .. }
        | Unary::Within { .. }
        | Unary::Scale { .. }
        | Unary::Offset { .. } => return Ok(None),
    };
    Ok(Some(node))
}

fn ones_like(graph: &mut Graph, v: NodeId) -> Result<NodeId, GraphError> {
    let one = graph.constant(Tensor::scalar(1.0))?;
    graph.push(Op::BroadcastLike(Reduction::Sum), &[one, v])
}

fn reciprocal(
    graph: &mut Graph,
    numerator: f32,
    denominator: NodeId,
) -> Result<NodeId, GraphError> {
    let numerator = graph.constant(Tensor::scalar(numerator))?;
    graph.div(numerator, denominator)
}

/// `s (1 - s)`
fn sigmoid_slope(graph: &mut Graph, s: NodeId) -> Result<NodeId, GraphError> {
    let square = graph.square(s)?;
    graph.sub(s, square)
}

/// `1 - 2 s`
fn one_minus_twice(graph: &mut Graph, s: NodeId) -> Result<NodeId, GraphError> {
    let twice = graph.scale(s, -2.0)?;
    graph.offset(twice, 1.0)
}
