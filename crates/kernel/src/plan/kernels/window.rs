//! Pooling.

use crate::op::Pool;

/// Sizes of one pooling, fixed by the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) struct Geometry {
    pub(in crate::plan) pool: Pool,
    /// Samples times channels.
    pub(in crate::plan) planes: usize,
    pub(in crate::plan) size: [usize; 2],
    pub(in crate::plan) out_size: [usize; 2],
}

impl Geometry {
    pub(in crate::plan) fn new(pool: Pool, x: &[usize], result: &[usize]) -> Self {
        Self { pool, planes: x[0] * x[1], size: [x[2], x[3]], out_size: [result[2], result[3]] }
    }

    /// The part of one side that a window covers.
    fn covered(&self, side: usize, place: usize) -> std::ops::Range<usize> {
        let start = place * self.pool.stride[side];
        let padding = self.pool.padding[side];
        start.saturating_sub(padding)
            ..(start + self.pool.kernel[side] - padding).min(self.size[side])
    }

    /// Visits (result index, start of the plane, rows, columns) of every window.
    fn for_each_window(
        &self,
        mut visit: impl FnMut(usize, usize, std::ops::Range<usize>, std::ops::Range<usize>),
    ) {
        let mut at = 0;
        for plane in 0..self.planes {
            let start = plane * self.size[0] * self.size[1];
            for row in 0..self.out_size[0] {
                let rows = self.covered(0, row);
                for column in 0..self.out_size[1] {
                    visit(at, start, rows.clone(), self.covered(1, column));
                    at += 1;
                }
            }
        }
    }

    /// Visits (result index, index of the window's largest element); the first of equals, NaN above all.
    fn for_each_largest(&self, x: &[f32], mut visit: impl FnMut(usize, usize)) {
        let width = self.size[1];
        self.for_each_window(|at, start, rows, columns| {
            let mut best = start + rows.start * width + columns.start;
            for row in rows {
                for index in start + row * width + columns.start..start + row * width + columns.end
                {
                    if x[index] > x[best] || (x[index].is_nan() && !x[best].is_nan()) {
                        best = index;
                    }
                }
            }
            visit(at, best);
        });
    }
}

/// `v` where `x` is largest.
pub(in crate::plan) fn max_pick(geometry: &Geometry, x: &[f32], v: &[f32], out: &mut [f32]) {
    geometry.for_each_largest(x, |at, best| out[at] = v[best]);
}

/// Each gradient added where its window's `x` is largest.
pub(in crate::plan) fn max_gradient(
    geometry: &Geometry,
    x: &[f32],
    gradient: &[f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    geometry.for_each_largest(x, |at, best| out[best] += gradient[at]);
}

/// Mean over the whole window, padding as zeros.
pub(in crate::plan) fn average(geometry: &Geometry, x: &[f32], out: &mut [f32]) {
    let share = 1.0 / (geometry.pool.kernel[0] * geometry.pool.kernel[1]) as f32;
    let width = geometry.size[1];
    geometry.for_each_window(|at, start, rows, columns| {
        let mut sum = 0.0;
        for row in rows {
            sum += x[start + row * width..][columns.clone()].iter().sum::<f32>();
        }
        out[at] = sum * share;
    });
}

/// Each gradient spread over its window.
pub(in crate::plan) fn average_gradient(geometry: &Geometry, gradient: &[f32], out: &mut [f32]) {
    let share = 1.0 / (geometry.pool.kernel[0] * geometry.pool.kernel[1]) as f32;
    let width = geometry.size[1];
    out.fill(0.0);
    geometry.for_each_window(|at, start, rows, columns| {
        let value = gradient[at] * share;
        for row in rows {
            out[start + row * width..][columns.clone()].iter_mut().for_each(|sum| *sum += value);
        }
    });
}
