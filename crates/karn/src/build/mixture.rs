//! Mixtures: of experts by the input, of operations by what was learnt.

use kernel::op::Pool;
use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, Window, value, whole};
use crate::parameters::Parameters;

/// Deviation of the architecture's weights at the start (Liu et al. 2019).
const ARCHITECTURE_DEVIATION: f32 = 1e-3;

/// BP036. Mixture of experts (Shazeer et al. 2017): a router's softmax sends each row to its best expert (Fedus et al.
/// 2022, "Switch") and with weight `capacity - 1` to its second best (Lepikhin et al. 2021, "GShard"), so that
/// `capacity` is the number of experts a row has on average. An expert is `W2 SiLU(W1 x)` with as many hidden units as
/// features; what it gives is weighted by its probability, which is how the router learns. A row is a position, or
/// all of a vector. All experts are computed, the gates of those not chosen are zero. `W2` starts at zero and the
/// input skips around it. Identity at the start.
pub(super) fn mixture_of_experts(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let experts = whole(value(parameters, "experts"));
    let second = (value(parameters, "capacity") - 1.0) as f32;
    let rows = sketch.as_rows(x)?;
    let (count, width) = (sketch.graph.shape(rows)[1], sketch.last(rows));
    let logits = sketch.linear(rows, "router", experts, Start::LINEAR)?;
    let chances = sketch.graph.softmax(logits)?;
    let chances = sketch.graph.reshape(chances, &[1, count, experts])?;

    let best = largest(sketch, chances)?;
    let graph = &mut sketch.graph;
    // Probabilities are at most 1: taking 2 from the best one puts it behind all others.
    let without_best = graph.scale(best, -2.0)?;
    let others = graph.add(chances, without_best)?;
    let next = largest(sketch, others)?;
    let graph = &mut sketch.graph;
    let next = graph.scale(next, second)?;
    let chosen = graph.add(best, next)?;
    let gates = graph.mul(chances, chosen)?;
    let gates = graph.reshape(gates, &[count, experts, 1])?;

    let hidden = sketch.linear(rows, "experts.expand", experts * width, Start::Hidden)?;
    let hidden = sketch.graph.silu(hidden)?;
    let hidden = sketch.graph.reshape(hidden, &[count, experts, width])?;
    let gated = sketch.graph.mul(hidden, gates)?;
    let gated = sketch.graph.reshape(gated, &[count, experts * width])?;
    let branch = sketch.linear(gated, "experts.project", width, Start::Zero)?;
    let branch = sketch.of_rows(branch)?;
    sketch.graph.add(x, branch)
}

/// 1 at the largest value of the last dimension of `[n, 1, rows, values]`, otherwise 0.
fn largest(sketch: &mut Sketch, values: NodeId) -> Built {
    let pool = Pool { kernel: [1, sketch.last(values)], stride: [1, 1], padding: [0, 0] };
    let graph = &mut sketch.graph;
    let most = graph.max_pool2d(values, pool)?;
    let short = graph.sub(most, values)?;
    let is_short = graph.unary(kernel::op::Unary::Step, short)?;
    let is_short = graph.neg(is_short)?;
    graph.offset(is_short, 1.0)
}

/// BP040. The mixed operation of differentiable architecture search (Liu et al. 2019, "DARTS"): six operations side by
/// side, weighted by the softmax of learnt logits over `temperature` (Xie et al. 2019; Jang et al. 2017): nothing
/// changed, a separable convolution, a separable dilated one, the mean and the largest of the neighbourhood, a
/// pointwise layer. The mixture is projected, starting at zero, and the input skips around it. Identity at the start.
pub(super) fn differentiable_nas(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let temperature = value(parameters, "temperature") as f32;
    let map = sketch.as_map(x)?;
    let [channels, height, width] = sketch.sides(map);
    let wide = [height, width].map(|side| 2.min((side - 1).max(1)));
    let operations = [
        map,
        separable(sketch, map, "separable", [1, 1])?,
        separable(sketch, map, "dilated", wide)?,
        sketch.neighbourhood_mean(map, 3)?,
        sketch.neighbourhood_max(map, 3)?,
        sketch.conv(map, "pointwise", Window::point(channels), Start::LINEAR)?,
    ];
    let graph = &mut sketch.graph;
    let init = Init::Normal { mean: 0.0, deviation: ARCHITECTURE_DEVIATION };
    let logits = graph.parameter("architecture", &[operations.len()], init)?;
    let logits = graph.scale(logits, 1.0 / temperature)?;
    let shares = graph.softmax(logits)?;
    let mut mixture: Option<NodeId> = None;
    for (index, &operation) in operations.iter().enumerate() {
        let share = graph.slice(shares, 0, index, index + 1)?;
        let part = graph.mul(operation, share)?;
        mixture = Some(match mixture {
            None => part,
            Some(sum) => graph.add(sum, part)?,
        });
    }
    let mixture = mixture.unwrap_or(map);
    let branch = sketch.conv(mixture, "project", Window::point(channels), Start::Zero)?;
    let branch = sketch.restore(branch)?;
    sketch.graph.add(x, branch)
}

/// ReLU, a depthwise convolution of 3 positions per side, a pointwise one.
fn separable(sketch: &mut Sketch, map: NodeId, name: &str, apart: [usize; 2]) -> Built {
    let [channels, ..] = sketch.sides(map);
    let bent = sketch.graph.relu(map)?;
    let window = Window { kernel: 3, channels_out: channels, groups: channels };
    let deep =
        sketch.conv_apart(bent, &format!("{name}.depthwise"), window, apart, Start::LINEAR)?;
    sketch.conv(deep, &format!("{name}.pointwise"), Window::point(channels), Start::LINEAR)
}
