//! Convolutions as matrix products over unfolded windows (im2col), one sample and group at a time, or by `direct`.

use std::sync::Arc;

use super::direct::{self, Direct, Part, Pass};
use super::product::{Into, Matrix, product};
use super::simd;
use super::tile::Finish;
use crate::op::{Conv, Unary};
use crate::plan::kernels::elementwise;

/// Sizes of one convolution, fixed by the plan, and how it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::plan) struct Geometry {
    pub(in crate::plan) conv: Conv,
    pub(in crate::plan) batch: usize,
    pub(in crate::plan) channels: usize,
    pub(in crate::plan) size: [usize; 2],
    pub(in crate::plan) out_channels: usize,
    pub(in crate::plan) kernel: [usize; 2],
    pub(in crate::plan) out_size: [usize; 2],
    /// The tables of the direct loop where that is the algorithm; otherwise windows are unfolded.
    direct: Option<Arc<Direct>>,
}

impl Geometry {
    pub(in crate::plan) fn new(
        conv: Conv,
        x: &[usize],
        weight: &[usize],
        result: &[usize],
    ) -> Self {
        Self {
            conv,
            batch: x[0],
            channels: x[1],
            size: [x[2], x[3]],
            out_channels: weight[0],
            kernel: [weight[2], weight[3]],
            out_size: [result[2], result[3]],
            direct: None,
        }
    }

    /// Computes the windows directly, if that is possible for this pass.
    pub(in crate::plan) fn try_direct(&mut self, pass: Pass) -> bool {
        self.direct = Direct::new(self, pass).map(Arc::new);
        self.direct.is_some()
    }

    /// Unfolds the windows for the `gemm` crate.
    pub(in crate::plan) fn unfolded(&mut self) {
        self.direct = None;
    }

    /// Elements of input, weight and result.
    pub(in crate::plan) fn lengths(&self) -> [usize; 3] {
        let samples = self.batch * self.conv.groups;
        [
            samples * self.group_channels() * self.plane(),
            self.out_channels * self.depth(),
            samples * self.group_out() * self.places(),
        ]
    }

    /// Elements of scratch one call needs; where windows are unfolded, those of one sample's group.
    pub(in crate::plan) fn scratch_len(&self) -> usize {
        match &self.direct {
            Some(direct) => direct.scratch_len(self),
            None if self.is_pointwise() => 0,
            None => self.depth() * self.places(),
        }
    }

    /// A kernel of one tap at every pixel: the picture is its own unfolding.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.conv.stride == [1, 1] && self.conv.padding == [0, 0]
    }

    pub(super) fn group_channels(&self) -> usize {
        self.channels / self.conv.groups
    }

    pub(super) fn group_out(&self) -> usize {
        self.out_channels / self.conv.groups
    }

    /// Products per result.
    pub(super) fn depth(&self) -> usize {
        self.group_channels() * self.kernel[0] * self.kernel[1]
    }

    /// Row and column of each tap of a window, row by row.
    pub(super) fn taps(&self) -> Vec<[usize; 2]> {
        let [rows, columns] = self.conv.dilation;
        let row =
            |row: usize| (0..self.kernel[1]).map(move |column| [row * rows, column * columns]);
        (0..self.kernel[0]).flat_map(row).collect()
    }

    /// Results per channel.
    pub(super) fn places(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    pub(super) fn plane(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Ranges of one sample's group in the input, the weight and the result.
    pub(super) fn parts(&self, sample: usize, group: usize) -> [std::ops::Range<usize>; 3] {
        let span = |index: usize, len: usize| index * len..(index + 1) * len;
        let part = sample * self.conv.groups + group;
        [
            span(part, self.group_channels() * self.plane()),
            span(group, self.group_out() * self.depth()),
            span(part, self.group_out() * self.places()),
        ]
    }

    pub(super) fn for_each_part(&self, mut visit: impl FnMut(Part, [std::ops::Range<usize>; 3])) {
        for sample in 0..self.batch {
            for group in 0..self.conv.groups {
                visit(Part { sample, group }, self.parts(sample, group));
            }
        }
    }

    /// The places along a row for which column tap `tap` reads within the picture.
    fn columns_of_tap(&self, tap: usize) -> std::ops::Range<usize> {
        let (stride, padding) = (self.conv.stride[1], self.conv.padding[1]);
        let offset = tap * self.conv.dilation[1];
        // Places whose source column lies within the picture: 0 <= place * stride + offset - padding < width.
        let first = padding.saturating_sub(offset).div_ceil(stride);
        let end = (self.size[1] + padding).saturating_sub(offset).div_ceil(stride);
        first.min(self.out_size[1])..end.min(self.out_size[1]).max(first.min(self.out_size[1]))
    }

    /// The input row that tap `tap` reads for result row `row`, if it lies within the picture.
    fn row_of_tap(&self, row: usize, tap: usize) -> Option<usize> {
        let padded = row * self.conv.stride[0] + tap * self.conv.dilation[0];
        padded.checked_sub(self.conv.padding[0]).filter(|&at| at < self.size[0])
    }

    /// Visits every stretch of the unfolding that reads the picture: (range in the unfolding, first index in the
    /// picture). Elements in no stretch are padding.
    fn for_each_stretch(&self, mut visit: impl FnMut(std::ops::Range<usize>, usize)) {
        let mut row_of_unfolding = 0;
        for channel in 0..self.group_channels() {
            for tap_h in 0..self.kernel[0] {
                for tap_w in 0..self.kernel[1] {
                    let columns = self.columns_of_tap(tap_w);
                    for row in 0..self.out_size[0] {
                        let Some(y) = self.row_of_tap(row, tap_h) else { continue };
                        if columns.is_empty() {
                            continue;
                        }
                        let start = row_of_unfolding * self.places() + row * self.out_size[1];
                        let x = columns.start * self.conv.stride[1] + tap_w * self.conv.dilation[1]
                            - self.conv.padding[1];
                        let source = channel * self.plane() + y * self.size[1] + x;
                        visit(start + columns.start..start + columns.end, source);
                    }
                    row_of_unfolding += 1;
                }
            }
        }
    }

    /// Windows that move by one over rows as long as the result's: unfolding a tap is a shift of the whole plane.
    fn is_shift(&self) -> bool {
        self.conv.stride == [1, 1] && self.out_size[1] == self.size[1]
    }

    /// For [`Geometry::is_shift`]: visits (range of a tap's stretch in the unfolding, first index in the picture,
    /// columns of the stretch's rows that read the picture; the others are padding).
    #[inline(always)]
    fn for_each_shift(
        &self,
        mut visit: impl FnMut(std::ops::Range<usize>, usize, &std::ops::Range<usize>),
    ) {
        let (width, places) = (self.size[1], self.places());
        let mut tap = 0;
        for channel in 0..self.group_channels() {
            for tap_h in 0..self.kernel[0] {
                let mut rows =
                    (0..self.out_size[0]).filter(|&row| self.row_of_tap(row, tap_h).is_some());
                let first = rows.next();
                let rows = first.map_or(0..0, |first| first..rows.next_back().unwrap_or(first) + 1);
                for tap_w in 0..self.kernel[1] {
                    let columns = self.columns_of_tap(tap_w);
                    let start = tap * places;
                    tap += 1;
                    let Some(y) = self
                        .row_of_tap(rows.start, tap_h)
                        .filter(|_| !rows.is_empty() && !columns.is_empty())
                    else {
                        continue;
                    };
                    // From the first element that reads the picture to the last; in between, whole rows.
                    let x = columns.start + tap_w * self.conv.dilation[1] - self.conv.padding[1];
                    let source = channel * self.plane() + y * width + x;
                    let end = (rows.end - 1) * width + columns.end;
                    visit(
                        start + rows.start * width + columns.start..start + end,
                        source,
                        &columns,
                    );
                }
            }
        }
    }

    /// Zeroes the padding within a stretch of [`Geometry::for_each_shift`].
    #[inline(always)]
    fn clear_padding(&self, stretch: &mut [f32], columns: &std::ops::Range<usize>) {
        let width = self.size[1];
        // Column by column of the gap, because it is one or two wide as a rule: too short for a fill of each row.
        for column in columns.len()..width {
            stretch.iter_mut().skip(column).step_by(width).for_each(|value| *value = 0.0);
        }
    }

    /// The windows of one group as rows of taps by columns of places. `scratch` must be zero where padding is,
    /// which holds from the first unfolding on, because the stretches are always the same.
    fn unfold(&self, x: &[f32], scratch: &mut [f32]) {
        if self.is_shift() {
            self.for_each_shift(|target, source, columns| {
                let target = &mut scratch[target];
                target.copy_from_slice(&x[source..][..target.len()]);
                self.clear_padding(target, columns);
            });
            return;
        }
        let stride = self.conv.stride[1];
        self.for_each_stretch(|target, source| {
            let target = &mut scratch[target];
            if stride == 1 {
                target.copy_from_slice(&x[source..][..target.len()]);
            } else {
                target
                    .iter_mut()
                    .zip(x[source..].iter().step_by(stride))
                    .for_each(|(to, &from)| *to = from);
            }
        });
    }

    /// Adds unfolded gradients up where they came from. What lies in the padding is lost, in `scratch` too.
    fn fold(&self, scratch: &mut [f32], x: &mut [f32]) {
        if self.is_shift() {
            simd(
                #[inline(always)]
                || {
                    self.for_each_shift(|from, target, columns| {
                        let from = &mut scratch[from];
                        self.clear_padding(from, columns);
                        add(from, &mut x[target..]);
                    });
                },
            );
            return;
        }
        let stride = self.conv.stride[1];
        self.for_each_stretch(|from, target| {
            let from = &scratch[from];
            if stride == 1 {
                add(from, &mut x[target..]);
            } else {
                x[target..]
                    .iter_mut()
                    .step_by(stride)
                    .zip(from)
                    .for_each(|(to, &value)| *to += value);
            }
        });
    }
}

#[inline(always)]
fn add(from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, &value)| *to += value);
}

/// `out = activation(weight * windows of x + bias)`
pub(in crate::plan) fn forward(
    geometry: &Geometry,
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    activation: Option<Unary>,
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let mut rest = activation;
    if let Some(tables) = &geometry.direct {
        let finish = match activation {
            Some(Unary::Relu) => Finish::Relu,
            _ => Finish::Keep,
        };
        rest = rest.filter(|_| finish == Finish::Keep);
        direct::forward((geometry, tables), (x, weight, bias), finish, out, scratch);
    } else {
        unfolded_forward(geometry, x, weight, out, scratch);
        if let Some(bias) = bias {
            elementwise::bias_channels(bias, geometry.places(), out);
        }
    }
    if let Some(function) = rest {
        elementwise::unary_in_place(function, out);
    }
}

fn unfolded_forward(
    geometry: &Geometry,
    x: &[f32],
    weight: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let sizes = (geometry.group_out(), geometry.places(), geometry.depth());
    let scratch = &mut scratch[..geometry.scratch_len()];
    scratch.fill(0.0);
    geometry.for_each_part(|_, [x_part, weight_part, out_part]| {
        let x = &x[x_part];
        let windows = if geometry.is_pointwise() {
            x
        } else {
            geometry.unfold(x, scratch);
            &*scratch
        };
        let a = Matrix::stored(&weight[weight_part], sizes.2, false);
        let b = Matrix::stored(windows, sizes.1, false);
        product(sizes, a, b, &mut out[out_part], Into::Fresh);
    });
}

/// `out = folded(weight^T * gradient)`, or the same directly.
pub(in crate::plan) fn input_gradient(
    geometry: &Geometry,
    gradient: &[f32],
    weight: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    if let Some(tables) = &geometry.direct {
        direct::input_gradient((geometry, tables), gradient, weight, out, scratch);
        return;
    }
    let sizes = (geometry.depth(), geometry.places(), geometry.group_out());
    let scratch = &mut scratch[..geometry.scratch_len()];
    geometry.for_each_part(|_, [x_part, weight_part, out_part]| {
        let a = Matrix::stored(&weight[weight_part], geometry.depth(), true);
        let b = Matrix::stored(&gradient[out_part], sizes.1, false);
        let target = &mut out[x_part];
        if geometry.is_pointwise() {
            product(sizes, a, b, target, Into::Fresh);
            return;
        }
        product(sizes, a, b, scratch, Into::Fresh);
        target.fill(0.0);
        geometry.fold(scratch, target);
    });
}

/// `out = sum over samples of gradient * unfolded(x)^T`, or the same directly.
pub(in crate::plan) fn weight_gradient(
    geometry: &Geometry,
    x: &[f32],
    gradient: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    if let Some(tables) = &geometry.direct {
        direct::weight_gradient((geometry, tables), x, gradient, out, scratch);
        return;
    }
    let sizes = (geometry.group_out(), geometry.depth(), geometry.places());
    let scratch = &mut scratch[..geometry.scratch_len()];
    scratch.fill(0.0);
    geometry.for_each_part(|part, [x_part, weight_part, out_part]| {
        let x = &x[x_part];
        let windows = if geometry.is_pointwise() {
            x
        } else {
            geometry.unfold(x, scratch);
            &*scratch
        };
        let a = Matrix::stored(&gradient[out_part], sizes.2, false);
        let b = Matrix::stored(windows, sizes.2, true);
        let into = if part.sample == 0 { Into::Fresh } else { Into::Sum };
        product(sizes, a, b, &mut out[weight_part], into);
    });
}
