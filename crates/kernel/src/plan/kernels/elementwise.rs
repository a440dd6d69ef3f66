//! Elementwise loops.

use super::{math, simd};
use crate::dropout::Mask;
use crate::op::{Binary, Unary};
use crate::plan::pattern::Pattern;

#[inline(always)]
fn map(x: &[f32], out: &mut [f32], function: impl Fn(f32) -> f32) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = function(x);
    }
}

#[inline(always)]
fn zip(a: &[f32], b: &[f32], out: &mut [f32], function: impl Fn(f32, f32) -> f32) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = function(a, b);
    }
}

/// Expands the macro `$run` with each function as a closure, so that each becomes a loop of its own.
macro_rules! with_unary {
    ($function:expr, $run:ident) => {
        match $function {
            Unary::Neg => $run!(|x: f32| -x),
            Unary::Exp => $run!(math::exp),
            Unary::Log => $run!(libm::logf),
            Unary::Sqrt => $run!(f32::sqrt),
            Unary::Square => $run!(|x: f32| x * x),
            Unary::Abs => $run!(f32::abs),
            Unary::Relu => $run!(|x: f32| if x < 0.0 { 0.0 } else { x }),
            Unary::Gelu => $run!(|x: f32| x * math::normal_distribution(x)),
            Unary::Silu => $run!(|x: f32| x * math::sigmoid(x)),
            Unary::Sigmoid => $run!(math::sigmoid),
            Unary::Tanh => $run!(math::tanh),
            Unary::Softplus => {
                $run!(|x: f32| (if x < 0.0 { 0.0 } else { x }) + libm::log1pf(math::exp(-x.abs())))
            }
            Unary::Erf => $run!(math::erf),
            Unary::Step => $run!(step),
            Unary::Sign => $run!(sign),
            Unary::Clamp { low, high } => {
                $run!(|x: f32| if x < low {
                    low
                } else if x > high {
                    high
                } else {
                    x
                })
            }
            Unary::Within { low, high } => $run!(|x: f32| within(x, low, high)),
            Unary::Scale { factor } => $run!(|x: f32| x * factor),
            Unary::Offset { by } => $run!(|x: f32| x + by),
        }
    };
}

#[inline(always)]
fn step(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    step(x) - step(-x)
}

#[inline(always)]
fn within(x: f32, low: f32, high: f32) -> f32 {
    if (x >= low) & (x <= high) { 1.0 } else { 0.0 }
}

/// `function(x)`
pub(in crate::plan) fn unary(function: Unary, x: &[f32], out: &mut [f32]) {
    macro_rules! run {
        ($f:expr) => {
            simd(
                #[inline(always)]
                || map(x, out, $f),
            )
        };
    }
    with_unary!(function, run);
}

/// `function` in place.
pub(in crate::plan) fn unary_in_place(function: Unary, values: &mut [f32]) {
    macro_rules! run {
        ($f:expr) => {
            simd(
                #[inline(always)]
                || values.iter_mut().for_each(|value| *value = $f(*value)),
            )
        };
    }
    with_unary!(function, run);
}

/// `function'(v) g`, with `v` as the operator takes it.
pub(in crate::plan) fn unary_gradient(function: Unary, v: &[f32], g: &[f32], out: &mut [f32]) {
    macro_rules! run {
        ($f:expr) => {
            simd(
                #[inline(always)]
                || zip(v, g, out, $f),
            )
        };
    }
    match function {
        Unary::Neg => run!(|_, g: f32| -g),
        Unary::Exp => run!(|v, g| v * g),
        Unary::Log => run!(|v, g| g / v),
        Unary::Sqrt => run!(|v, g| 0.5 * g / v),
        Unary::Square => run!(|v, g| 2.0 * v * g),
        Unary::Abs => run!(|v, g| sign(v) * g),
        Unary::Relu => run!(|v, g| if v > 0.0 { g } else { 0.0 }),
        Unary::Gelu => {
            run!(|v, g| (math::normal_distribution(v) + v * math::normal_density(v)) * g)
        }
        Unary::Silu => run!(|v, g| {
            let s = math::sigmoid(v);
            s * (1.0 + v * (1.0 - s)) * g
        }),
        Unary::Sigmoid => run!(|v, g| v * (1.0 - v) * g),
        Unary::Tanh => run!(|v: f32, g| (1.0 - v * v) * g),
        Unary::Softplus => run!(|v, g| math::sigmoid(v) * g),
        Unary::Erf => run!(|v: f32, g| std::f32::consts::FRAC_2_SQRT_PI * math::exp(-v * v) * g),
        Unary::Step | Unary::Sign | Unary::Within { .. } => out.fill(0.0),
        Unary::Clamp { low, high } => run!(|v, g| within(v, low, high) * g),
        Unary::Scale { factor } => run!(|_, g| factor * g),
        Unary::Offset { .. } => run!(|_, g| g),
    }
}

/// `function(a, b)`, each broadcast by its pattern.
pub(in crate::plan) fn binary(
    function: Binary,
    (a, a_pattern): (&[f32], &Pattern),
    (b, b_pattern): (&[f32], &Pattern),
    out: &mut [f32],
) {
    macro_rules! run {
        ($f:expr) => {
            match (a_pattern, b_pattern) {
                (Pattern::Equal, Pattern::Equal) => simd(
                    #[inline(always)]
                    || zip(a, b, out, $f),
                ),
                (Pattern::Equal, &Pattern::Cycle { inner, count }) => simd(
                    #[inline(always)]
                    || with_cycle(a, b, inner, count, out, $f),
                ),
                (&Pattern::Cycle { inner, count }, Pattern::Equal) => simd(
                    #[inline(always)]
                    || with_cycle(b, a, inner, count, out, |b, a| $f(a, b)),
                ),
                _ => general((a, a_pattern), (b, b_pattern), out, $f),
            }
        };
    }
    match function {
        Binary::Add => run!(|a, b| a + b),
        Binary::Sub => run!(|a, b| a - b),
        Binary::Mul => run!(|a, b| a * b),
        Binary::Div => run!(|a, b| a / b),
    }
}

/// `large` with a small operand that repeats: whole rows of it, or one value for `inner` elements.
#[inline(always)]
fn with_cycle(
    large: &[f32],
    small: &[f32],
    inner: usize,
    count: usize,
    out: &mut [f32],
    function: impl Fn(f32, f32) -> f32,
) {
    if inner == 1 {
        for (out, large) in out.chunks_exact_mut(count).zip(large.chunks_exact(count)) {
            zip(large, small, out, &function);
        }
        return;
    }
    let runs = out.chunks_exact_mut(inner).zip(large.chunks_exact(inner));
    for ((out, large), &value) in runs.zip(small.iter().cycle()) {
        map(large, out, |x| function(x, value));
    }
}

/// Any two patterns, one element at a time.
fn general(
    (a, a_pattern): (&[f32], &Pattern),
    (b, b_pattern): (&[f32], &Pattern),
    out: &mut [f32],
    function: impl Fn(f32, f32) -> f32,
) {
    a_pattern.for_each(out.len(), |at, from| out[at] = a[from]);
    b_pattern.for_each(out.len(), |at, from| out[at] = function(out[at], b[from]));
}

/// Zeroes what the mask drops and scales the rest.
pub(in crate::plan) fn dropout(mask: Mask, x: &[f32], out: &mut [f32]) {
    let factor = mask.factor();
    for (index, (out, &x)) in out.iter_mut().zip(x).enumerate() {
        *out = if mask.keeps(index) { x * factor } else { 0.0 };
    }
}

/// Adds a bias and applies a function, in place: the epilogue of a product.
pub(in crate::plan) fn bias_rows(bias: &[f32], values: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in values.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, &bias)| *value += bias);
            }
        },
    );
}

/// Adds one value to each run of `inner` elements, the values in turn.
pub(in crate::plan) fn bias_channels(bias: &[f32], inner: usize, values: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (run, &bias) in values.chunks_exact_mut(inner).zip(bias.iter().cycle()) {
                run.iter_mut().for_each(|value| *value += bias);
            }
        },
    );
}

/// A bias and the rectifier in one pass: much the commonest epilogue.
pub(in crate::plan) fn bias_rows_relu(bias: &[f32], values: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in values.chunks_exact_mut(bias.len()) {
                for (value, &bias) in row.iter_mut().zip(bias) {
                    let sum = *value + bias;
                    *value = if sum < 0.0 { 0.0 } else { sum };
                }
            }
        },
    );
}
