//! Elementwise functions, their derivatives, dropout.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{Array, Real};
use crate::dropout;
use crate::op::{Binary, Unary};

pub(super) fn unary<T: Real>(function: Unary, x: &Array<T>) -> Array<T> {
    let data = x.data.iter().map(|&value| apply(function, value)).collect();
    Array { shape: x.shape.clone(), data }
}

fn apply<T: Real>(function: Unary, x: T) -> T {
    let indicator = |holds: bool| if holds { T::ONE } else { T::ZERO };
    match function {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Square => x * x,
        Unary::Abs => x.magnitude(),
        // Written so that NaN stays NaN.
        Unary::Relu => {
            if x < T::ZERO {
                T::ZERO
            } else {
                x
            }
        }
        Unary::Gelu => x * normal_distribution(x),
        Unary::Silu => x * sigmoid(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Tanh => x.tanh(),
        Unary::Softplus => {
            let positive = if x < T::ZERO { T::ZERO } else { x };
            positive + (-x.magnitude()).exp().ln_1p()
        }
        Unary::Erf => x.erf(),
        Unary::Step => indicator(x > T::ZERO),
        Unary::Sign => indicator(x > T::ZERO) - indicator(x < T::ZERO),
        Unary::Clamp { low, high } => {
            let (low, high) = (T::from_f32(low), T::from_f32(high));
            if x < low {
                low
            } else if x > high {
                high
            } else {
                x
            }
        }
        Unary::Within { low, high } => indicator(x >= T::from_f32(low) && x <= T::from_f32(high)),
        Unary::Scale { factor } => x * T::from_f32(factor),
        Unary::Offset { by } => x + T::from_f32(by),
    }
}

/// `f'(v) g`, with `v` as [`Unary::gradient_by_output`] says.
pub(super) fn unary_gradient<T: Real>(
    function: Unary,
    v: &Array<T>,
    gradient: &Array<T>,
) -> Array<T> {
    let pairs = v.data.iter().zip(&gradient.data);
    let data = pairs.map(|(&v, &g)| derivative(function, v) * g).collect();
    Array { shape: v.shape.clone(), data }
}

fn derivative<T: Real>(function: Unary, v: T) -> T {
    let number = T::from_f64;
    match function {
        Unary::Neg => -T::ONE,
        Unary::Exp => v,
        Unary::Log => T::ONE / v,
        Unary::Sqrt => number(0.5) / v,
        Unary::Square => v + v,
        Unary::Abs => apply(Unary::Sign, v),
        Unary::Relu => apply(Unary::Step, v),
        Unary::Gelu => normal_distribution(v) + v * normal_density(v),
        Unary::Silu => {
            let s = sigmoid(v);
            s * (T::ONE + v * (T::ONE - s))
        }
        Unary::Sigmoid => v * (T::ONE - v),
        Unary::Tanh => T::ONE - v * v,
        Unary::Softplus => sigmoid(v),
        Unary::Erf => number(2.0 / PI.sqrt()) * (-(v * v)).exp(),
        Unary::Step | Unary::Sign | Unary::Within { .. } => T::ZERO,
        Unary::Clamp { low, high } => apply(Unary::Within { low, high }, v),
        Unary::Scale { factor } => T::from_f32(factor),
        Unary::Offset { .. } => T::ONE,
    }
}

/// Split by sign, so that neither tail overflows.
fn sigmoid<T: Real>(x: T) -> T {
    if x < T::ZERO {
        let tail = x.exp();
        return tail / (T::ONE + tail);
    }
    T::ONE / (T::ONE + (-x).exp())
}

/// `Phi(x)` by the complementary error function, accurate in the lower tail.
fn normal_distribution<T: Real>(x: T) -> T {
    T::from_f64(0.5) * (-x * T::from_f64(FRAC_1_SQRT_2)).erfc()
}

fn normal_density<T: Real>(x: T) -> T {
    T::from_f64(1.0 / (2.0 * PI).sqrt()) * (x * x * T::from_f64(-0.5)).exp()
}

pub(super) fn binary<T: Real>(
    function: Binary,
    a: &Array<T>,
    b: &Array<T>,
    shape: &[usize],
) -> Array<T> {
    Array::from_fn(shape, |index| {
        let (a, b) = (broadcast_at(a, index), broadcast_at(b, index));
        match function {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
        }
    })
}

/// The element of `x` that broadcasting puts at `index`.
pub(super) fn broadcast_at<T: Real>(x: &Array<T>, index: &[usize]) -> T {
    x.data[broadcast_offset(&x.shape, index)]
}

/// Where broadcasting reads, for a larger index aligned at the end.
pub(super) fn broadcast_offset(shape: &[usize], index: &[usize]) -> usize {
    let aligned = &index[index.len() - shape.len()..];
    let places = aligned.iter().zip(shape);
    places.fold(0, |offset, (&at, &size)| offset * size + if size == 1 { 0 } else { at })
}

pub(super) fn dropout<T: Real>(rate: f32, stream: u32, x: &Array<T>, seed: &Array<T>) -> Array<T> {
    let mask = dropout::Mask::new(rate, stream, seed.data[0].to_f64() as f32);
    let factor = T::from_f32(mask.factor());
    let keep =
        |(index, &value): (usize, &T)| if mask.keeps(index) { value * factor } else { T::ZERO };
    Array { shape: x.shape.clone(), data: x.data.iter().enumerate().map(keep).collect() }
}
