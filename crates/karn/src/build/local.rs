//! Attention within bounds: blocks, windows, neighbours, levels.

use kernel::{NodeId, Tensor};

use super::position::waves;
use super::sketch::{Built, Sketch, Start, Window, value, whole};
use super::transformer::{Attention, BLOCK_HEADS};
use super::view::{Offset, Side};
use crate::parameters::Parameters;
use crate::site::{MapSize, Site};

/// Added to a score so that its share in a softmax is zero.
const NEVER: f32 = -1e9;
/// Slope of the leaky rectifier of BP030 below zero (Veličković et al. 2018).
const LEAK: f32 = 0.2;
/// Fewest features in which BP034 compares positions.
const COMPARED_MIN: usize = 4;

/// A side cut into blocks as even as can be.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut {
    side: usize,
    count: usize,
    size: usize,
}

impl Cut {
    /// Into as few blocks of at most `most` positions as hold the side.
    fn new(side: usize, most: usize) -> Self {
        let count = side.div_ceil(most);
        Self { side, count, size: side.div_ceil(count) }
    }

    /// Positions of the last block that lie beyond the side.
    fn beyond(self) -> usize {
        self.count * self.size - self.side
    }

    /// Fills the last block with the side's first positions, which nobody may attend to.
    fn fill(self, sketch: &mut Sketch, x: NodeId, axis: usize) -> Built {
        match self.beyond() {
            0 => Ok(x),
            beyond => {
                let filling = sketch.graph.slice(x, axis, 0, beyond)?;
                sketch.graph.concat(&[x, filling], axis)
            }
        }
    }
}

/// Attention of one head among `rows [n, blocks, size, c]` of the same block, in `width` features. `hidden` says of
/// each row of each block whether it is filling.
fn attend_in_blocks(
    sketch: &mut Sketch,
    rows: NodeId,
    width: usize,
    hidden: &[Vec<bool>],
) -> Built {
    let mut project = |name| sketch.linear(rows, name, width, Start::LINEAR);
    let (query, key, values) = (project("query")?, project("key")?, project("value")?);
    let scores = sketch.graph.matmul_transposed(query, key)?;
    let mut scores = sketch.graph.scale(scores, 1.0 / (width as f32).sqrt())?;
    if hidden.iter().flatten().any(|&hidden| hidden) {
        let mask = hidden.iter().flatten().map(|&hidden| if hidden { NEVER } else { 0.0 });
        let shape = [hidden.len(), 1, hidden[0].len()];
        let mask = sketch.graph.constant(Tensor::new(shape, mask.collect())?)?;
        scores = sketch.graph.add(scores, mask)?;
    }
    let weights = sketch.graph.softmax(scores)?;
    sketch.graph.matmul(weights, values)
}

/// BP020. Self-attention of one head (Vaswani et al. 2017) over sequences of `sequence_length`: sine waves whose
/// longest has that length tell the positions apart, and more positions than that are cut into blocks that attend
/// within themselves. Layer norm before it (Xiong et al. 2020); the output projection starts at zero and the input
/// skips around it. Identity at the start.
pub(super) fn attention_single_head(
    sketch: &mut Sketch,
    x: NodeId,
    parameters: &Parameters,
) -> Built {
    let length = value(parameters, "sequence_length");
    let tokens = sketch.as_tokens(x)?;
    let (positions, channels) = (sketch.graph.shape(tokens)[1], sketch.last(tokens));
    let normal = sketch.norm(tokens, "norm")?;
    let pairs = channels.div_ceil(2);
    let shortest = std::f64::consts::TAU;
    let frequency = |pair: usize| {
        let along = (pair + 1) as f64 / pairs as f64;
        1.0 / libm::pow(length / shortest, along)
    };
    let table = waves(positions, pairs, frequency, channels)?;
    let table = sketch.graph.constant(table)?;
    let placed = sketch.graph.add(normal, table)?;

    let cut = Cut::new(positions, whole(length));
    let filled = cut.fill(sketch, placed, 1)?;
    let rows = sketch.graph.reshape(filled, &[cut.count, cut.size, channels])?;
    let hidden: Vec<Vec<bool>> = (0..cut.count)
        .map(|block| (0..cut.size).map(|at| block * cut.size + at >= positions).collect())
        .collect();
    let mixed = attend_in_blocks(sketch, rows, channels, &hidden)?;
    let mixed = sketch.graph.reshape(mixed, &[cut.count * cut.size, channels])?;
    let mixed = match cut.beyond() {
        0 => mixed,
        _ => sketch.graph.slice(mixed, 1, 0, positions)?,
    };
    let branch = sketch.linear(mixed, "out", channels, Start::Zero)?;
    let branch = sketch.of_tokens(branch)?;
    sketch.graph.add(x, branch)
}

/// BP034. Non-local block (Wang et al. 2018, embedded Gaussian) within windows of at most `window` positions per side
/// (Liu et al. 2021, "Swin"), as even as can be. Positions are compared in half as many features as there are
/// channels; each of a vector's features is a position of one channel here. The output projection starts at zero
/// and the input skips around it. Identity at the start.
pub(super) fn non_local_block(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let window = whole(value(parameters, "window"));
    let map = match sketch.site {
        Site::Vector { features } => sketch.graph.reshape(x, &[1, 1, features])?,
        Site::Image { .. } | Site::Sequence { .. } => sketch.as_map(x)?,
    };
    let [channels, height, width] = sketch.sides(map);
    let (down, right) = (Cut::new(height, window), Cut::new(width, window));
    let filled = down.fill(sketch, map, 2)?;
    let filled = right.fill(sketch, filled, 3)?;
    let split = [channels, down.count, down.size, right.count, right.size];
    let split = sketch.graph.reshape(filled, &split)?;
    let split = sketch.graph.permute(split, &[0, 2, 4, 3, 5, 1])?;
    let (windows, size) = (down.count * right.count, down.size * right.size);
    let rows = sketch.graph.reshape(split, &[windows, size, channels])?;

    let is_beyond = |window: usize, at: usize| {
        let row = window / right.count * down.size + at / right.size;
        let column = window % right.count * right.size + at % right.size;
        row >= height || column >= width
    };
    let hidden: Vec<Vec<bool>> =
        (0..windows).map(|window| (0..size).map(|at| is_beyond(window, at)).collect()).collect();
    let mixed = attend_in_blocks(sketch, rows, (channels / 2).max(COMPARED_MIN), &hidden)?;
    let branch = sketch.linear(mixed, "out", channels, Start::Zero)?;

    let joined = [down.count, right.count, down.size, right.size, channels];
    let joined = sketch.graph.reshape(branch, &joined)?;
    let joined = sketch.graph.permute(joined, &[0, 5, 1, 3, 2, 4])?;
    let filled = [channels, down.count * down.size, right.count * right.size];
    let mut branch = sketch.graph.reshape(joined, &filled)?;
    if down.beyond() > 0 {
        branch = sketch.graph.slice(branch, 2, 0, height)?;
    }
    if right.beyond() > 0 {
        branch = sketch.graph.slice(branch, 3, 0, width)?;
    }
    let branch = match sketch.site {
        Site::Vector { features } => sketch.graph.reshape(branch, &[features])?,
        Site::Image { .. } | Site::Sequence { .. } => sketch.restore(branch)?,
    };
    sketch.graph.add(x, branch)
}

/// BP030. Graph attention (Veličković et al. 2018) on the graph of the positions, a path or a grid: a position attends
/// to itself and to those at most `hops` edges away, `softmax(leaky(a h_i + b h_j)) h_j` with `h = W x`, then SiLU and
/// a projection that starts at zero around which the input skips. Identity at the start.
pub(super) fn graph_attention(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let hops = whole(value(parameters, "hops"));
    let MapSize { channels, height, width } = sketch.site.map();
    let positions = height * width;
    let neighbours = neighbours(hops, height, width);
    let map = sketch.as_map(x)?;
    let nodes = sketch.conv(map, "transform", Window::point(channels), Start::LINEAR)?;
    let here = sketch.conv(nodes, "here", Window::point(1), Start::LINEAR)?;
    let here = sketch.graph.reshape(here, &[1, 1, positions])?;
    let there = sketch.conv(nodes, "there", Window::point(1), Start::LINEAR)?;
    let there = sketch.unfold(there, &neighbours)?;

    let graph = &mut sketch.graph;
    let sum = graph.add(there, here)?;
    let above = graph.relu(sum)?;
    let above = graph.scale(above, 1.0 - LEAK)?;
    let below = graph.scale(sum, LEAK)?;
    let scores = graph.add(above, below)?;
    let mask = graph.constant(edges(&neighbours, height, width)?)?;
    let scores = graph.add(scores, mask)?;
    let scores = graph.transpose(scores, 2, 3)?;
    let weights = graph.softmax(scores)?;
    let weights = graph.transpose(weights, 2, 3)?;

    let around = sketch.unfold(nodes, &neighbours)?;
    let weighted = sketch.graph.mul(around, weights)?;
    let mixed = sketch.graph.sum(weighted, &[2])?;
    let mixed = sketch.graph.reshape(mixed, &[channels, height, width])?;
    let mixed = sketch.graph.silu(mixed)?;
    let branch = sketch.conv(mixed, "out", Window::point(channels), Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}

/// Steps of at most `hops` edges on a grid, as far as its sides can be crossed.
fn neighbours(hops: usize, height: usize, width: usize) -> Vec<Offset> {
    let reach = |side: usize| hops.min(side - 1) as isize;
    let (down, right) = (reach(height), reach(width));
    (-down..=down)
        .flat_map(|row| (-right..=right).map(move |column| (row, column)))
        .filter(|(row, column)| row.unsigned_abs() + column.unsigned_abs() <= hops)
        .collect()
}

/// `[neighbours, positions]`: zero where the neighbour is on the grid.
fn edges(neighbours: &[Offset], height: usize, width: usize) -> Result<Tensor, kernel::GraphError> {
    let is_there = |at: usize, step: isize, side: usize| {
        at.checked_add_signed(step).is_some_and(|place| place < side)
    };
    let score = |&(down, right): &Offset, at: usize| {
        let on_grid = is_there(at / width, down, height) && is_there(at % width, right, width);
        if on_grid { 0.0 } else { NEVER }
    };
    let positions = height * width;
    let scores = neighbours.iter().flat_map(|step| (0..positions).map(move |at| score(step, at)));
    Tensor::new([neighbours.len(), positions], scores.collect())
}

/// BP037. Hierarchical attention: every position attends at once to the positions and to `levels - 1` coarser levels of
/// them, each the mean over two neighbours per side of the one below (Yang et al. 2021, "Focal"; the hierarchy of
/// Yang et al. 2016). A learnt vector tells each level. Two heads, layer norm before, the output projection starts
/// at zero and the input skips around it. Identity at the start.
pub(super) fn hierarchical_attention(
    sketch: &mut Sketch,
    x: NodeId,
    parameters: &Parameters,
) -> Built {
    let levels = whole(value(parameters, "levels"));
    let MapSize { channels, height, width } = sketch.site.map();
    let tokens = sketch.as_tokens(x)?;
    let normal = sketch.norm(tokens, "norm")?;
    let map = sketch.tokens_as_map(normal)?;
    let mut parts = Vec::with_capacity(levels);
    for level in 0..levels {
        let pool = |side: usize| Side::pool(side, side.div_ceil(1 << level));
        let coarse = sketch.resize(map, pool(height), pool(width))?;
        let coarse = sketch.map_as_tokens(coarse)?;
        let init = kernel::Init::Normal { mean: 0.0, deviation: 0.02 };
        let mark = sketch.graph.parameter(&format!("level{level}"), &[channels], init)?;
        parts.push(sketch.graph.add(coarse, mark)?);
    }
    let source = sketch.graph.concat(&parts, 1)?;
    let attention = Attention { name: "attention", heads: BLOCK_HEADS, out: Start::Zero };
    let branch = attention.draw(sketch, normal, source)?;
    let branch = sketch.of_tokens(branch)?;
    sketch.graph.add(x, branch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_few_and_even() {
        let cut = |side, most| {
            let cut = Cut::new(side, most);
            (cut.count, cut.size, cut.beyond())
        };
        assert_eq!([cut(32, 10), cut(12, 16), cut(256, 136)], [(4, 8, 0), (1, 12, 0), (2, 128, 0)]);
        assert_eq!([cut(31, 10), cut(5, 4), cut(1, 4)], [(4, 8, 1), (2, 3, 1), (1, 1, 0)]);
    }

    #[test]
    fn neighbours_are_those_within_the_hops() {
        assert_eq!(neighbours(1, 1, 4), [(0, -1), (0, 0), (0, 1)]);
        assert_eq!((neighbours(1, 5, 5).len(), neighbours(3, 9, 9).len()), (5, 25));
        assert_eq!(neighbours(3, 1, 1), [(0, 0)]);
        let mask = edges(&neighbours(1, 1, 3), 1, 3).unwrap();
        assert_eq!(mask.data(), [NEVER, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, NEVER]);
    }
}
