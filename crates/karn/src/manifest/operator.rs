//! The operators a manifest may use, with their attributes as expressions.

use kernel::op::{Binary, Norm, Unary};

use super::Expression;

/// An operator of a manifest. The first part are layers that bring their own weights, the rest are the engine's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operation {
    /// `linear`: over the last dimension, with `<node>.weight` and `<node>.bias`.
    Linear {
        out: Expression,
        start: Starts,
    },
    /// `convolution`: odd `kernel` per side, keeping height and width.
    Convolution {
        out: Expression,
        kernel: Expression,
        groups: Expression,
        start: Starts,
    },
    /// `layer_norm`: over the last dimension, with weight and bias.
    LayerNorm {
        epsilon: Expression,
    },
    /// `attention`: of query, key and value `[n, t, d]`.
    Attention {
        heads: Expression,
    },
    /// `weight`: a trainable tensor.
    Weight {
        shape: Vec<Expression>,
        start: Starts,
    },
    /// `constant`: one number.
    Constant {
        value: Expression,
    },
    Unary(Unary),
    Scale {
        by: Expression,
    },
    Offset {
        by: Expression,
    },
    Clamp {
        low: Expression,
        high: Expression,
    },
    Binary(Binary),
    MatMul {
        transpose_a: bool,
        transpose_b: bool,
    },
    Softmax,
    LogSoftmax,
    Normalise {
        norm: Norm,
        axes: Vec<Expression>,
        epsilon: Expression,
    },
    Dropout {
        rate: Expression,
    },
    MaxPool {
        kernel: Expression,
    },
    AvgPool {
        kernel: Expression,
    },
    Reshape {
        shape: Vec<Expression>,
    },
    Permute {
        order: Vec<Expression>,
    },
    Concat {
        axis: Expression,
    },
    Slice {
        axis: Expression,
        start: Expression,
        end: Expression,
    },
    Sum {
        axes: Vec<Expression>,
    },
    Mean {
        axes: Vec<Expression>,
    },
}

/// How weights start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starts {
    /// `hidden`: before a rectifier.
    Hidden,
    /// `linear`: before no function, gain 1.
    Linear,
    /// `zero`
    Zero,
    /// `one`
    One,
}

impl Starts {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "hidden" => Self::Hidden,
            "linear" => Self::Linear,
            "zero" => Self::Zero,
            "one" => Self::One,
            _ => return None,
        })
    }
}

/// What is read of a node's attributes.
pub(crate) trait Attributes {
    /// A number or an expression.
    fn number(&mut self, name: &'static str) -> Option<Expression>;
    /// One with a default.
    fn number_or(&mut self, name: &'static str, default: f64) -> Option<Expression>;
    /// A list of numbers or expressions.
    fn numbers(&mut self, name: &'static str) -> Option<Vec<Expression>>;
    /// How weights start.
    fn starts(&mut self) -> Option<Starts>;
}

/// Reads an operator; the outer `None` when there is none of that name, the inner when an attribute is at fault, which
/// the attributes have told. Beside it: how many inputs it takes (`None`: at least one).
pub(crate) fn read(
    name: &str,
    attributes: &mut dyn Attributes,
) -> Option<(Option<Operation>, Option<usize>)> {
    use Operation as O;
    let unary = |function| Some((Some(O::Unary(function)), Some(1)));
    let binary = |function| Some((Some(O::Binary(function)), Some(2)));
    let product =
        |transpose_a, transpose_b| Some((Some(O::MatMul { transpose_a, transpose_b }), Some(2)));
    let a = attributes;
    let (operation, inputs) = match name {
        "neg" => return unary(Unary::Neg),
        "exp" => return unary(Unary::Exp),
        "log" => return unary(Unary::Log),
        "sqrt" => return unary(Unary::Sqrt),
        "square" => return unary(Unary::Square),
        "abs" => return unary(Unary::Abs),
        "relu" => return unary(Unary::Relu),
        "gelu" => return unary(Unary::Gelu),
        "silu" => return unary(Unary::Silu),
        "sigmoid" => return unary(Unary::Sigmoid),
        "tanh" => return unary(Unary::Tanh),
        "softplus" => return unary(Unary::Softplus),
        "erf" => return unary(Unary::Erf),
        "add" => return binary(Binary::Add),
        "sub" => return binary(Binary::Sub),
        "mul" => return binary(Binary::Mul),
        "div" => return binary(Binary::Div),
        "mat_mul" => return product(false, false),
        "mat_mul_transposed" => return product(false, true),
        "mat_mul_of_transposed" => return product(true, false),
        "softmax" => return Some((Some(O::Softmax), Some(1))),
        "log_softmax" => return Some((Some(O::LogSoftmax), Some(1))),
        "linear" => {
            let (out, start) = (a.number("out"), a.starts());
            (out.zip(start).map(|(out, start)| O::Linear { out, start }), Some(1))
        }
        "convolution" => {
            let (out, kernel) = (a.number("out"), a.number("kernel"));
            let (groups, start) = (a.number_or("groups", 1.0), a.starts());
            let all = out.zip(kernel).zip(groups.zip(start));
            let make =
                |((out, kernel), (groups, start))| O::Convolution { out, kernel, groups, start };
            (all.map(make), Some(1))
        }
        "layer_norm" => {
            let epsilon = a.number_or("epsilon", 1e-5);
            (epsilon.map(|epsilon| O::LayerNorm { epsilon }), Some(1))
        }
        "attention" => (a.number("heads").map(|heads| O::Attention { heads }), Some(3)),
        "weight" => {
            let all = a.numbers("shape").zip(a.starts());
            (all.map(|(shape, start)| O::Weight { shape, start }), Some(0))
        }
        "constant" => (a.number("value").map(|value| O::Constant { value }), Some(0)),
        "scale" => (a.number("by").map(|by| O::Scale { by }), Some(1)),
        "offset" => (a.number("by").map(|by| O::Offset { by }), Some(1)),
        "clamp" => {
            let all = a.number("low").zip(a.number("high"));
            (all.map(|(low, high)| O::Clamp { low, high }), Some(1))
        }
        "standardise" | "root_mean_square_norm" => {
            let norm = if name == "standardise" { Norm::Standard } else { Norm::RootMeanSquare };
            let all = a.numbers("axes").zip(a.number_or("epsilon", 1e-5));
            (all.map(|(axes, epsilon)| O::Normalise { norm, axes, epsilon }), Some(1))
        }
        "dropout" => (a.number("rate").map(|rate| O::Dropout { rate }), Some(1)),
        "max_pool" => (a.number("kernel").map(|kernel| O::MaxPool { kernel }), Some(1)),
        "avg_pool" => (a.number("kernel").map(|kernel| O::AvgPool { kernel }), Some(1)),
        "reshape" => (a.numbers("shape").map(|shape| O::Reshape { shape }), Some(1)),
        "permute" => (a.numbers("order").map(|order| O::Permute { order }), Some(1)),
        "concat" => (a.number("axis").map(|axis| O::Concat { axis }), None),
        "slice" => {
            let all = a.number("axis").zip(a.number("start").zip(a.number("end")));
            (all.map(|(axis, (start, end))| O::Slice { axis, start, end }), Some(1))
        }
        "sum" => (a.numbers("axes").map(|axes| O::Sum { axes }), Some(1)),
        "mean" => (a.numbers("axes").map(|axes| O::Mean { axes }), Some(1)),
        _ => return None,
    };
    Some((operation, inputs))
}

/// Every name [`read`] knows, for those who ask for another.
pub(crate) const NAMES: &str = "linear, convolution, layer_norm, attention, weight, constant, neg, exp, log, sqrt, square, \
    abs, relu, gelu, silu, sigmoid, tanh, softplus, erf, add, sub, mul, div, mat_mul, mat_mul_transposed, \
    mat_mul_of_transposed, softmax, log_softmax, scale, offset, clamp, standardise, root_mean_square_norm, dropout, \
    max_pool, avg_pool, reshape, permute, concat, slice, sum, mean";
