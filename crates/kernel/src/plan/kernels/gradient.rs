//! Gradients of softmax and normalisation with everything around them in one pass over the rows.

use super::statistics::{Groups, dot, normalise_gradient_row, row_moments, sum_of};
use super::{math, simd};

/// `y (g - sum(g y))` of each row: the gradient of a softmax with result `y`.
pub(in crate::plan) fn softmax_gradient(classes: usize, y: &[f32], g: &[f32], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            let rows = y.chunks_exact(classes).zip(g.chunks_exact(classes));
            for ((y, g), out) in rows.zip(out.chunks_exact_mut(classes)) {
                let sum = dot(y, g);
                for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                    *out = y * (g - sum);
                }
            }
        },
    );
}

/// `g - e^y sum(g)` of each row: the gradient of a log-softmax with result `y`.
pub(in crate::plan) fn log_softmax_gradient(classes: usize, y: &[f32], g: &[f32], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            out.iter_mut().zip(y).for_each(|(out, &y)| *out = math::exp(y));
            for (out, g) in out.chunks_exact_mut(classes).zip(g.chunks_exact(classes)) {
                let sum = sum_of(g, |value| value);
                out.iter_mut().zip(g).for_each(|(out, &g)| *out = g - *out * sum);
            }
        },
    );
}

/// The gradient of a normalisation of rows whose result is scaled by `weight`: that of `g weight`. `scratch` holds a
/// row.
pub(in crate::plan) fn scaled_normalise_gradient(
    groups: &Groups,
    (x, g, weight): (&[f32], &[f32], &[f32]),
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let width = weight.len();
    let scaled = &mut scratch[..width];
    simd(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(width).zip(g.chunks_exact(width));
            for ((x, g), out) in rows.zip(out.chunks_exact_mut(width)) {
                for ((scaled, &g), &weight) in scaled.iter_mut().zip(g).zip(weight) {
                    *scaled = g * weight;
                }
                normalise_gradient_row(groups, x, scaled, out);
            }
        },
    );
}

/// The gradient of the weight that scales normalised rows: the sum over rows of `g` times the standardised `x`, which
/// is computed again instead of being kept since the forward pass.
pub(in crate::plan) fn normalise_weight_gradient(
    groups: &Groups,
    x: &[f32],
    g: &[f32],
    out: &mut [f32],
) {
    let width = out.len();
    simd(
        #[inline(always)]
        || {
            out.fill(0.0);
            for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
                let (mean, scale) = row_moments(groups, x);
                for ((out, &x), &g) in out.iter_mut().zip(x).zip(g) {
                    *out += (x - mean) * scale * g;
                }
            }
        },
    );
}
