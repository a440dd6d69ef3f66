//! What is looked up and what is learnt on the way: memory slots, fast weights.

use kernel::op::{Norm, Op};
use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, value, whole};
use crate::parameters::Parameters;

/// Keeps the length of an all-zero row away from zero.
const LENGTH_EPSILON: f32 = 1e-6;

/// BP038. Key-value memory (Miller et al. 2016) of `memory_slots` learnt slots, addressed by content (Graves et al. 2014):
/// `softmax(s cos(W x, k_j)) v_j` with a trainable sharpness `s` that starts at the root of the width. A row is a
/// position, or all of a vector. The output projection starts at zero and the input skips around it. Identity at
/// the start.
pub(super) fn memory_augmented(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let slots = whole(value(parameters, "memory_slots"));
    let rows = sketch.as_rows(x)?;
    let width = sketch.last(rows);
    let query = sketch.linear(rows, "query", width, Start::LINEAR)?;
    let graph = &mut sketch.graph;
    let init = Init::Normal { mean: 0.0, deviation: 1.0 };
    let keys = graph.parameter("memory.keys", &[slots, width], init)?;
    let held = graph.parameter("memory.values", &[slots, width], init)?;
    let query = graph.normalise(query, Norm::RootMeanSquare, &[2], LENGTH_EPSILON)?;
    let keys = graph.normalise(keys, Norm::RootMeanSquare, &[1], LENGTH_EPSILON)?;
    let products = graph.matmul_transposed(query, keys)?;
    let cosines = graph.scale(products, 1.0 / width as f32)?;
    let sharpness = Init::Constant { value: (width as f32).sqrt() };
    let sharpness = graph.parameter("sharpness", &[1], sharpness)?;
    let scores = graph.mul(cosines, sharpness)?;
    let weights = graph.softmax(scores)?;
    let read = graph.matmul(weights, held)?;
    let branch = sketch.linear(read, "out", width, Start::Zero)?;
    let branch = sketch.of_rows(branch)?;
    sketch.graph.add(x, branch)
}

/// BP041. A layer that learns while it is used: `adapt_steps` steps of gradient descent, unrolled and differentiable
/// (Finn et al. 2017, "MAML"), on a fast weight (Schmidhuber 1992) that starts at a learnt `W` for each sample and
/// learns to map the sample's keys to its values (Sun et al. 2024, "TTT"): `W -= r K^T (K W - V) / t` over `t`
/// positions. Then the queries go through it. Keys have length 1 and the trainable rate `r` lies between 0 and 1, so
/// that no step can overshoot. The output projection starts at zero and the input skips around it. Identity at the
/// start.
pub(super) fn meta_learning_layer(
    sketch: &mut Sketch,
    x: NodeId,
    parameters: &Parameters,
) -> Built {
    let steps = whole(value(parameters, "adapt_steps"));
    let tokens = sketch.as_tokens(x)?;
    let (positions, channels) = (sketch.graph.shape(tokens)[1], sketch.last(tokens));
    let mut project = |name| sketch.linear(tokens, name, channels, Start::LINEAR);
    let (query, key, target) = (project("query")?, project("key")?, project("value")?);
    let graph = &mut sketch.graph;
    let key = graph.normalise(key, Norm::RootMeanSquare, &[2], LENGTH_EPSILON)?;
    let key = graph.scale(key, 1.0 / (channels as f32).sqrt())?;
    let deviation = 1.0 / (channels as f32).sqrt();
    let init = Init::Normal { mean: 0.0, deviation };
    let mut fast = graph.parameter("fast.weight", &[channels, channels], init)?;
    let rate = graph.parameter("fast.rate", &[1], Init::ZEROS)?;
    let rate = graph.sigmoid(rate)?;
    for _ in 0..steps {
        let found = graph.matmul(key, fast)?;
        let error = graph.sub(found, target)?;
        let outer = Op::MatMul { transpose_a: true, transpose_b: false };
        let gradient = graph.push(outer, &[key, error])?;
        let gradient = graph.scale(gradient, 1.0 / positions as f32)?;
        let step = graph.mul(gradient, rate)?;
        fast = graph.sub(fast, step)?;
    }
    let read = graph.matmul(query, fast)?;
    let branch = sketch.linear(read, "out", channels, Start::Zero)?;
    let branch = sketch.of_tokens(branch)?;
    sketch.graph.add(x, branch)
}
