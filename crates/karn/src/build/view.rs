//! Further views of an activation: positions as tokens, samples as rows, maps of another size, neighbourhoods.

use kernel::op::Conv;
use kernel::{GraphError, NodeId, Tensor};

use super::sketch::{Built, Sketch, Start};
use crate::site::{MapSize, Site};

/// Added to a variance before its root is taken.
pub(super) const NORM_EPSILON: f32 = 1e-5;

/// A step from a position to another one, in rows and columns.
pub(super) type Offset = (isize, isize);

impl Sketch {
    /// Positions of the map view as tokens, `[n, positions, channels]`, the layout of attention.
    pub(super) fn as_tokens(&mut self, x: NodeId) -> Built {
        let MapSize { channels, height, width } = self.site.map();
        match self.site {
            Site::Sequence { .. } => Ok(x),
            Site::Vector { .. } | Site::Image { .. } => {
                let flat = self.graph.reshape(x, &[channels, height * width])?;
                self.graph.transpose(flat, 1, 2)
            }
        }
    }

    /// Back from tokens of the map's channels.
    pub(super) fn of_tokens(&mut self, tokens: NodeId) -> Built {
        match self.site {
            Site::Sequence { .. } => Ok(tokens),
            Site::Vector { .. } | Site::Image { .. } => {
                let rest = self.site.shape(1);
                let flat = self.graph.transpose(tokens, 1, 2)?;
                self.graph.reshape(flat, &rest[1..])
            }
        }
    }

    /// The features view as rows, `[n, rows, features]`: the tokens, or a vector as one row of all its features.
    pub(super) fn as_rows(&mut self, x: NodeId) -> Built {
        match self.site {
            Site::Vector { features } => self.graph.reshape(x, &[1, features]),
            Site::Image { .. } | Site::Sequence { .. } => self.as_tokens(x),
        }
    }

    /// Back from rows of the site's features.
    pub(super) fn of_rows(&mut self, rows: NodeId) -> Built {
        match self.site {
            Site::Vector { features } => self.graph.reshape(rows, &[features]),
            Site::Image { .. } | Site::Sequence { .. } => self.of_tokens(rows),
        }
    }

    /// Tokens of any width as a map of that many channels.
    pub(super) fn tokens_as_map(&mut self, tokens: NodeId) -> Built {
        let MapSize { height, width, .. } = self.site.map();
        let channels = self.last(tokens);
        let flat = self.graph.transpose(tokens, 1, 2)?;
        self.graph.reshape(flat, &[channels, height, width])
    }

    /// A map of any size as tokens.
    pub(super) fn map_as_tokens(&mut self, map: NodeId) -> Built {
        let [channels, height, width] = self.sides(map);
        let flat = self.graph.reshape(map, &[channels, height * width])?;
        self.graph.transpose(flat, 1, 2)
    }

    /// Size of the last dimension.
    pub(super) fn last(&self, x: NodeId) -> usize {
        self.graph.shape(x).last().copied().unwrap_or(1)
    }

    /// A linear map with bias over the last dimension, whatever the site.
    pub(super) fn linear(
        &mut self,
        x: NodeId,
        name: &str,
        width_out: usize,
        start: Start,
    ) -> Built {
        let fan_in = self.last(x);
        let (weight, bias) = (start.weight(fan_in), start.bias(fan_in));
        self.graph.linear_layer_with(x, name, width_out, weight, bias)
    }

    /// Layer norm over the last dimension.
    pub(super) fn norm(&mut self, x: NodeId, name: &str) -> Built {
        self.graph.layer_norm(x, name, NORM_EPSILON)
    }

    /// A map of another height and width, each side changed by a matrix `[new side, old side]`.
    pub(super) fn resize(&mut self, map: NodeId, rows: Side, columns: Side) -> Built {
        let mut map = map;
        if !columns.is_identity() {
            let matrix = self.graph.constant(columns.matrix()?)?;
            map = self.graph.matmul_transposed(map, matrix)?;
        }
        if !rows.is_identity() {
            let matrix = self.graph.constant(rows.matrix()?)?;
            let turned = self.graph.transpose(map, 2, 3)?;
            let turned = self.graph.matmul_transposed(turned, matrix)?;
            map = self.graph.transpose(turned, 2, 3)?;
        }
        Ok(map)
    }

    /// What stands at each of the `offsets` from each position of a map, `[n, channels, offsets, positions]`; zero
    /// beyond the edge. A convolution with fixed one-hot weights, the channels taken one by one.
    pub(super) fn unfold(&mut self, map: NodeId, offsets: &[Offset]) -> Built {
        let [channels, height, width] = self.sides(map);
        let reach = |pick: fn(&Offset) -> isize| {
            offsets.iter().map(|offset| pick(offset).unsigned_abs()).max().unwrap_or(0)
        };
        let padding = [reach(|offset| offset.0), reach(|offset| offset.1)];
        let kernel = padding.map(|most| 2 * most + 1);
        let mut weight = vec![0.0; offsets.len() * kernel[0] * kernel[1]];
        for (index, &(down, right)) in offsets.iter().enumerate() {
            let row = padding[0].strict_add_signed(down);
            let column = padding[1].strict_add_signed(right);
            weight[(index * kernel[0] + row) * kernel[1] + column] = 1.0;
        }
        let weight = Tensor::new([offsets.len(), 1, kernel[0], kernel[1]], weight)?;
        let weight = self.graph.constant(weight)?;
        let single = self.graph.reshape(map, &[1, height, width])?;
        let conv = Conv { padding, ..Conv::default() };
        let taken = self.graph.conv2d(single, weight, None, conv)?;
        self.graph.reshape(taken, &[channels, offsets.len(), height * width])
    }
}

/// Longest side that is brought to another size by a matrix.
const SIDE_MAX: usize = 1024;

/// How one side of a map is brought to another size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    way: Way,
    old: usize,
    new: usize,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Pool,
    Unpool,
    Nearest,
}

impl Side {
    /// Adaptive average pooling to `bins`: bin `i` of `b` is the mean of positions `floor(i s / b)` to below
    /// `ceil((i + 1) s / b)` of `s`, which repeats positions where there are more bins than positions.
    pub(super) const fn pool(side: usize, bins: usize) -> Self {
        Self { way: Way::Pool, old: side, new: bins }
    }

    /// The way back from [`Side::pool`]: each position is the mean of the bins it went into.
    pub(super) const fn unpool(side: usize, bins: usize) -> Self {
        Self { way: Way::Unpool, old: bins, new: side }
    }

    /// Each position of the larger side repeats the one of the smaller side it lies over.
    pub(super) const fn nearest(small: usize, large: usize) -> Self {
        Self { way: Way::Nearest, old: small, new: large }
    }

    const fn is_identity(self) -> bool {
        self.old == self.new
    }

    /// What position `at` of the new side is made of: a share of each position of the old one.
    fn row(self, at: usize) -> Vec<f32> {
        let Self { way, old, new } = self;
        let is_part = |from: usize| match way {
            Way::Pool => (at * old / new..((at + 1) * old).div_ceil(new)).contains(&from),
            Way::Unpool => (from * new / old..((from + 1) * new).div_ceil(old)).contains(&at),
            Way::Nearest => at * old / new == from,
        };
        let share = 1.0 / (0..old).filter(|&from| is_part(from)).count() as f32;
        (0..old).map(|from| if is_part(from) { share } else { 0.0 }).collect()
    }

    /// `[new side, old side]`
    fn matrix(self) -> Result<Tensor, GraphError> {
        let shape = [self.new, self.old];
        if shape.iter().any(|&side| side > SIDE_MAX) {
            let expected = format!("sides of at most {SIDE_MAX} positions");
            let shapes = vec![shape.to_vec()];
            return Err(GraphError::Shape { operator: "resize", shapes, expected });
        }
        Tensor::new(shape, (0..self.new).flat_map(|at| self.row(at)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adaptive_pooling_is_that_of_pytorch() {
        // torch.nn.functional.adaptive_avg_pool1d of 0, 1, 2, 3, 4 to 3 bins gives 0.5, 2, 3.5.
        let values = [0.0, 1.0, 2.0, 3.0, 4.0];
        let mean = |bin: usize| {
            let row = Side::pool(5, 3).row(bin);
            row.iter().zip(values).map(|(share, value)| share * value).sum::<f32>()
        };
        assert_eq!([0, 1, 2].map(mean), [0.5, 2.0, 3.5]);
        assert!(Side::pool(4, 4).is_identity() && Side::unpool(4, 4).is_identity());
        let wide = [0, 1, 2, 3].map(|at| Side::pool(2, 4).row(at));
        assert_eq!(wide, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]);
        let back = [0, 1].map(|at| Side::unpool(2, 4).row(at));
        assert_eq!(back, [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]);
    }

    #[test]
    fn a_side_too_long_is_refused_before_its_matrix_is_made() {
        assert!(matches!(Side::pool(1 << 40, 1 << 39).matrix(), Err(GraphError::Shape { .. })));
    }

    #[test]
    fn a_position_repeats_the_one_it_lies_over() {
        let rows = [0, 1, 2].map(|at| Side::nearest(2, 3).row(at));
        assert_eq!(rows, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]);
    }
}
