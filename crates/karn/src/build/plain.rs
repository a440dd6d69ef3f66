//! Templates that treat every feature by itself, or all of them at once, without neighbours.

use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, value};
use crate::parameters::Parameters;

/// Added to the variance of batch norm; PyTorch's default.
const BATCH_NORM_EPSILON: f32 = 1e-5;

/// BP001. The input itself. Identity always.
pub(super) fn identity_passthrough(_: &mut Sketch, x: NodeId, _: &Parameters) -> Built {
    Ok(x)
}

/// BP002. `SiLU(x W + b)` (Elfwing et al. 2018; Ramachandran et al. 2017). `scale` is the gain of `W` at the start:
/// its elements have deviation `scale / sqrt(fan_in)` (LeCun et al. 1998).
pub(super) fn linear_projection(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let gain = value(parameters, "scale") as f32;
    let width = sketch.features();
    let projected = sketch.dense(x, "projection", width, Start::Linear { gain, bias: 0.0 })?;
    sketch.graph.silu(projected)
}

/// BP003. Layer norm (Ba et al. 2016) over the features of a vector or of each position of a sequence, and over all
/// of an image's activation, with a weight and a bias per feature. `epsilon` is added to the variance.
pub(super) fn layer_norm_basic(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let epsilon = value(parameters, "epsilon") as f32;
    match sketch.graph.shape(x).len() {
        4 => sketch.graph.group_norm(x, "norm", 1, epsilon),
        _ => sketch.graph.layer_norm(x, "norm", epsilon),
    }
}

/// BP004. Dropout (Srivastava et al. 2014) of the share `dropout`. Identity after training.
pub(super) fn dropout_light(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    sketch.graph.dropout(x, value(parameters, "dropout") as f32)
}

/// BP005. `max(x, 0)` (Nair and Hinton 2010).
pub(super) fn relu_activation(sketch: &mut Sketch, x: NodeId, _: &Parameters) -> Built {
    sketch.graph.relu(x)
}

/// BP006. Batch norm (Ioffe and Szegedy 2015), with a weight and a bias per feature. `momentum` is the share of the
/// running statistics that each step keeps.
pub(super) fn batch_norm_1d(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let momentum = value(parameters, "momentum") as f32;
    if sketch.site.feature_axis() == 1 {
        return sketch.graph.batch_norm(x, "norm", momentum, BATCH_NORM_EPSILON);
    }
    let map = sketch.as_map(x)?;
    let normal = sketch.graph.batch_norm(map, "norm", momentum, BATCH_NORM_EPSILON)?;
    sketch.restore(normal)
}

/// BP011. `x Phi(x)` (Hendrycks and Gimpel 2016).
pub(super) fn gelu_activation(sketch: &mut Sketch, x: NodeId, _: &Parameters) -> Built {
    sketch.graph.gelu(x)
}

/// BP012. LayerScale (Touvron et al. 2021): one trainable factor per feature, starting at `scale`. Identity at the
/// start where `scale` is 1, its midpoint.
pub(super) fn layer_scaling(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let value = value(parameters, "scale") as f32;
    let factor = sketch.per_feature("scale", Init::Constant { value })?;
    sketch.graph.mul(x, factor)
}
