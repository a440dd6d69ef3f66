//! Pooling.

use super::{Array, Real};
use crate::op::Pool;

/// `v` at the place of the largest `x` of each window; `v` is `x` for max pooling itself.
pub(super) fn max_pool_pick<T: Real>(
    pool: &Pool,
    x: &Array<T>,
    v: &Array<T>,
    shape: &[usize],
) -> Array<T> {
    Array::from_fn(shape, |index| v.data[largest(pool, x, index)])
}

pub(super) fn max_pool_gradient<T: Real>(
    pool: &Pool,
    x: &Array<T>,
    gradient: &Array<T>,
) -> Array<T> {
    let mut result = Array::full(&x.shape, T::ZERO);
    let mut index = vec![0; gradient.shape.len()];
    for &value in &gradient.data {
        result.data[largest(pool, x, &index)] += value;
        super::advance(&mut index, &gradient.shape);
    }
    result
}

pub(super) fn avg_pool<T: Real>(pool: &Pool, x: &Array<T>, shape: &[usize]) -> Array<T> {
    let area = T::from_count(pool.kernel[0] * pool.kernel[1]);
    Array::from_fn(shape, |index| {
        let mut sum = T::ZERO;
        window(pool, &x.shape, index, |at| sum += x.data[at]);
        sum / area
    })
}

pub(super) fn avg_pool_gradient<T: Real>(
    pool: &Pool,
    gradient: &Array<T>,
    shape: &[usize],
) -> Array<T> {
    let area = T::from_count(pool.kernel[0] * pool.kernel[1]);
    let mut result = Array::full(shape, T::ZERO);
    let mut index = vec![0; gradient.shape.len()];
    for &value in &gradient.data {
        window(pool, shape, &index, |at| result.data[at] += value / area);
        super::advance(&mut index, &gradient.shape);
    }
    result
}

/// Offset of the window's largest element; the first of equals, and a NaN counts as largest.
fn largest<T: Real>(pool: &Pool, x: &Array<T>, index: &[usize]) -> usize {
    let mut best: Option<usize> = None;
    window(pool, &x.shape, index, |at| {
        let wins = match best {
            None => true,
            Some(old) => {
                let (old, new) = (x.data[old], x.data[at]);
                new > old || (is_nan(new) && !is_nan(old))
            }
        };
        if wins {
            best = Some(at);
        }
    });
    best.expect("a window has an element, because the padding is at most half the kernel")
}

#[allow(clippy::eq_op)] // The definition of NaN, for either precision.
fn is_nan<T: Real>(value: T) -> bool {
    value != value
}

/// Visits the offsets of one window's elements that lie within the picture, in row-major order.
fn window(pool: &Pool, shape: &[usize], index: &[usize], mut visit: impl FnMut(usize)) {
    let (height, width) = (shape[2], shape[3]);
    let plane = index[0] * shape[1] + index[1];
    let source = |side: usize, tap: usize, length: usize| {
        (index[2 + side] * pool.stride[side] + tap)
            .checked_sub(pool.padding[side])
            .filter(|&at| at < length)
    };
    for tap_h in 0..pool.kernel[0] {
        let Some(row) = source(0, tap_h, height) else { continue };
        for tap_w in 0..pool.kernel[1] {
            if let Some(column) = source(1, tap_w, width) {
                visit((plane * height + row) * width + column);
            }
        }
    }
}
