//! Matrix products and convolutions, by their definitions.

use super::{Array, Real};
use crate::op::Conv;

pub(super) fn mat_mul<T: Real>(
    a: &Array<T>,
    transpose_a: bool,
    b: &Array<T>,
    transpose_b: bool,
    shape: &[usize],
) -> Array<T> {
    let rank = a.shape.len();
    let (rows, columns) = (shape[rank - 2], shape[rank - 1]);
    let inner = a.shape[if transpose_a { rank - 2 } else { rank - 1 }];
    let at_a = |row: usize, k: usize| if transpose_a { k * rows + row } else { row * inner + k };
    let at_b = |k: usize, column: usize| {
        if transpose_b { column * inner + k } else { k * columns + column }
    };
    let mut result = Array::full(shape, T::ZERO);
    for (index, matrix) in result.data.chunks_exact_mut(rows * columns).enumerate() {
        let a = &a.data[index * rows * inner..];
        let b = if b.shape.len() == 2 { &b.data[..] } else { &b.data[index * inner * columns..] };
        for row in 0..rows {
            for column in 0..columns {
                let mut sum = T::ZERO;
                for k in 0..inner {
                    sum += a[at_a(row, k)] * b[at_b(k, column)];
                }
                matrix[row * columns + column] = sum;
            }
        }
    }
    result
}

pub(super) fn conv2d<T: Real>(
    conv: &Conv,
    x: &Array<T>,
    weight: &Array<T>,
    shape: &[usize],
) -> Array<T> {
    let mut result = Array::full(shape, T::ZERO);
    for_each_tap(conv, &x.shape, &weight.shape, shape, |x_at, weight_at, result_at| {
        result.data[result_at] += x.data[x_at] * weight.data[weight_at];
    });
    result
}

pub(super) fn conv2d_input_gradient<T: Real>(
    conv: &Conv,
    gradient: &Array<T>,
    weight: &Array<T>,
    shape: &[usize],
) -> Array<T> {
    let mut result = Array::full(shape, T::ZERO);
    for_each_tap(conv, shape, &weight.shape, &gradient.shape, |x_at, weight_at, gradient_at| {
        result.data[x_at] += gradient.data[gradient_at] * weight.data[weight_at];
    });
    result
}

pub(super) fn conv2d_weight_gradient<T: Real>(
    conv: &Conv,
    x: &Array<T>,
    gradient: &Array<T>,
    shape: &[usize],
) -> Array<T> {
    let mut result = Array::full(shape, T::ZERO);
    for_each_tap(conv, &x.shape, shape, &gradient.shape, |x_at, weight_at, gradient_at| {
        result.data[weight_at] += gradient.data[gradient_at] * x.data[x_at];
    });
    result
}

/// Visits every product of the convolution as the offsets (input, weight, result). All three operators are sums
/// over these same triples; taps in the padding are left out.
fn for_each_tap(
    conv: &Conv,
    x: &[usize],
    weight: &[usize],
    result: &[usize],
    mut visit: impl FnMut(usize, usize, usize),
) {
    let &[batch, channels, height, width] = x else {
        unreachable!("shape inference demands four dimensions")
    };
    let &[out, per_group, kernel_h, kernel_w] = weight else {
        unreachable!("shape inference demands four dimensions")
    };
    let (result_h, result_w) = (result[2], result[3]);
    let source = |side: usize, position: usize, tap: usize, length: usize| {
        let padded = position * conv.stride[side] + tap * conv.dilation[side];
        padded.checked_sub(conv.padding[side]).filter(|&at| at < length)
    };
    for n in 0..batch {
        for o in 0..out {
            let group = o / (out / conv.groups);
            for row in 0..result_h {
                for column in 0..result_w {
                    let result_at = ((n * out + o) * result_h + row) * result_w + column;
                    for c in 0..per_group {
                        let channel = group * per_group + c;
                        for tap_h in 0..kernel_h {
                            let Some(y) = source(0, row, tap_h, height) else { continue };
                            for tap_w in 0..kernel_w {
                                let Some(x) = source(1, column, tap_w, width) else { continue };
                                let x_at = ((n * channels + channel) * height + y) * width + x;
                                let weight_at =
                                    ((o * per_group + c) * kernel_h + tap_h) * kernel_w + tap_w;
                                visit(x_at, weight_at, result_at);
                            }
                        }
                    }
                }
            }
        }
    }
}
