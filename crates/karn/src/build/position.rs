//! Where a position stands: waves, and what is learnt over them.

use kernel::{GraphError, Init, NodeId, Tensor};

use super::sketch::{Built, Sketch, value};
use crate::parameters::Parameters;

/// Most pairs of waves over which BP035 learns.
const PAIRS_MAX: usize = 16;
/// The slowest wave of BP035 is this many times slower than its fastest (Vaswani et al. 2017).
const SLOWEST: f64 = 10_000.0;

/// Sine and cosine of `frequency(pair)` radians per position: `[positions, columns]`, pairs side by side.
///
/// By the functions of `libm`, so that the table is the same on every machine.
pub(super) fn waves(
    positions: usize,
    pairs: usize,
    frequency: impl Fn(usize) -> f64,
    columns: usize,
) -> Result<Tensor, GraphError> {
    let mut table = Vec::with_capacity(positions * columns);
    for position in 0..positions {
        let pair = |pair: usize| {
            let angle = frequency(pair) * position as f64;
            [libm::sin(angle) as f32, libm::cos(angle) as f32]
        };
        table.extend((0..pairs).flat_map(pair).take(columns));
    }
    Tensor::new([positions, columns], table)
}

/// BP035. A learnt position encoding over Fourier features (Tancik et al. 2020; Li et al. 2021): to each position is
/// added `W f(p)`, where `f` are sine and cosine waves of which the fastest turns by `frequency` radians per position
/// (1 in Vaswani et al. 2017) and the slowest ten thousand times slower. `W` starts at zero. Identity at the start.
pub(super) fn learned_positional(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let fastest = value(parameters, "frequency");
    let tokens = sketch.as_tokens(x)?;
    let (positions, channels) = (sketch.graph.shape(tokens)[1], sketch.last(tokens));
    let pairs = channels.div_ceil(2).min(PAIRS_MAX);
    let frequency = |pair: usize| fastest * libm::pow(SLOWEST, -(pair as f64) / pairs as f64);
    let table = sketch.graph.constant(waves(positions, pairs, frequency, 2 * pairs)?)?;
    let weight = sketch.graph.parameter("encoding.weight", &[channels, 2 * pairs], Init::ZEROS)?;
    let encoding = sketch.graph.linear(table, weight, None)?;
    let placed = sketch.graph.add(tokens, encoding)?;
    sketch.of_tokens(placed)
}
