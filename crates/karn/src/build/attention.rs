//! Gates and attention over channels and positions.

use kernel::op::{Norm, Pool};
use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, Window, divisor, value, whole};
use crate::parameters::Parameters;
use crate::site::{MapSize, Site};

/// Keeps the length of an all-zero channel away from zero.
const LENGTH_EPSILON: f32 = 1e-6;

/// BP016. Squeeze and excitation (Hu et al. 2018): the mean of each feature over all positions goes through a
/// bottleneck of `features / reduction` units to a gate per feature. The gate is `2 sigmoid(z)` with `z` starting at
/// zero, so that it opens as well as it shuts and stands at 1 at the start. A vector's features are the channels here, each
/// of one position. Identity at the start.
pub(super) fn squeeze_excitation(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let features = sketch.features();
    let hidden = whole(features as f64 / value(parameters, "reduction"));
    let squeezed = match sketch.site {
        Site::Vector { .. } => x,
        Site::Image { .. } => sketch.graph.mean_keep(x, &[2, 3])?,
        Site::Sequence { .. } => sketch.graph.mean_keep(x, &[1])?,
    };
    let squeezed = sketch.dense(squeezed, "squeeze", hidden, Start::Hidden)?;
    let squeezed = sketch.graph.relu(squeezed)?;
    let excited = sketch.dense(squeezed, "excite", features, Start::Zero)?;
    unit_gate(sketch, x, excited)
}

/// `x 2 sigmoid(logit)`: 1 at a logit of zero.
fn unit_gate(sketch: &mut Sketch, x: NodeId, logit: NodeId) -> Built {
    let gate = sketch.graph.sigmoid(logit)?;
    let gate = sketch.graph.scale(gate, 2.0)?;
    sketch.graph.mul(x, gate)
}

/// BP017. Attention over channels by their cross-covariance (El-Nouby et al. 2021, "XCiT"): within each of `heads`
/// groups of channels, `softmax(t cos(q_i, k_j)) v_j` with a trainable temperature `t` per head, where the lengths of
/// `q` and `k` run over positions. The output projection starts at zero and the input skips around it. The
/// number of heads is the largest divisor of the channels up to the parameter that leaves two channels to each.
/// Identity at the start.
pub(super) fn channel_attention(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let MapSize { channels, height, width } = sketch.site.map();
    // A head of one channel has nothing to attend to but itself.
    let heads_max = (channels / 2) as f64;
    let heads = divisor(channels, value(parameters, "heads").min(heads_max));
    let positions = height * width;
    let map = sketch.as_map(x)?;
    let split = [heads, channels / heads, positions];
    let mut project = |name| {
        let start = Start::Linear { gain: 1.0, bias: 0.0 };
        let projected = sketch.conv(map, name, Window::point(channels), start)?;
        sketch.graph.reshape(projected, &split)
    };
    let (query, key, channel_values) = (project("query")?, project("key")?, project("value")?);

    // Unit root mean square times its like, over the number of positions, is the cosine.
    let graph = &mut sketch.graph;
    let query = graph.normalise(query, Norm::RootMeanSquare, &[3], LENGTH_EPSILON)?;
    let key = graph.normalise(key, Norm::RootMeanSquare, &[3], LENGTH_EPSILON)?;
    let products = graph.matmul_transposed(query, key)?;
    let cosines = graph.scale(products, 1.0 / positions as f32)?;
    let temperature = graph.parameter("temperature", &[heads, 1, 1], Init::ONES)?;
    let scores = graph.mul(cosines, temperature)?;
    let weights = graph.softmax(scores)?;
    let mixed = graph.matmul(weights, channel_values)?;

    let mixed = sketch.graph.reshape(mixed, &[channels, height, width])?;
    let branch = sketch.conv(mixed, "out", Window::point(channels), Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}

/// BP018. Spatial attention (Woo et al. 2018, "CBAM"): mean and maximum over the channels, convolved over the
/// neighbourhood within `radius` of each position, give a gate per position. As for BP016 the gate is `2 sigmoid(z)`
/// with `z` starting at zero. Identity at the start.
pub(super) fn spatial_attention(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let MapSize { channels, height, width } = sketch.site.map();
    let radius = whole(value(parameters, "radius"));
    let map = sketch.as_map(x)?;
    let mean = sketch.graph.mean_keep(map, &[1])?;
    let columns = sketch.graph.reshape(map, &[1, channels, height * width])?;
    let over_channels = Pool { kernel: [channels, 1], stride: [1, 1], padding: [0, 0] };
    let largest = sketch.graph.max_pool2d(columns, over_channels)?;
    let largest = sketch.graph.reshape(largest, &[1, height, width])?;
    let described = sketch.graph.concat(&[mean, largest], 1)?;
    let window = Window { kernel: 2 * radius + 1, channels_out: 1, groups: 1 };
    let logit = sketch.conv(described, "neighbourhood", window, Start::Zero)?;
    let gated = unit_gate(sketch, map, logit)?;
    sketch.restore(gated)
}
