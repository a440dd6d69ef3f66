//! Other sizes of the map, and back: pooling to a fixed size, pyramids.

use kernel::op::Conv;
use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, Window, value, whole};
use super::view::Side;
use crate::parameters::Parameters;

/// BP026. Adaptive pooling (He et al. 2014; the bins of PyTorch's `adaptive_avg_pool2d`) to `output_size` bins per side of
/// more than one position, where a map of that size, whatever the site's, goes through a pointwise layer with
/// SiLU and a learnt weight per channel and bin. Back at its places it is projected, starting at zero, and added to
/// the input. Identity at the start.
pub(super) fn adaptive_pooling(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let bins = whole(value(parameters, "output_size"));
    let map = sketch.as_map(x)?;
    let [channels, height, width] = sketch.sides(map);
    let [rows, columns] = [height, width].map(|side| if side > 1 { bins } else { 1 });
    let pooled = sketch.resize(map, Side::pool(height, rows), Side::pool(width, columns))?;
    let hidden = sketch.conv(pooled, "inner", Window::point(channels), Start::Hidden)?;
    let hidden = sketch.graph.silu(hidden)?;
    let weights = sketch.graph.parameter("bins", &[channels, rows, columns], Init::ONES)?;
    let hidden = sketch.graph.mul(hidden, weights)?;
    let back = sketch.resize(hidden, Side::unpool(height, rows), Side::unpool(width, columns))?;
    let branch = sketch.conv(back, "project", Window::point(channels), Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}

/// BP027. Feature pyramid (Lin et al. 2017): `levels` maps, each a convolution of 3 positions per side with stride 2 and
/// SiLU of the one below; from the coarsest down, each is repeated to the size of the next and added to its pointwise
/// projection. The finest is smoothed by a convolution with SiLU and projected, starting at zero, and the input
/// skips around it. A side of one position is not halved further. Identity at the start.
pub(super) fn feature_pyramid(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let levels = whole(value(parameters, "levels"));
    let map = sketch.as_map(x)?;
    let channels = sketch.site.map().channels;
    let mut bottom_up = vec![map];
    for level in 1..levels {
        let below = bottom_up[level - 1];
        bottom_up.push(halve(sketch, below, &format!("level{level}.down"))?);
    }
    let mut merged: Option<NodeId> = None;
    for (level, &map) in bottom_up.iter().enumerate().rev() {
        let name = format!("level{level}.lateral");
        let lateral = sketch.conv(map, &name, Window::point(channels), Start::LINEAR)?;
        merged = Some(match merged {
            None => lateral,
            Some(coarse) => {
                let ([_, from_rows, from_columns], [_, rows, columns]) =
                    (sketch.sides(coarse), sketch.sides(lateral));
                let down = Side::nearest(from_rows, rows);
                let right = Side::nearest(from_columns, columns);
                let coarse = sketch.resize(coarse, down, right)?;
                sketch.graph.add(lateral, coarse)?
            }
        });
    }
    let merged = merged.unwrap_or(map);
    let window = Window { kernel: 3, channels_out: channels, groups: 1 };
    let smooth = sketch.conv(merged, "smooth", window, Start::Hidden)?;
    let smooth = sketch.graph.silu(smooth)?;
    let branch = sketch.conv(smooth, "project", Window::point(channels), Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}

/// A map of half the height and width, rounded up.
fn halve(sketch: &mut Sketch, map: NodeId, name: &str) -> Built {
    let [channels, height, width] = sketch.sides(map);
    let kernel = Window { kernel: 3, channels_out: channels, groups: 1 }.within(height, width);
    let stride = [height, width].map(|side| if side > 1 { 2 } else { 1 });
    let conv = Conv { stride, padding: kernel.map(|size| size / 2), ..Conv::default() };
    let halved = sketch.convolve(map, name, kernel, channels, conv, Start::Hidden)?;
    sketch.graph.silu(halved)
}
