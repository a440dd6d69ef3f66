//! Convolutions of unlike reach: by experts, over time, dilated, deformed.

use kernel::op::Conv;
use kernel::{NodeId, Tensor};

use super::sketch::{Built, Sketch, Start, Window, divisor, value, whole};
use super::view::Offset;
use crate::parameters::Parameters;
use crate::site::MapSize;

/// Taps of a convolution over time.
const TIME_TAPS: usize = 3;

/// BP025. Dynamic convolution (Chen et al. 2020; Yang et al. 2019, "CondConv"): `experts` kernels of 3 positions per
/// side are mixed for each sample by a softmax over what its mean activation says, then ReLU and a pointwise
/// projection that starts at zero around which the input skips. The mixture is taken over the kernels' results,
/// which is the same, as a convolution is linear in its kernel. Identity at the start.
pub(super) fn dynamic_conv(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let experts = whole(value(parameters, "experts"));
    let MapSize { channels, height, width } = sketch.site.map();
    let map = sketch.as_map(x)?;
    let mean = sketch.graph.mean(map, &[2, 3])?;
    let logits = sketch.linear(mean, "attention", experts, Start::LINEAR)?;
    let shares = sketch.graph.softmax(logits)?;
    let shares = sketch.graph.reshape(shares, &[experts, 1])?;
    let window = Window { kernel: 3, channels_out: experts * channels, groups: 1 };
    let all = sketch.conv(map, "experts", window, Start::Hidden)?;
    let all = sketch.graph.reshape(all, &[experts, channels * height * width])?;
    let shared = sketch.graph.mul(all, shares)?;
    let mixed = sketch.graph.sum(shared, &[1])?;
    let mixed = sketch.graph.reshape(mixed, &[channels, height, width])?;
    let mixed = sketch.graph.relu(mixed)?;
    skip(sketch, x, mixed)
}

/// The input and a pointwise projection of `hidden`, a map, that starts at zero.
fn skip(sketch: &mut Sketch, x: NodeId, hidden: NodeId) -> Built {
    let channels = sketch.site.map().channels;
    let branch = sketch.conv(hidden, "project", Window::point(channels), Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}

/// BP031. A residual block of the temporal convolutional network (Bai et al. 2018): two causal convolutions of three
/// taps `dilation` steps apart with ReLU, and a projection that starts at zero around which the input skips. Time
/// runs along the positions, row by row on an image; no position sees a later one. Identity at the start.
pub(super) fn temporal_conv(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let MapSize { channels, height, width } = sketch.site.map();
    let length = height * width;
    let dilation = whole(value(parameters, "dilation")).min((length - 1).max(1));
    // A tap beyond the first step would see padding only.
    let taps = TIME_TAPS.min(1 + (length - 1) / dilation);
    let past = (taps - 1) * dilation;
    let map = sketch.as_map(x)?;
    let mut time = sketch.graph.reshape(map, &[channels, 1, length])?;
    for name in ["first", "second"] {
        let conv = Conv { padding: [0, past], dilation: [1, dilation], ..Conv::default() };
        let wide = sketch.convolve(time, name, [1, taps], channels, conv, Start::Hidden)?;
        let causal = match past {
            0 => wide,
            _ => sketch.graph.slice(wide, 3, 0, length)?,
        };
        time = sketch.graph.relu(causal)?;
    }
    let hidden = sketch.graph.reshape(time, &[channels, height, width])?;
    skip(sketch, x, hidden)
}

/// BP032. Context by dilated convolutions (Yu and Koltun 2016): 3 positions per side at dilations 1, 2, 4 and so on up
/// to `dilation`, never wider than the map, each with ReLU, then a pointwise projection that starts at zero around
/// which the input skips. Identity at the start.
pub(super) fn dilated_conv(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let MapSize { channels, height, width } = sketch.site.map();
    let most = whole(value(parameters, "dilation"));
    let mut map = sketch.as_map(x)?;
    let dilations = std::iter::successors(Some(1), |dilation| Some(2 * dilation));
    for dilation in dilations.take_while(|&dilation| dilation <= most) {
        let apart = [height, width].map(|side| dilation.min((side - 1).max(1)));
        let window = Window { kernel: 3, channels_out: channels, groups: 1 };
        let name = format!("dilation{dilation}");
        map = sketch.conv_apart(map, &name, window, apart, Start::Hidden)?;
        map = sketch.graph.relu(map)?;
    }
    skip(sketch, x, map)
}

/// BP033. Deformable convolution (Dai et al. 2017; offset groups as in Zhu et al. 2019): each of the 3 taps per side
/// looks an offset away from its place that a convolution computes at every position, for each of
/// `offset_groups` groups of channels (the largest divisor of the channels up to it). Between positions the
/// activation is interpolated, the share of position `q` at `p` being `max(0, 1 - |p - q|)` per side and zero
/// beyond the edge. ReLU and a pointwise projection that starts at zero, around which the input skips. The offsets
/// start at random within half a position instead of at zero: on a position the share has a kink, where it would
/// pass no gradient. Identity at the start.
pub(super) fn deformable_conv(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let MapSize { channels, height, width } = sketch.site.map();
    let groups = divisor(channels, value(parameters, "offset_groups"));
    let taps = taps(height, width);
    let places = taps.len() * height * width;
    let map = sketch.as_map(x)?;
    let sides = [height, width].iter().filter(|&&side| side > 1).count();
    let mut offsets = Vec::new();
    if sides > 0 {
        let count = groups * taps.len() * sides;
        let window = Window { kernel: 3, channels_out: count, groups: 1 };
        let all = sketch.conv(map, "offset", window, Start::Scattered { within: 0.5 })?;
        for side in 0..sides {
            let share = count / sides;
            let one = sketch.graph.slice(all, 1, side * share, (side + 1) * share)?;
            offsets.push(sketch.graph.reshape(one, &[groups, places, 1])?);
        }
    }
    let mut offsets = offsets.into_iter();
    let per_group = channels / groups;
    let mut taken = sketch.graph.reshape(map, &[groups, per_group * height, width])?;
    // Along the rows first: what each place takes of every row of its group's channels.
    let down = if height > 1 { offsets.next() } else { None };
    taken = match offsets.next() {
        Some(right) => {
            let base = taps.iter().flat_map(|tap| {
                (0..height * width).map(move |at| (at % width) as f32 + tap.1 as f32)
            });
            let shares = shares(sketch, right, base.collect(), width)?;
            sketch.graph.matmul_transposed(shares, taken)?
        }
        // A single column: every place takes all of it.
        None => sketch.graph.transpose(taken, 2, 3)?,
    };
    if let Some(down) = down {
        let base = taps
            .iter()
            .flat_map(|tap| (0..height * width).map(move |at| (at / width) as f32 + tap.0 as f32));
        let shares = shares(sketch, down, base.collect(), height)?;
        let shares = sketch.graph.reshape(shares, &[groups, places, 1, height])?;
        let seen = sketch.graph.shape(taken)[2];
        let rows = sketch.graph.reshape(taken, &[groups, seen, per_group, height])?;
        let weighted = sketch.graph.mul(rows, shares)?;
        taken = sketch.graph.sum(weighted, &[4])?;
    }
    let split = [groups, taps.len(), height * width, per_group];
    let split = sketch.graph.reshape(taken, &split)?;
    let split = sketch.graph.permute(split, &[0, 1, 4, 2, 3])?;
    let columns = sketch.graph.reshape(split, &[channels * taps.len(), height, width])?;
    let mixed = sketch.conv(columns, "taps", Window::point(channels), Start::Hidden)?;
    let mixed = sketch.graph.relu(mixed)?;
    skip(sketch, x, mixed)
}

/// Three taps along each side of more than one position.
fn taps(height: usize, width: usize) -> Vec<Offset> {
    let along = |side: usize| if side > 1 { -1..=1 } else { 0..=0 };
    along(height).flat_map(|row| along(width).map(move |column| (row, column))).collect()
}

/// `[n, groups, places, side]`: the share of each position of a side at `base + offset`.
fn shares(sketch: &mut Sketch, offset: NodeId, base: Vec<f32>, side: usize) -> Built {
    let base = Tensor::new([base.len(), 1], base)?;
    let graph = &mut sketch.graph;
    let base = graph.constant(base)?;
    let place = graph.add(offset, base)?;
    let positions = (0..side).map(|at| at as f32).collect();
    let positions = graph.constant(Tensor::new([side], positions)?)?;
    let distance = graph.sub(place, positions)?;
    let distance = graph.abs(distance)?;
    let distance = graph.neg(distance)?;
    let share = graph.offset(distance, 1.0)?;
    graph.relu(share)
}
