//! Reductions, softmax, normalisation and the classification loss.

use super::elementwise::{broadcast_at, broadcast_offset};
use super::{Array, Real, advance, whole};
use crate::error::RunError;
use crate::op::{Norm, Normalise, Reduction};

/// Sums or averages `x` down to `shape`, which broadcasts to the shape of `x`.
pub(super) fn reduce<T: Real>(kind: Reduction, x: &Array<T>, shape: &[usize]) -> Array<T> {
    let mut result = Array::full(shape, T::ZERO);
    let mut index = vec![0; x.shape.len()];
    for &value in &x.data {
        result.data[broadcast_offset(shape, &index)] += value;
        advance(&mut index, &x.shape);
    }
    divide_by_copies(kind, &mut result, x.data.len());
    result
}

pub(super) fn broadcast<T: Real>(kind: Reduction, x: &Array<T>, shape: &[usize]) -> Array<T> {
    let mut share = x.clone();
    divide_by_copies(kind, &mut share, shape.iter().product());
    Array::from_fn(shape, |index| broadcast_at(&share, index))
}

/// For a mean, divides by the number of large elements per element of `x`.
fn divide_by_copies<T: Real>(kind: Reduction, x: &mut Array<T>, large: usize) {
    match kind {
        Reduction::Sum => {}
        Reduction::Mean => {
            let copies = T::from_count(large / x.data.len());
            x.data.iter_mut().for_each(|value| *value = *value / copies);
        }
    }
}

pub(super) fn softmax<T: Real>(x: &Array<T>) -> Array<T> {
    let mut result = log_softmax(x);
    result.data.iter_mut().for_each(|value| *value = value.exp());
    result
}

pub(super) fn log_softmax<T: Real>(x: &Array<T>) -> Array<T> {
    let classes = x.shape[x.shape.len() - 1];
    let mut result = x.clone();
    for row in result.data.chunks_exact_mut(classes) {
        let largest =
            row.iter().copied().fold(row[0], |best, value| if value > best { value } else { best });
        let mut sum = T::ZERO;
        row.iter().for_each(|&value| sum += (value - largest).exp());
        let log_sum = sum.ln();
        row.iter_mut().for_each(|value| *value = *value - largest - log_sum);
    }
    result
}

/// Mean of `x` over the attribute's axes, kept with size 1.
fn axis_mean<T: Real>(attributes: &Normalise, x: &Array<T>) -> Array<T> {
    let mut shape = x.shape.clone();
    attributes.axes.iter().for_each(|&axis| shape[axis] = 1);
    reduce(Reduction::Mean, x, &shape)
}

fn zip<T: Real>(x: &Array<T>, small: &Array<T>, combine: impl Fn(T, T) -> T) -> Array<T> {
    let mut at = 0;
    Array::from_fn(&x.shape, |index| {
        at += 1;
        combine(x.data[at - 1], broadcast_at(small, index))
    })
}

/// What is divided (`x`, centred or not) and by what (`sqrt(second moment + epsilon)`).
fn moments<T: Real>(attributes: &Normalise, x: &Array<T>) -> (Array<T>, Array<T>) {
    let centred = match attributes.norm {
        Norm::Standard => zip(x, &axis_mean(attributes, x), |value, mean| value - mean),
        Norm::RootMeanSquare => x.clone(),
    };
    let mut deviation =
        axis_mean(attributes, &zip(&centred, &Array::full(&[], T::ZERO), |value, _| value * value));
    let epsilon = T::from_f32(attributes.epsilon);
    deviation.data.iter_mut().for_each(|value| *value = (*value + epsilon).sqrt());
    (centred, deviation)
}

pub(super) fn normalise<T: Real>(attributes: &Normalise, x: &Array<T>) -> Array<T> {
    let (centred, deviation) = moments(attributes, x);
    zip(&centred, &deviation, |value, deviation| value / deviation)
}

/// `(g - mean(g) - y mean(g y)) / deviation`; without the middle term for the root mean square.
pub(super) fn normalise_gradient<T: Real>(
    attributes: &Normalise,
    x: &Array<T>,
    gradient: &Array<T>,
) -> Array<T> {
    let (centred, deviation) = moments(attributes, x);
    let y = zip(&centred, &deviation, |value, deviation| value / deviation);
    let product = zip(gradient, &y, |g, y| g * y);
    let along = zip(&y, &axis_mean(attributes, &product), |y, mean| y * mean);
    let mut result = zip(gradient, &along, |g, along| g - along);
    if attributes.norm == Norm::Standard {
        result = zip(&result, &axis_mean(attributes, gradient), |value, mean| value - mean);
    }
    zip(&result, &deviation, |value, deviation| value / deviation)
}

pub(super) fn cross_entropy<T: Real>(
    logits: &Array<T>,
    labels: &Array<T>,
) -> Result<Array<T>, RunError> {
    let classes = logits.shape[logits.shape.len() - 1];
    let log_probability = log_softmax(logits);
    let mut sum = T::ZERO;
    for (row, &label) in log_probability.data.chunks_exact(classes).zip(&labels.data) {
        sum += -row[whole("cross_entropy", label, classes)?];
    }
    Ok(Array::full(&[], sum / T::from_count(labels.data.len())))
}

/// `(softmax(logits) - one_hot(labels)) g / rows`.
pub(super) fn cross_entropy_gradient<T: Real>(
    logits: &Array<T>,
    labels: &Array<T>,
    gradient: &Array<T>,
) -> Result<Array<T>, RunError> {
    let classes = logits.shape[logits.shape.len() - 1];
    let share = gradient.data[0] / T::from_count(labels.data.len());
    let mut result = softmax(logits);
    for (row, &label) in result.data.chunks_exact_mut(classes).zip(&labels.data) {
        let label = whole("cross_entropy_gradient", label, classes)?;
        row[label] = row[label] - T::ONE;
        row.iter_mut().for_each(|value| *value = *value * share);
    }
    Ok(result)
}
