//! Blocks over the features: residual, fusing and gated.

use kernel::NodeId;

use super::sketch::{Built, Sketch, Start, Window, value, whole};
use crate::parameters::Parameters;
use crate::site::Site;

/// Hidden units of a residual layer per feature of the host.
const EXPANSION: usize = 2;
/// Layers of a dense block.
const DENSE_LAYERS: usize = 3;

/// BP008. `x + (x W + b)`: the projection shortcut of He et al. (2015, option C) around which the input skips.
/// Identity at the start.
pub(super) fn skip_connection(sketch: &mut Sketch, x: NodeId, _: &Parameters) -> Built {
    let width = sketch.features();
    let projected = sketch.dense(x, "projection", width, Start::Zero)?;
    sketch.graph.add(x, projected)
}

/// BP009. `depth` residual layers (He et al. 2016), each `x + W2 SiLU(W1 x + b1) + b2` with twice as many hidden
/// units as features and `W2` starting at zero (Zhang et al. 2019). On images `W1` and `W2` are 3x3
/// convolutions. There is no normalisation: what a layer learns then does not hang on the batch or on the scale
/// of its neighbours, and a fossilised block keeps computing the same function. Identity at the start.
pub(super) fn residual_block(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let depth = whole(value(parameters, "depth"));
    (0..depth).try_fold(x, |x, layer| residual_layer(sketch, x, &format!("layer{layer}")))
}

fn residual_layer(sketch: &mut Sketch, x: NodeId, name: &str) -> Built {
    let width = sketch.features();
    let (expand, project) = (format!("{name}.expand"), format!("{name}.project"));
    let hidden = mix(sketch, x, &expand, EXPANSION * width, Start::Hidden)?;
    let hidden = sketch.graph.silu(hidden)?;
    let branch = mix(sketch, hidden, &project, width, Start::Zero)?;
    sketch.graph.add(x, branch)
}

/// A linear map over features, or a 3x3 convolution over an image.
fn mix(sketch: &mut Sketch, x: NodeId, name: &str, width_out: usize, start: Start) -> Built {
    match sketch.site {
        Site::Image { .. } => {
            let window = Window { kernel: 3, channels_out: width_out, groups: 1 };
            sketch.conv(x, name, window, start)
        }
        Site::Vector { .. } | Site::Sequence { .. } => sketch.dense(x, name, width_out, start),
    }
}

/// BP010. `branches` of unlike reach side by side, concatenated and fused (Szegedy et al. 2015): branch `i` is a
/// convolution of `2 i + 1` positions per side, or on a vector, which has no neighbours, a stack of `i + 1` layers.
/// The fusing map starts at zero and the input skips around it (Szegedy et al. 2017). Identity at the start.
pub(super) fn concat_fusion(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let branches = whole(value(parameters, "branches"));
    let width = sketch.features();
    let share = width.div_ceil(branches);
    let parts: Result<Vec<_>, _> =
        (0..branches).map(|index| branch(sketch, x, index, share)).collect();
    let joined = sketch.graph.concat(&parts?, sketch.site.feature_axis())?;
    let fused = sketch.dense(joined, "fuse", width, Start::Zero)?;
    sketch.graph.add(x, fused)
}

fn branch(sketch: &mut Sketch, x: NodeId, index: usize, width_out: usize) -> Built {
    let name = format!("branch{index}");
    if let Site::Vector { .. } = sketch.site {
        return (0..=index).try_fold(x, |x, layer| {
            let hidden =
                sketch.dense(x, &format!("{name}.layer{layer}"), width_out, Start::Hidden)?;
            sketch.graph.silu(hidden)
        });
    }
    let map = sketch.as_map(x)?;
    let window = Window { kernel: 2 * index + 1, channels_out: width_out, groups: 1 };
    let hidden = sketch.conv(map, &format!("{name}.layer0"), window, Start::Hidden)?;
    let hidden = sketch.graph.silu(hidden)?;
    match sketch.site {
        Site::Sequence { length, .. } => {
            let flat = sketch.graph.reshape(hidden, &[width_out, length])?;
            sketch.graph.transpose(flat, 1, 2)
        }
        Site::Vector { .. } | Site::Image { .. } => Ok(hidden),
    }
}

/// BP014. Highway layer (Srivastava et al. 2015): `T h + (1 - T) x` with `h = SiLU(W x + b)` and the transform gate
/// `T = sigmoid(W_T x + b_T)`. `gate_bias` is `b_T` at the start: negative carries, positive transforms. `W_T` starts
/// at zero, so that the gate stands exactly where the parameter says.
pub(super) fn highway_gate(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let bias = value(parameters, "gate_bias") as f32;
    let width = sketch.features();
    let gate = sketch.dense(x, "gate", width, Start::Linear { gain: 0.0, bias })?;
    let gate = sketch.graph.sigmoid(gate)?;
    let transformed = sketch.dense(x, "transform", width, Start::Hidden)?;
    let transformed = sketch.graph.silu(transformed)?;
    let difference = sketch.graph.sub(transformed, x)?;
    let moved = sketch.graph.mul(gate, difference)?;
    sketch.graph.add(x, moved)
}

/// BP021. Gated feed-forward layer (Dauphin et al. 2017; Shazeer 2020, "SwiGLU"): `x + W2 (SiLU(W1 x) * V x)` with
/// `hidden_multiple` times as many hidden units as features. `W2` starts at zero. Identity at the start.
pub(super) fn feedforward_gated(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let width = sketch.features();
    let hidden = whole(width as f64 * value(parameters, "hidden_multiple"));
    let gate = sketch.dense(x, "gate", hidden, Start::Hidden)?;
    let gate = sketch.graph.silu(gate)?;
    let values = sketch.dense(x, "value", hidden, Start::LINEAR)?;
    let gated = sketch.graph.mul(gate, values)?;
    let branch = sketch.dense(gated, "project", width, Start::Zero)?;
    sketch.graph.add(x, branch)
}

/// BP028. Dense connections (Huang et al. 2017): three layers with ReLU, each seeing the input and all layers before
/// it and adding `growth_rate` features, then a transition back to the input's features that starts at zero and
/// around which the input skips. On images the layers are 3x3 convolutions. Identity at the start.
pub(super) fn dense_connection(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let growth = whole(value(parameters, "growth_rate"));
    let axis = sketch.site.feature_axis();
    let mut seen = x;
    for layer in 0..DENSE_LAYERS {
        let grown = mix(sketch, seen, &format!("layer{layer}"), growth, Start::Hidden)?;
        let grown = sketch.graph.relu(grown)?;
        seen = sketch.graph.concat(&[seen, grown], axis)?;
    }
    let width = sketch.features();
    let branch = sketch.dense(seen, "transition", width, Start::Zero)?;
    sketch.graph.add(x, branch)
}
