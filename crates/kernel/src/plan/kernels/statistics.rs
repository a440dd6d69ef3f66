//! Reductions, softmax, normalisation and the classification loss.

use super::{math, simd, whole};
use crate::error::RunError;
use crate::op::{Norm, Normalise, Reduction};
use crate::plan::pattern::Pattern;

/// Partial sums of a long run: enough for the widest vectors, always the same, so that the result does not depend
/// on the machine.
const LANES: usize = 16;

/// Sum of the partial sums by halves, which takes four steps of vectors instead of sixteen.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Sum in a fixed order: sixteen partial sums, then those by halves, then the rest.
#[inline(always)]
pub(super) fn sum_of(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    total(lanes) + rest.iter().map(|&value| term(value)).sum::<f32>()
}

/// Sum of products in the same order as [`sum_of`].
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = a.len() - a.len() % LANES;
    for (a, b) in a[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES)) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    total(lanes) + a[whole..].iter().zip(&b[whole..]).map(|(&a, &b)| a * b).sum::<f32>()
}

/// `out[j]`: sum or mean of `x` over the elements that belong to `j`.
pub(in crate::plan) fn reduce(kind: Reduction, pattern: &Pattern, x: &[f32], out: &mut [f32]) {
    match *pattern {
        Pattern::Equal => out.copy_from_slice(x),
        Pattern::Cycle { inner: 1, count } => simd(
            #[inline(always)]
            || {
                out.fill(0.0);
                for row in x.chunks_exact(count) {
                    out.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
                }
            },
        ),
        Pattern::Cycle { inner, count } => simd(
            #[inline(always)]
            || {
                out.fill(0.0);
                for (run, values) in x.chunks_exact(inner).enumerate() {
                    out[run % count] += sum_of(values, |value| value);
                }
            },
        ),
        Pattern::General(_) => {
            out.fill(0.0);
            pattern.for_each(x.len(), |at, small| out[small] += x[at]);
        }
    }
    if kind == Reduction::Mean {
        let copies = (x.len() / out.len()) as f32;
        out.iter_mut().for_each(|value| *value /= copies);
    }
}

/// `out[i]`: the element of `x` that belongs to it, for a mean divided by the number of copies.
pub(in crate::plan) fn broadcast(kind: Reduction, pattern: &Pattern, x: &[f32], out: &mut [f32]) {
    let share = match kind {
        Reduction::Sum => 1.0,
        Reduction::Mean => 1.0 / (out.len() / x.len()) as f32,
    };
    match *pattern {
        Pattern::Cycle { inner, count } if inner > 1 => {
            for (run, &value) in out.chunks_exact_mut(inner).zip(x[..count].iter().cycle()) {
                run.fill(value * share);
            }
        }
        _ => pattern.for_each(out.len(), |at, small| out[at] = x[small] * share),
    }
}

/// The largest element; NaN where there is one is left to the sums that follow. By lanes, as [`sum_of`]: one
/// comparison after the other would wait for itself.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let larger = |best: f32, value: f32| if value > best { value } else { best };
    let chunks = row.chunks_exact(LANES);
    let mut best = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    if row.len() >= LANES {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = larger(*lane, value);
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] = larger(lanes[lane], lanes[lane + half]);
            }
        }
        best = larger(best, lanes[0]);
    }
    best
}

/// `out`: `e^(x - largest of its row)`. The exponentials are taken of all rows at once, because those of a classifier
/// are shorter than a vector.
#[inline(always)]
fn shifted_exps(classes: usize, x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks_exact(classes).zip(out.chunks_exact_mut(classes)) {
        let largest = largest(x);
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = x - largest);
    }
    out.iter_mut().for_each(|value| *value = math::exp(*value));
}

/// Softmax of each row.
pub(in crate::plan) fn softmax(classes: usize, x: &[f32], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            shifted_exps(classes, x, out);
            for row in out.chunks_exact_mut(classes) {
                let share = 1.0 / sum_of(row, |value| value);
                row.iter_mut().for_each(|value| *value *= share);
            }
        },
    );
}

/// Logarithm of the softmax of each row.
pub(in crate::plan) fn log_softmax(classes: usize, x: &[f32], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            shifted_exps(classes, x, out);
            for (x, out) in x.chunks_exact(classes).zip(out.chunks_exact_mut(classes)) {
                let log_sum = largest(x) + libm::logf(sum_of(out, |value| value));
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = x - log_sum);
            }
        },
    );
}

/// Mean over rows of `-log softmax(logits)[label]`. `scratch` holds as many elements as the logits.
pub(in crate::plan) fn cross_entropy(
    classes: usize,
    logits: &[f32],
    labels: &[f32],
    scratch: &mut [f32],
) -> Result<f32, RunError> {
    simd(
        #[inline(always)]
        || {
            let exps = &mut scratch[..logits.len()];
            shifted_exps(classes, logits, exps);
            let mut sum = 0.0;
            let rows = logits.chunks_exact(classes).zip(exps.chunks_exact(classes));
            for ((row, exps), &label) in rows.zip(labels) {
                let label = whole("cross_entropy", label, classes)?;
                sum += largest(row) - row[label] + libm::logf(sum_of(exps, |value| value));
            }
            Ok(sum / labels.len() as f32)
        },
    )
}

/// `(softmax(logits) - one_hot(labels)) g / rows`
pub(in crate::plan) fn cross_entropy_gradient(
    classes: usize,
    logits: &[f32],
    labels: &[f32],
    gradient: f32,
    out: &mut [f32],
) -> Result<(), RunError> {
    let share = gradient / labels.len() as f32;
    softmax(classes, logits, out);
    for (row, &label) in out.chunks_exact_mut(classes).zip(labels) {
        row[whole("cross_entropy_gradient", label, classes)?] -= 1.0;
        row.iter_mut().for_each(|value| *value *= share);
    }
    Ok(())
}

/// How a normalisation groups its elements.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::plan) struct Groups {
    pub(in crate::plan) norm: Norm,
    pub(in crate::plan) epsilon: f32,
    pub(in crate::plan) pattern: Pattern,
    /// Number of groups.
    pub(in crate::plan) count: usize,
}

impl Groups {
    pub(in crate::plan) fn new(attributes: &Normalise, shape: &[usize]) -> Self {
        let mut small = shape.to_vec();
        attributes.axes.iter().for_each(|&axis| small[axis] = 1);
        Self {
            norm: attributes.norm,
            epsilon: attributes.epsilon,
            pattern: Pattern::new(&small, shape),
            count: small.iter().product(),
        }
    }

    /// The length of a row, where each group is one.
    pub(in crate::plan) fn row(&self, len: usize) -> Option<usize> {
        match self.pattern {
            Pattern::Cycle { inner, count } if inner * count == len => Some(inner),
            _ => None,
        }
    }

    /// The length of the runs of one group.
    pub(in crate::plan) fn width(&self) -> usize {
        match self.pattern {
            Pattern::Cycle { inner, .. } => inner,
            Pattern::Equal | Pattern::General(_) => 1,
        }
    }

    /// Elements of scratch a call needs.
    pub(in crate::plan) fn scratch_len(&self) -> usize {
        4 * self.count
    }
}

/// Mean and reciprocal deviation of one row.
#[inline(always)]
pub(super) fn row_moments(groups: &Groups, x: &[f32]) -> (f32, f32) {
    let len = x.len() as f32;
    let mean = match groups.norm {
        Norm::Standard => sum_of(x, |value| value) / len,
        Norm::RootMeanSquare => 0.0,
    };
    let variance = sum_of(x, |value| (value - mean) * (value - mean)) / len;
    (mean, 1.0 / (variance + groups.epsilon).sqrt())
}

/// Mean and reciprocal deviation of every group, in the first two quarters of the scratch.
fn moments(groups: &Groups, x: &[f32], scratch: &mut [f32]) {
    let (mean, rest) = scratch.split_at_mut(groups.count);
    let share = groups.count as f32 / x.len() as f32;
    match groups.norm {
        Norm::Standard => reduce(Reduction::Mean, &groups.pattern, x, mean),
        Norm::RootMeanSquare => mean.fill(0.0),
    }
    let scale = &mut rest[..groups.count];
    scale.fill(0.0);
    groups.pattern.for_each(x.len(), |at, group| {
        let centred = x[at] - mean[group];
        scale[group] += centred * centred;
    });
    scale.iter_mut().for_each(|value| *value = 1.0 / (*value * share + groups.epsilon).sqrt());
}

/// Standardised `x`.
pub(in crate::plan) fn normalise(groups: &Groups, x: &[f32], out: &mut [f32], scratch: &mut [f32]) {
    if let Some(row) = groups.row(x.len()) {
        simd(
            #[inline(always)]
            || {
                for (x, out) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
                    let (mean, scale) = row_moments(groups, x);
                    out.iter_mut().zip(x).for_each(|(out, &x)| *out = (x - mean) * scale);
                }
            },
        );
        return;
    }
    moments(groups, x, scratch);
    let (mean, scale) = scratch.split_at(groups.count);
    groups.pattern.for_each(x.len(), |at, group| out[at] = (x[at] - mean[group]) * scale[group]);
}

/// `(g - mean(g) - y mean(g y)) / deviation`; without the middle term for the root mean square.
pub(in crate::plan) fn normalise_gradient(
    groups: &Groups,
    x: &[f32],
    gradient: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    if let Some(row) = groups.row(x.len()) {
        simd(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(row).zip(gradient.chunks_exact(row));
                for ((x, g), out) in rows.zip(out.chunks_exact_mut(row)) {
                    normalise_gradient_row(groups, x, g, out);
                }
            },
        );
        return;
    }
    moments(groups, x, scratch);
    let (moments, means) = scratch.split_at_mut(2 * groups.count);
    let (mean, scale) = moments.split_at(groups.count);
    let (gradient_mean, product_mean) = means.split_at_mut(groups.count);
    gradient_mean.fill(0.0);
    product_mean[..groups.count].fill(0.0);
    let share = groups.count as f32 / x.len() as f32;
    groups.pattern.for_each(x.len(), |at, group| {
        gradient_mean[group] += gradient[at] * share;
        product_mean[group] += gradient[at] * (x[at] - mean[group]) * scale[group] * share;
    });
    if groups.norm == Norm::RootMeanSquare {
        gradient_mean.fill(0.0);
    }
    groups.pattern.for_each(x.len(), |at, group| {
        let y = (x[at] - mean[group]) * scale[group];
        out[at] = (gradient[at] - gradient_mean[group] - y * product_mean[group]) * scale[group];
    });
}

#[inline(always)]
pub(super) fn normalise_gradient_row(groups: &Groups, x: &[f32], g: &[f32], out: &mut [f32]) {
    let len = x.len() as f32;
    let (mean, scale) = row_moments(groups, x);
    out.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean) * scale);
    let product_mean = dot(out, g) / len;
    let gradient_mean = match groups.norm {
        Norm::Standard => sum_of(g, |value| value) / len,
        Norm::RootMeanSquare => 0.0,
    };
    out.iter_mut().zip(g).for_each(|(y, &g)| *y = (g - gradient_mean - *y * product_mean) * scale);
}
