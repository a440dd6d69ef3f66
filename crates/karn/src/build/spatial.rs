//! Templates over neighbouring positions of the map view: pooling and convolutions.

use kernel::NodeId;

use super::sketch::{Built, Sketch, Start, Window, divisor, odd, value};
use crate::parameters::Parameters;

/// BP007. Largest value of each neighbourhood of `kernel` positions per side (odd, so that it has a middle), at every
/// position: max pooling with stride 1, which keeps the shape (as in Szegedy et al. 2015).
pub(super) fn pooling_max(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let kernel = odd(value(parameters, "kernel"));
    let map = sketch.as_map(x)?;
    let pooled = sketch.neighbourhood_max(map, kernel)?;
    sketch.restore(pooled)
}

/// BP013. `x + P ReLU(G x)`: a convolution of 3 positions per side whose channels are split into `groups`
/// (Krizhevsky et al. 2012; Xie et al. 2017), then a pointwise one `P` that starts at zero. The number of groups is
/// the largest divisor of the channels up to the parameter. Identity at the start.
pub(super) fn grouped_conv(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let channels = sketch.site.map().channels;
    let groups = divisor(channels, value(parameters, "groups"));
    let window = Window { kernel: 3, channels_out: channels, groups };
    convolve_and_project(sketch, x, "grouped", window)
}

/// BP015. `x + P ReLU(D x)`: each channel convolved by itself with `kernel` positions per side (odd), then a pointwise
/// convolution `P` that starts at zero (Chollet 2017; Howard et al. 2017). Identity at the start.
pub(super) fn depthwise_separable(
    sketch: &mut Sketch,
    x: NodeId,
    parameters: &Parameters,
) -> Built {
    let channels = sketch.site.map().channels;
    let kernel = odd(value(parameters, "kernel"));
    let window = Window { kernel, channels_out: channels, groups: channels };
    convolve_and_project(sketch, x, "depthwise", window)
}

fn convolve_and_project(sketch: &mut Sketch, x: NodeId, name: &str, window: Window) -> Built {
    let map = sketch.as_map(x)?;
    let hidden = sketch.conv(map, name, window, Start::Hidden)?;
    let hidden = sketch.graph.relu(hidden)?;
    let point = Window::point(window.channels_out);
    let branch = sketch.conv(hidden, "pointwise", point, Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}
