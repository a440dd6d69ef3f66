//! Convolutions without unfolding: the tiles read the picture itself, shifted by the taps.
//!
//! Result and input gradient run along the rows of a padded picture, so they need windows that move by one column.
//! The weight gradient runs along the channels of a picture turned to channels last; it takes any stride.

use std::ops::Range;

use super::convolution::Geometry;
use super::tile::{Finish, Left, Right, Span, Start, Table, Tiles};
use super::transpose::transpose;

/// Which of the three loops of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) enum Pass {
    Forward,
    InputGradient,
    WeightGradient,
}

/// Where each step of the sum reads and which columns it fills: all that depends on the sizes only.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::plan) struct Direct {
    pass: Pass,
    /// Sizes of a padded plane.
    padded: [usize; 2],
    /// Rows and columns before the plane's own.
    margin: [usize; 2],
    table: Table,
    spans: Vec<Span>,
}

impl Direct {
    /// `None` where the tiles cannot read the windows.
    pub(in crate::plan) fn new(geometry: &Geometry, pass: Pass) -> Option<Self> {
        match pass {
            Pass::Forward => Self::forward(geometry),
            Pass::InputGradient => Self::input_gradient(geometry),
            Pass::WeightGradient => Some(Self::weight_gradient(geometry)),
        }
    }

    fn forward(geometry: &Geometry) -> Option<Self> {
        let Geometry { conv, size, out_size, .. } = *geometry;
        if conv.stride[1] != 1 {
            return None;
        }
        let padded = [0, 1].map(|side| size[side] + 2 * conv.padding[side]);
        let taps = geometry.taps();
        let table = (0..geometry.group_channels())
            .flat_map(|channel| {
                taps.iter()
                    .map(move |tap| channel * padded[0] * padded[1] + tap[0] * padded[1] + tap[1])
            })
            .collect();
        let row = |row: usize| Span {
            from: row * conv.stride[0] * padded[1],
            to: row * out_size[1],
            len: out_size[1],
        };
        let is_one_run = padded[1] == out_size[1] && conv.stride[0] == 1;
        Some(Self {
            pass: Pass::Forward,
            padded,
            margin: conv.padding,
            table: Table::new(table),
            spans: if is_one_run {
                vec![Span { from: 0, to: 0, len: geometry.places() }]
            } else {
                (0..out_size[0]).map(row).collect()
            },
        })
    }

    /// A convolution of the gradient with the taps in reverse order.
    fn input_gradient(geometry: &Geometry) -> Option<Self> {
        let Geometry { conv, size, kernel, .. } = *geometry;
        if conv.stride != [1, 1] {
            return None;
        }
        let reach = [0, 1].map(|side| conv.dilation[side] * (kernel[side] - 1));
        let margin =
            [reach[0].checked_sub(conv.padding[0])?, reach[1].checked_sub(conv.padding[1])?];
        let padded = [0, 1].map(|side| size[side] + reach[side]);
        let taps = geometry.taps();
        let table = (0..geometry.group_out())
            .flat_map(|channel| {
                taps.iter().map(move |tap| {
                    channel * padded[0] * padded[1]
                        + (reach[0] - tap[0]) * padded[1]
                        + (reach[1] - tap[1])
                })
            })
            .collect();
        let row = |row: usize| Span { from: row * padded[1], to: row * size[1], len: size[1] };
        Some(Self {
            pass: Pass::InputGradient,
            padded,
            margin,
            table: Table::new(table),
            spans: if padded[1] == size[1] {
                vec![Span { from: 0, to: 0, len: size[0] * size[1] }]
            } else {
                (0..size[0]).map(row).collect()
            },
        })
    }

    /// Steps of the sum are the places of the result; the columns are taps and, within each, channels.
    fn weight_gradient(geometry: &Geometry) -> Self {
        let Geometry { conv, size, kernel, out_size, .. } = *geometry;
        let channels = geometry.group_channels();
        let padded = [0, 1].map(|side| size[side] + 2 * conv.padding[side]);
        let table = (0..out_size[0])
            .flat_map(|row| (0..out_size[1]).map(move |column| [row, column]))
            .map(|[row, column]| {
                (row * conv.stride[0] * padded[1] + column * conv.stride[1]) * channels
            })
            .collect();
        let span = |(index, tap): (usize, &[usize; 2]), taps: usize| Span {
            from: (tap[0] * padded[1] + tap[1]) * channels,
            to: index * taps * channels,
            len: taps * channels,
        };
        let taps = geometry.taps();
        // The taps of one row are neighbours, unless they are dilated.
        let spans = if conv.dilation[1] == 1 {
            let rows = taps.iter().step_by(kernel[1]).enumerate();
            rows.map(|row| span(row, kernel[1])).collect()
        } else {
            taps.iter().enumerate().map(|tap| span(tap, 1)).collect()
        };
        Self {
            pass: Pass::WeightGradient,
            padded,
            margin: conv.padding,
            table: Table::new(table),
            spans,
        }
    }

    fn plane(&self) -> usize {
        self.padded[0] * self.padded[1]
    }

    /// Elements of scratch a call needs: a padded picture and, for the gradients, weights in another order.
    pub(in crate::plan) fn scratch_len(&self, geometry: &Geometry) -> usize {
        let weights = geometry.out_channels * geometry.depth();
        match self.pass {
            Pass::Forward => geometry.group_channels() * self.plane(),
            Pass::InputGradient => {
                geometry.group_out() * self.plane() + geometry.group_channels() * self.table.len()
            }
            Pass::WeightGradient => geometry.group_channels() * self.plane() + weights,
        }
    }

    fn is_padded(&self, size: [usize; 2]) -> bool {
        self.padded != size
    }

    /// Copies planes of `size` into the middle of padded ones, whose margins must be zero already.
    fn pad(&self, size: [usize; 2], planes: &[f32], padded: &mut [f32]) {
        let pairs =
            planes.chunks_exact(size[0] * size[1]).zip(padded.chunks_exact_mut(self.plane()));
        for (plane, padded) in pairs {
            let rows = padded.chunks_exact_mut(self.padded[1]).skip(self.margin[0]);
            for (row, padded) in plane.chunks_exact(size[1]).zip(rows) {
                padded[self.margin[1]..][..size[1]].copy_from_slice(row);
            }
        }
    }

    /// Copies planes of `size` into the middle of a padded picture with the channels last.
    fn pad_channels_last(
        &self,
        (channels, size): (usize, [usize; 2]),
        planes: &[f32],
        padded: &mut [f32],
    ) {
        let plane = size[0] * size[1];
        if !self.is_padded(size) {
            transpose((channels, plane), (planes, plane), (padded, channels));
            return;
        }
        for row in 0..size[0] {
            let start = ((row + self.margin[0]) * self.padded[1] + self.margin[1]) * channels;
            let from = (&planes[row * size[1]..], plane);
            transpose((channels, size[1]), from, (&mut padded[start..], channels));
        }
    }
}

/// `out = weight * windows of x + bias`, by channel.
pub(in crate::plan) fn forward(
    (geometry, direct): (&Geometry, &Direct),
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    finish: Finish,
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let is_padded = direct.is_padded(geometry.size);
    let scratch = &mut scratch[..direct.scratch_len(geometry)];
    scratch.fill(0.0);
    geometry.for_each_part(|part, [x_part, weight_part, out_part]| {
        let x = &x[x_part];
        let data = if is_padded {
            direct.pad(geometry.size, x, scratch);
            &*scratch
        } else {
            x
        };
        let channels = part.channels(geometry);
        Tiles {
            rows: geometry.group_out(),
            left: Left { data: &weight[weight_part], row_stride: geometry.depth(), step_stride: 1 },
            right: Right { data, table: &direct.table },
            spans: &direct.spans,
            start: bias.map_or(Start::Zero, |bias| Start::Rows(&bias[channels])),
            finish,
            out: &mut out[out_part],
            out_stride: geometry.places(),
        }
        .run();
    });
}

/// `out = flipped weight * windows of the gradient`
pub(in crate::plan) fn input_gradient(
    (geometry, direct): (&Geometry, &Direct),
    gradient: &[f32],
    weight: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let is_padded = direct.is_padded(geometry.out_size);
    let (channels, steps) = (geometry.group_channels(), direct.table.len());
    let taps = geometry.kernel[0] * geometry.kernel[1];
    let scratch = &mut scratch[..direct.scratch_len(geometry)];
    let (picture, turned) = scratch.split_at_mut(geometry.group_out() * direct.plane());
    picture.fill(0.0);
    for group in 0..geometry.conv.groups {
        let weight = &weight[group * channels * steps..][..channels * steps];
        turn_weights((channels, taps), weight, turned);
        for sample in 0..geometry.batch {
            let [x_part, _, out_part] = geometry.parts(sample, group);
            let gradient = &gradient[out_part];
            let data = if is_padded {
                direct.pad(geometry.out_size, gradient, picture);
                &*picture
            } else {
                gradient
            };
            Tiles {
                rows: channels,
                left: Left { data: turned, row_stride: steps, step_stride: 1 },
                right: Right { data, table: &direct.table },
                spans: &direct.spans,
                start: Start::Zero,
                finish: Finish::Keep,
                out: &mut out[x_part],
                out_stride: geometry.plane(),
            }
            .run();
        }
    }
}

/// From `[out, in, taps]` to `[in, out, taps]`.
fn turn_weights((channels, taps): (usize, usize), weight: &[f32], turned: &mut [f32]) {
    let row = turned.len() / channels;
    for (out, weight) in weight.chunks_exact(channels * taps).enumerate() {
        for (channel, taps_of) in weight.chunks_exact(taps).enumerate() {
            turned[channel * row + out * taps..][..taps].copy_from_slice(taps_of);
        }
    }
}

/// `out = sum over samples and places of gradient * x`
pub(in crate::plan) fn weight_gradient(
    (geometry, direct): (&Geometry, &Direct),
    x: &[f32],
    gradient: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let (channels, depth) = (geometry.group_channels(), geometry.depth());
    let scratch = &mut scratch[..direct.scratch_len(geometry)];
    let (picture, sums) = scratch.split_at_mut(channels * direct.plane());
    picture.fill(0.0);
    geometry.for_each_part(|part, [x_part, weight_part, out_part]| {
        direct.pad_channels_last((channels, geometry.size), &x[x_part], picture);
        Tiles {
            rows: geometry.group_out(),
            left: Left { data: &gradient[out_part], row_stride: geometry.places(), step_stride: 1 },
            right: Right { data: picture, table: &direct.table },
            spans: &direct.spans,
            start: if part.sample == 0 { Start::Zero } else { Start::Present },
            finish: Finish::Keep,
            out: &mut sums[weight_part],
            out_stride: depth,
        }
        .run();
    });
    let taps = depth / channels;
    for (sums, out) in sums.chunks_exact(depth).zip(out.chunks_exact_mut(depth)) {
        transpose((taps, channels), (sums, channels), (out, taps));
    }
}

/// One group of one sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) sample: usize,
    pub(super) group: usize,
}

impl Part {
    /// The result's channels that belong to the group.
    fn channels(self, geometry: &Geometry) -> Range<usize> {
        self.group * geometry.group_out()..(self.group + 1) * geometry.group_out()
    }
}
