//! How far the loop of each operator may be from the interpreter in double precision, and why.

use crate::op::{Op, Unary};

/// A bound on rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Largest accepted difference, in the measure of [`super::TOLERANCE`], for the same single-precision operands.
    pub limit: f32,
    /// Where the difference comes from.
    pub reason: &'static str,
}

const EXACT: Tolerance =
    Tolerance { limit: 0.0, reason: "values are moved or chosen, not computed" };
const ROUNDED: Tolerance = Tolerance { limit: 5e-7, reason: "a few operations, each rounded once" };
const POLYNOMIAL: Tolerance = Tolerance {
    limit: 4e-6,
    reason: "elementary functions by polynomials, a few units in the last place",
};
const SUM: Tolerance =
    Tolerance { limit: 1e-5, reason: "a sum in another order, of up to some thousand terms" };
const PRODUCT: Tolerance =
    Tolerance { limit: 2e-5, reason: "sums of products in another order, with signs that cancel" };
const EXPONENTIAL_SUM: Tolerance =
    Tolerance { limit: 1e-5, reason: "exponentials and their sum, in single precision" };
const STATISTICS: Tolerance = Tolerance {
    limit: 5e-5,
    reason: "differences from a mean over a deviation, both sums of many terms",
};

/// The tolerance of an operator.
pub fn tolerance(op: &Op) -> Tolerance {
    match op {
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
        | Op::MaxPool(_)
        | Op::MaxPoolPick(_)
        | Op::StopGradient
        | Op::Stress(_) => EXACT,
        Op::Unary(function) => unary(*function),
        Op::UnaryGradient(_) => POLYNOMIAL,
        Op::Binary(_) | Op::Dropout { .. } | Op::BroadcastLike(_) => ROUNDED,
        Op::MatMul { .. }
        | Op::Conv2d(_)
        | Op::Conv2dInputGradient(_)
        | Op::Conv2dWeightGradient(_) => PRODUCT,
        Op::MaxPoolGradient(_)
        | Op::AvgPool(_)
        | Op::AvgPoolGradient(_)
        | Op::ScatterAdd
        | Op::Reduce { .. }
        | Op::ReduceLike(_) => SUM,
        Op::Softmax | Op::LogSoftmax | Op::CrossEntropy | Op::CrossEntropyGradient => {
            EXPONENTIAL_SUM
        }
        Op::Normalise(_) | Op::NormaliseGradient(_) => STATISTICS,
    }
}

fn unary(function: Unary) -> Tolerance {
    match function {
        Unary::Neg
        | Unary::Abs
        | Unary::Relu
        | Unary::Step
        | Unary::Sign
        | Unary::Clamp { .. }
        | Unary::Within { .. } => EXACT,
        Unary::Sqrt | Unary::Square | Unary::Scale { .. } | Unary::Offset { .. } => ROUNDED,
        Unary::Exp
        | Unary::Log
        | Unary::Gelu
        | Unary::Silu
        | Unary::Sigmoid
        | Unary::Tanh
        | Unary::Softplus
        | Unary::Erf => POLYNOMIAL,
    }
}
