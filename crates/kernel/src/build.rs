//! Builder methods: one per operator, and the small compositions everybody needs.

use crate::error::GraphError;
use crate::graph::{Graph, NodeId, STEP_INPUT};
use crate::init::Init;
use crate::op::{Binary, Conv, Extent, Norm, Normalise, Op, Pool, Reduction, Unary};
use crate::stress::Stress;
use crate::tensor::Tensor;

type Built = Result<NodeId, GraphError>;

/// Every method adds nodes and gives [`GraphError`] when the operands do not fit.
#[allow(clippy::missing_errors_doc)] // Said once, above.
impl Graph {
    /// An input whose leading dimension is the batch; `shape` includes it.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> Built {
        self.push(Op::Input { name: name.to_owned(), shape: shape.to_vec(), batched: true }, &[])
    }

    /// An input of one value, such as a blend's alpha.
    pub fn scalar_input(&mut self, name: &str) -> Built {
        self.fixed_input(name, &[])
    }

    /// An input whose shape does not depend on the batch.
    pub fn fixed_input(&mut self, name: &str, shape: &[usize]) -> Built {
        self.push(Op::Input { name: name.to_owned(), shape: shape.to_vec(), batched: false }, &[])
    }

    /// The scalar input [`STEP_INPUT`], made when it is not there yet.
    pub fn step_input(&mut self) -> Built {
        match self.input_node(STEP_INPUT) {
            Some(node) => Ok(node),
            None => self.scalar_input(STEP_INPUT),
        }
    }

    /// A trainable parameter.
    pub fn parameter(&mut self, name: &str, shape: &[usize], init: Init) -> Built {
        self.push(
            Op::Parameter { name: name.to_owned(), shape: shape.to_vec(), init, trainable: true },
            &[],
        )
    }

    /// A parameter no optimiser changes, such as a running statistic.
    pub fn state(&mut self, name: &str, shape: &[usize], init: Init) -> Built {
        self.push(
            Op::Parameter { name: name.to_owned(), shape: shape.to_vec(), init, trainable: false },
            &[],
        )
    }

    /// A fixed tensor.
    pub fn constant(&mut self, tensor: Tensor) -> Built {
        self.push(Op::Constant(tensor), &[])
    }

    /// An elementwise function.
    pub fn unary(&mut self, function: Unary, x: NodeId) -> Built {
        self.push(Op::Unary(function), &[x])
    }

    /// `-x`
    pub fn neg(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Neg, x)
    }

    /// `e^x`
    pub fn exp(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Exp, x)
    }

    /// Natural logarithm.
    pub fn log(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Log, x)
    }

    /// Square root.
    pub fn sqrt(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Sqrt, x)
    }

    /// `x * x`
    pub fn square(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Square, x)
    }

    /// `|x|`
    pub fn abs(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Abs, x)
    }

    /// `max(x, 0)`
    pub fn relu(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Relu, x)
    }

    /// `x * Phi(x)`, exact.
    pub fn gelu(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Gelu, x)
    }

    /// `x * sigmoid(x)`
    pub fn silu(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Silu, x)
    }

    /// `1 / (1 + e^-x)`
    pub fn sigmoid(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Sigmoid, x)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Tanh, x)
    }

    /// `ln(1 + e^x)`
    pub fn softplus(&mut self, x: NodeId) -> Built {
        self.unary(Unary::Softplus, x)
    }

    /// `min(max(x, low), high)`
    pub fn clamp(&mut self, x: NodeId, low: f32, high: f32) -> Built {
        self.unary(Unary::Clamp { low, high }, x)
    }

    /// `factor * x` by a fixed factor. For one that changes at run time, multiply by a [`Graph::scalar_input`].
    pub fn scale(&mut self, x: NodeId, factor: f32) -> Built {
        self.unary(Unary::Scale { factor }, x)
    }

    /// `x + by` by a fixed term.
    pub fn offset(&mut self, x: NodeId, by: f32) -> Built {
        self.unary(Unary::Offset { by }, x)
    }

    /// `a + b`, broadcast.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::Binary(Binary::Add), &[a, b])
    }

    /// `a - b`, broadcast.
    pub fn sub(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::Binary(Binary::Sub), &[a, b])
    }

    /// `a * b`, broadcast.
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::Binary(Binary::Mul), &[a, b])
    }

    /// `a / b`, broadcast.
    pub fn div(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::Binary(Binary::Div), &[a, b])
    }

    /// Matrix product over the last two dimensions; see [`Op::MatMul`].
    pub fn matmul(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::MatMul { transpose_a: false, transpose_b: false }, &[a, b])
    }

    /// Matrix product with the transpose of `b`.
    pub fn matmul_transposed(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::MatMul { transpose_a: false, transpose_b: true }, &[a, b])
    }

    /// `x weight^T + bias` with `weight [out, in]` and `bias [out]`, the layout of PyTorch.
    pub fn linear(&mut self, x: NodeId, weight: NodeId, bias: Option<NodeId>) -> Built {
        let product = self.matmul_transposed(x, weight)?;
        match bias {
            Some(bias) => self.add(product, bias),
            None => Ok(product),
        }
    }

    /// Convolution of `x [n, c, h, w]` with `weight [o, c / groups, kh, kw]` and `bias [o]`.
    pub fn conv2d(&mut self, x: NodeId, weight: NodeId, bias: Option<NodeId>, conv: Conv) -> Built {
        let result = self.push(Op::Conv2d(conv), &[x, weight])?;
        match bias {
            Some(bias) => {
                let bias = self.per_channel(bias, 4)?;
                self.add(result, bias)
            }
            None => Ok(result),
        }
    }

    /// A vector of one value per channel in a shape that broadcasts against `[n, c, ..]` of `rank` dimensions.
    pub fn per_channel(&mut self, vector: NodeId, rank: usize) -> Built {
        let mut extents = vec![Extent::Rest];
        extents.extend((2..rank).map(|_| Extent::Size(1)));
        self.push(Op::Reshape(extents), &[vector])
    }

    /// Largest value of each window of `x [n, c, h, w]`.
    pub fn max_pool2d(&mut self, x: NodeId, pool: Pool) -> Built {
        self.push(Op::MaxPool(pool), &[x])
    }

    /// Mean of each window of `x [n, c, h, w]`.
    pub fn avg_pool2d(&mut self, x: NodeId, pool: Pool) -> Built {
        self.push(Op::AvgPool(pool), &[x])
    }

    /// Largest value of each window of `x [n, c, l]`.
    pub fn max_pool1d(&mut self, x: NodeId, kernel: usize, stride: usize) -> Built {
        self.over_one_side(x, |graph, x| {
            graph.max_pool2d(x, Pool { kernel: [1, kernel], stride: [1, stride], padding: [0, 0] })
        })
    }

    /// Mean of each window of `x [n, c, l]`.
    pub fn avg_pool1d(&mut self, x: NodeId, kernel: usize, stride: usize) -> Built {
        self.over_one_side(x, |graph, x| {
            graph.avg_pool2d(x, Pool { kernel: [1, kernel], stride: [1, stride], padding: [0, 0] })
        })
    }

    /// Runs an operator for `[n, c, h, w]` on `x [n, c, l]` as height 1.
    pub(crate) fn over_one_side(
        &mut self,
        x: NodeId,
        run: impl FnOnce(&mut Self, NodeId) -> Built,
    ) -> Built {
        let &[_, channels, length] = self.shape(x) else {
            return Err(GraphError::Shape {
                operator: "pool or convolution over one side",
                shapes: vec![self.shape(x).to_vec()],
                expected: "x [n, c, l]".to_owned(),
            });
        };
        let image = self.reshape(x, &[channels, 1, length])?;
        let result = run(self, image)?;
        let (channels, length) = (self.shape(result)[1], self.shape(result)[3]);
        self.reshape(result, &[channels, length])
    }

    /// Mean over height and width: `[n, c, h, w]` to `[n, c]`.
    pub fn global_avg_pool(&mut self, x: NodeId) -> Built {
        self.mean(x, &[2, 3])
    }

    /// Softmax over the last dimension.
    pub fn softmax(&mut self, x: NodeId) -> Built {
        self.push(Op::Softmax, &[x])
    }

    /// Logarithm of the softmax over the last dimension, without overflow.
    pub fn log_softmax(&mut self, x: NodeId) -> Built {
        self.push(Op::LogSoftmax, &[x])
    }

    /// Standardises over `axes` without weights; see [`Norm`].
    pub fn normalise(&mut self, x: NodeId, norm: Norm, axes: &[usize], epsilon: f32) -> Built {
        self.push(Op::Normalise(Normalise { norm, axes: axes.to_vec(), epsilon }), &[x])
    }

    /// Zeroes a share `rate` of the elements while training; takes its seed from [`STEP_INPUT`].
    pub fn dropout(&mut self, x: NodeId, rate: f32) -> Built {
        let seed = self.step_input()?;
        let stream = self.next_stream();
        self.push(Op::Dropout { rate, stream }, &[x, seed])
    }

    /// The same value, with harm done beside it. Such a graph runs in quarantine only.
    pub fn stressed(&mut self, x: NodeId, stress: Stress) -> Built {
        self.push(Op::Stress(stress), &[x])
    }

    /// `training` while training, `inference` afterwards.
    pub fn phase(&mut self, training: NodeId, inference: NodeId) -> Built {
        self.push(Op::Phase, &[training, inference])
    }

    /// Rows of `table [v, d]` at `index [..]`.
    pub fn embedding(&mut self, table: NodeId, index: NodeId) -> Built {
        self.push(Op::Gather, &[table, index])
    }

    /// The same elements with the leading dimension kept open and `rest` behind it.
    pub fn reshape(&mut self, x: NodeId, rest: &[usize]) -> Built {
        let mut extents = vec![Extent::Rest];
        extents.extend(rest.iter().map(|&size| Extent::Size(size)));
        self.push(Op::Reshape(extents), &[x])
    }

    /// The same elements in exactly this shape. Where the leading dimension is the batch, use [`Graph::reshape`].
    pub fn reshape_exact(&mut self, x: NodeId, shape: &[usize]) -> Built {
        self.push(Op::Reshape(shape.iter().map(|&size| Extent::Size(size)).collect()), &[x])
    }

    /// `[n, ..]` to `[n, product of the rest]`.
    pub fn flatten(&mut self, x: NodeId) -> Built {
        let rest = self.shape(x).iter().skip(1).product();
        self.reshape(x, &[rest])
    }

    /// Dimension `i` of the result is dimension `order[i]` of `x`.
    pub fn permute(&mut self, x: NodeId, order: &[usize]) -> Built {
        self.push(Op::Permute(order.to_vec()), &[x])
    }

    /// Swaps two dimensions.
    pub fn transpose(&mut self, x: NodeId, first: usize, second: usize) -> Built {
        let rank = self.shape(x).len();
        let mut order: Vec<usize> = (0..rank).collect();
        if first < rank && second < rank {
            order.swap(first, second);
            return self.permute(x, &order);
        }
        Err(GraphError::Shape {
            operator: "transpose",
            shapes: vec![self.shape(x).to_vec()],
            expected: format!("dimensions {first} and {second}"),
        })
    }

    /// Joins along `axis`.
    pub fn concat(&mut self, parts: &[NodeId], axis: usize) -> Built {
        self.push(Op::Concat { axis }, parts)
    }

    /// Elements `start` to below `end` of `axis`.
    pub fn slice(&mut self, x: NodeId, axis: usize, start: usize, end: usize) -> Built {
        self.push(Op::Slice { axis, start, end }, &[x])
    }

    /// Sum over `axes` (ascending), which disappear.
    pub fn sum(&mut self, x: NodeId, axes: &[usize]) -> Built {
        let kept = self.sum_keep(x, axes)?;
        self.squeeze(kept, axes)
    }

    /// Mean over `axes` (ascending), which disappear.
    pub fn mean(&mut self, x: NodeId, axes: &[usize]) -> Built {
        let kept = self.mean_keep(x, axes)?;
        self.squeeze(kept, axes)
    }

    /// Sum of all elements.
    pub fn sum_all(&mut self, x: NodeId) -> Built {
        let axes: Vec<usize> = (0..self.shape(x).len()).collect();
        self.sum(x, &axes)
    }

    /// Mean of all elements.
    pub fn mean_all(&mut self, x: NodeId) -> Built {
        let axes: Vec<usize> = (0..self.shape(x).len()).collect();
        self.mean(x, &axes)
    }

    /// Sum over `axes` (ascending), which stay with size 1.
    pub fn sum_keep(&mut self, x: NodeId, axes: &[usize]) -> Built {
        self.push(Op::Reduce { kind: Reduction::Sum, axes: axes.to_vec() }, &[x])
    }

    /// Mean over `axes` (ascending), which stay with size 1.
    pub fn mean_keep(&mut self, x: NodeId, axes: &[usize]) -> Built {
        self.push(Op::Reduce { kind: Reduction::Mean, axes: axes.to_vec() }, &[x])
    }

    /// Drops dimensions of size 1; the leading dimension, where kept, stays open for another batch.
    fn squeeze(&mut self, x: NodeId, axes: &[usize]) -> Built {
        let shape = self.shape(x);
        let kept = (0..shape.len()).filter(|axis| !axes.contains(axis));
        let extents =
            kept.map(|axis| if axis == 0 { Extent::Rest } else { Extent::Size(shape[axis]) });
        let extents = extents.collect();
        self.push(Op::Reshape(extents), &[x])
    }

    /// Mean over all rows of `-log softmax(logits)[label]`; labels are class numbers in `f32`.
    pub fn cross_entropy(&mut self, logits: NodeId, labels: NodeId) -> Built {
        self.push(Op::CrossEntropy, &[logits, labels])
    }

    /// Mean of the squared differences.
    pub fn mse(&mut self, prediction: NodeId, target: NodeId) -> Built {
        let difference = self.sub(prediction, target)?;
        let square = self.square(difference)?;
        self.mean_all(square)
    }

    /// The same value, through which no gradient passes.
    pub fn stop_gradient(&mut self, x: NodeId) -> Built {
        self.push(Op::StopGradient, &[x])
    }
}
