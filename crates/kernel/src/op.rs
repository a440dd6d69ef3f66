//! The closed set of operators and their attributes.
//!
//! Every match over [`Op`] in this crate is exhaustive: an operator added here does not compile until its
//! shape, value, gradient and plan are decided. Attributes are `f32` so that the manifest's JSON is exact.

use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::stress::Stress;
use crate::tensor::Tensor;

/// One operator with its attributes. Operands are listed with the node that holds the operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// A value given at each run. With `batched` its leading dimension is the batch.
    Input {
        /// Unique among the inputs.
        name: String,
        /// Shape with the present batch size in front.
        shape: Vec<usize>,
        /// Whether [`crate::Graph::with_batch`] changes the leading dimension.
        batched: bool,
    },
    /// A named value that outlives a run.
    Parameter {
        /// Unique among the parameters.
        name: String,
        /// Its shape; never depends on the batch.
        shape: Vec<usize>,
        /// How it starts.
        init: Init,
        /// Whether an optimiser may change it (running statistics are not trainable).
        trainable: bool,
    },
    /// A value fixed in the graph.
    Constant(Tensor),
    /// Elementwise function of one operand.
    Unary(Unary),
    /// `(v, g)` to `f'(v) * g`, where `v` is the operand of `f` or, where [`Unary::gradient_by_output`] says so, its result.
    UnaryGradient(Unary),
    /// Elementwise function of two operands, broadcast as in NumPy.
    Binary(Binary),
    /// Matrix product over the last two dimensions: `(a, b)`. A `b` of rank 2 is shared by every leading index
    /// of `a`; otherwise the leading dimensions must be equal.
    MatMul {
        /// Use the transpose of each matrix of `a`.
        transpose_a: bool,
        /// Use the transpose of each matrix of `b`.
        transpose_b: bool,
    },
    /// Cross-correlation of `x [n, c, h, w]` with `weight [o, c / groups, kh, kw]`.
    Conv2d(Conv),
    /// `(gradient, weight, like x)`: gradient of [`Op::Conv2d`] with respect to its input.
    Conv2dInputGradient(Conv),
    /// `(x, gradient, like weight)`: gradient of [`Op::Conv2d`] with respect to its weight.
    Conv2dWeightGradient(Conv),
    /// Largest value of each window of `x [n, c, h, w]`; padding counts as minus infinity, the first of equals wins.
    MaxPool(Pool),
    /// `(x, gradient)`: adds each gradient at the place of its window's largest value.
    MaxPoolGradient(Pool),
    /// `(x, v)`: takes `v` where `x` is largest in its window. The adjoint of [`Op::MaxPoolGradient`].
    MaxPoolPick(Pool),
    /// Mean of each window of `x [n, c, h, w]`; padding counts as zeros (`count_include_pad`).
    AvgPool(Pool),
    /// `(gradient, like x)`: gradient of [`Op::AvgPool`].
    AvgPoolGradient(Pool),
    /// `exp(x) / sum exp(x)` over the last dimension.
    Softmax,
    /// `x - ln sum exp(x)` over the last dimension.
    LogSoftmax,
    /// Standardises over `axes`: see [`Normalise`].
    Normalise(Normalise),
    /// `(x, gradient)`: gradient of [`Op::Normalise`].
    NormaliseGradient(Normalise),
    /// `(x, seed)`: zeroes a share `rate` of the elements and scales the others by `1 / (1 - rate)`. The mask is a
    /// function of the scalar `seed`, `stream` and the element's index only.
    Dropout {
        /// Share to zero, from 0 to below 1.
        rate: f32,
        /// Tells the dropouts of one graph apart.
        stream: u32,
    },
    /// `(training, inference)`: the first while training, the second after [`crate::Graph::inference`].
    Phase,
    /// `(table [v, d], index [..])`: rows of the table, `[.., d]`. Indices are whole numbers in `f32`.
    Gather,
    /// `(index [..], gradient [.., d], like table)`: adds rows up. The adjoint of [`Op::Gather`].
    ScatterAdd,
    /// The same elements in another shape.
    Reshape(Vec<Extent>),
    /// `(x, like)`: the elements of `x` in the shape of `like`.
    ReshapeLike,
    /// Dimension `i` of the result is dimension `order[i]` of the operand.
    Permute(Vec<usize>),
    /// Any number of operands, one after another along `axis`.
    Concat {
        /// Dimension along which they are joined.
        axis: usize,
    },
    /// Elements `start` to below `end` of `axis`.
    Slice {
        /// Dimension to cut.
        axis: usize,
        /// First index.
        start: usize,
        /// One past the last index.
        end: usize,
    },
    /// `(x, like)`: zeros in the shape of `like` with `x` placed at `start` of `axis`. The adjoint of [`Op::Slice`].
    PadLike {
        /// Dimension along which `x` is shorter.
        axis: usize,
        /// Where `x` begins.
        start: usize,
    },
    /// Sum or mean over `axes`, which stay as dimensions of size 1.
    Reduce {
        /// Sum or mean.
        kind: Reduction,
        /// Dimensions to reduce, ascending.
        axes: Vec<usize>,
    },
    /// `(x, like)`: sum or mean of `x` over the dimensions along which `like` would be broadcast to it.
    ReduceLike(Reduction),
    /// `(x, like)`: `x` broadcast to the shape of `like`; with [`Reduction::Mean`] also divided by the number of copies.
    BroadcastLike(Reduction),
    /// `(logits [.., c], labels [..])`: mean over all rows of `-log softmax(logits)[label]`.
    CrossEntropy,
    /// `(logits, labels, gradient [])`: gradient of [`Op::CrossEntropy`] with respect to the logits.
    CrossEntropyGradient,
    /// The operand, through which no gradient passes.
    StopGradient,
    /// The operand, with harm done beside it; runs in quarantine only. Its gradient passes untouched.
    Stress(Stress),
}

/// Elementwise functions of one operand.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root. Its gradient at 0 is infinite.
    Sqrt,
    /// `x * x`
    Square,
    /// `|x|`; its gradient at 0 is 0.
    Abs,
    /// `max(x, 0)`; its gradient at 0 is 0.
    Relu,
    /// `x * Phi(x)`, exact (by the error function), not the tanh approximation.
    Gelu,
    /// `x * sigmoid(x)`
    Silu,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `ln(1 + e^x)`
    Softplus,
    /// Error function.
    Erf,
    /// 1 where `x > 0`, otherwise 0; its gradient is 0.
    Step,
    /// -1, 0 or 1; its gradient is 0.
    Sign,
    /// `min(max(x, low), high)`; its gradient is 1 within the closed interval and 0 outside.
    Clamp {
        /// Smallest result.
        low: f32,
        /// Largest result.
        high: f32,
    },
    /// 1 where `low <= x <= high`, otherwise 0; its gradient is 0.
    Within {
        /// Lower end, included.
        low: f32,
        /// Upper end, included.
        high: f32,
    },
    /// `factor * x`
    Scale {
        /// Fixed factor.
        factor: f32,
    },
    /// `x + by`
    Offset {
        /// Fixed term.
        by: f32,
    },
}

/// Elementwise functions of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
}

/// Sum or arithmetic mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Sum.
    Sum,
    /// Arithmetic mean.
    Mean,
}

/// One dimension of a reshape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Exactly this many.
    Size(usize),
    /// As many as are left; at most one per reshape. The leading one, as a rule, so that the batch may change.
    Rest,
}

/// Attributes of a convolution; each pair is (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// Step between windows.
    pub stride: [usize; 2],
    /// Zeros added at each side.
    pub padding: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Channels are split into this many independent groups.
    pub groups: usize,
}

impl Default for Conv {
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
    }
}

/// Attributes of a pooling window; each pair is (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Size of the window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Padding at each side, at most half the window.
    pub padding: [usize; 2],
}

/// How [`Op::Normalise`] standardises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// `(x - mean) / sqrt(variance + epsilon)`, with the biased variance.
    Standard,
    /// `x / sqrt(mean(x^2) + epsilon)`.
    RootMeanSquare,
}

/// Attributes of a normalisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// Which formula.
    pub norm: Norm,
    /// Dimensions over which the statistics are taken, ascending.
    pub axes: Vec<usize>,
    /// Added to the variance; above 0.
    pub epsilon: f32,
}

impl Unary {
    /// Whether [`Op::UnaryGradient`] takes the function's result in place of its operand. Chosen where the
    /// derivative is simpler in the result, so that the operand need not be kept.
    pub const fn gradient_by_output(self) -> bool {
        match self {
            Self::Exp | Self::Sqrt | Self::Relu | Self::Sigmoid | Self::Tanh => true,
            Self::Neg
            | Self::Log
            | Self::Square
            | Self::Abs
            | Self::Gelu
            | Self::Silu
            | Self::Softplus
            | Self::Erf
            | Self::Step
            | Self::Sign
            | Self::Clamp { .. }
            | Self::Within { .. }
            | Self::Scale { .. }
            | Self::Offset { .. } => false,
        }
    }
}

impl Op {
    /// The operator's name, as the manifest spells it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Input { .. } => "input",
            Self::Parameter { .. } => "parameter",
            Self::Constant(_) => "constant",
            Self::Unary(function) => function.name(),
            Self::UnaryGradient(_) => "unary_gradient",
            Self::Binary(Binary::Add) => "add",
            Self::Binary(Binary::Sub) => "sub",
            Self::Binary(Binary::Mul) => "mul",
            Self::Binary(Binary::Div) => "div",
            Self::MatMul { .. } => "mat_mul",
            Self::Conv2d(_) => "conv2d",
            Self::Conv2dInputGradient(_) => "conv2d_input_gradient",
            Self::Conv2dWeightGradient(_) => "conv2d_weight_gradient",
            Self::MaxPool(_) => "max_pool",
            Self::MaxPoolGradient(_) => "max_pool_gradient",
            Self::MaxPoolPick(_) => "max_pool_pick",
            Self::AvgPool(_) => "avg_pool",
            Self::AvgPoolGradient(_) => "avg_pool_gradient",
            Self::Softmax => "softmax",
            Self::LogSoftmax => "log_softmax",
            Self::Normalise(_) => "normalise",
            Self::NormaliseGradient(_) => "normalise_gradient",
            Self::Dropout { .. } => "dropout",
            Self::Phase => "phase",
            Self::Gather => "gather",
            Self::ScatterAdd => "scatter_add",
            Self::Reshape(_) => "reshape",
            Self::ReshapeLike => "reshape_like",
            Self::Permute(_) => "permute",
            Self::Concat { .. } => "concat",
            Self::Slice { .. } => "slice",
            Self::PadLike { .. } => "pad_like",
            Self::Reduce { .. } => "reduce",
            Self::ReduceLike(_) => "reduce_like",
            Self::BroadcastLike(_) => "broadcast_like",
            Self::CrossEntropy => "cross_entropy",
            Self::CrossEntropyGradient => "cross_entropy_gradient",
            Self::StopGradient => "stop_gradient",
            Self::Stress(stress) => stress.name(),
        }
    }

    /// How many of the leading operands give data; the last one of the `like` operators gives its shape only.
    pub fn data_operands(&self, operands: usize) -> usize {
        match self {
            Self::Conv2dInputGradient(_)
            | Self::Conv2dWeightGradient(_)
            | Self::AvgPoolGradient(_)
            | Self::ScatterAdd
            | Self::ReshapeLike
            | Self::PadLike { .. }
            | Self::ReduceLike(_)
            | Self::BroadcastLike(_) => operands.saturating_sub(1),
            Self::Phase => 1,
            Self::Input { .. }
            | Self::Parameter { .. }
            | Self::Constant(_)
            | Self::Unary(_)
            | Self::UnaryGradient(_)
            | Self::Binary(_)
            | Self::MatMul { .. }
            | Self::Conv2d(_)
            | Self::MaxPool(_)
            | Self::MaxPoolGradient(_)
            | Self::MaxPoolPick(_)
            | Self::AvgPool(_)
            | Self::Softmax
            | Self::LogSoftmax
            | Self::Normalise(_)
            | Self::NormaliseGradient(_)
            | Self::Dropout { .. }
            | Self::Gather
            | Self::Reshape(_)
            | Self::Permute(_)
            | Self::Concat { .. }
            | Self::Slice { .. }
            | Self::Reduce { .. }
            | Self::CrossEntropy
            | Self::CrossEntropyGradient
            | Self::StopGradient
            | Self::Stress(_) => operands,
        }
    }
}

impl Unary {
    const fn name(self) -> &'static str {
        match self {
            Self::Neg => "neg",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Square => "square",
            Self::Abs => "abs",
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::Silu => "silu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Softplus => "softplus",
            Self::Erf => "erf",
            Self::Step => "step",
            Self::Sign => "sign",
            Self::Clamp { .. } => "clamp",
            Self::Within { .. } => "within",
            Self::Scale { .. } => "scale",
            Self::Offset { .. } => "offset",
        }
    }
}
