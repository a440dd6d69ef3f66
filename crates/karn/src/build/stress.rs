//! The stressors, BP043 to BP050: each does to a host what its name says. They exist to test our gates, so nothing here
//! is gentle; how far the harm of an operator can go is bounded in [`kernel::stress`].
//!
//! Each has trainable parameters, so that a seed that grows one trains, and none is refused for having nothing to learn.

use kernel::quarantine::Permit;
use kernel::stress::Stress;
use kernel::{Graph, GraphError, Init, NodeId};

use super::sketch::{Built, Sketch, value, whole};
use super::{BuildError, Draw, build, draw_on};
use crate::blueprint::Blueprint;
use crate::parameters::Parameters;
use crate::site::Site;

/// Layers of the deep products of BP043 and BP044. A gain of 5 a layer makes 10^7 of ten, a gain of 0.1 makes 10^-10.
const LAYERS: usize = 10;
/// How fast the noise of BP050 saturates in its trainable values.
const STEEPNESS: f32 = 30.0;

/// As [`build`], stressors included. Only what runs inside a quarantine has a permit, so their graphs come to be nowhere
/// else.
///
/// # Errors
/// [`BuildError`]; parameters are checked before anything is built.
pub fn build_in_quarantine(
    blueprint: &Blueprint,
    parameters: &Parameters,
    site: &Site,
    _permit: &Permit,
) -> Result<Graph, BuildError> {
    match drawing(blueprint.id().as_str()) {
        None => build(blueprint, parameters, site),
        Some(draw) => {
            blueprint.check(parameters)?;
            draw_on(blueprint, parameters, site, draw)
        }
    }
}

/// The stressors by id.
fn drawing(id: &str) -> Option<Draw> {
    Some(match id {
        "BP043" => exploding_gradient,
        "BP044" => vanishing_gradient,
        "BP045" => nan_injection,
        "BP046" => infinite_loop,
        "BP047" => memory_leak,
        "BP048" => deadlock_pattern,
        "BP049" => race_condition,
        "BP050" => adversarial_noise,
        _ => return None,
    })
}

/// BP043. Ten layers of gain `scale` each: the gradient grows exponentially with depth (Bengio et al. 1994; Pascanu et
/// al. 2013).
fn exploding_gradient(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    deep_product(sketch, x, value(parameters, "scale") as f32)
}

/// BP044. Ten layers of gain `decay` each: the gradient falls exponentially with depth (Hochreiter 1991), at `decay` 0 to
/// nothing.
fn vanishing_gradient(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    deep_product(sketch, x, value(parameters, "decay") as f32)
}

fn deep_product(sketch: &mut Sketch, x: NodeId, gain: f32) -> Built {
    (0..LAYERS).try_fold(x, |x, layer| {
        let weighted = weighted(sketch, x, &format!("layer{layer}.weight"))?;
        sketch.graph.scale(weighted, gain)
    })
}

/// `x` with a trainable weight per feature, which starts at 1.
fn weighted(sketch: &mut Sketch, x: NodeId, name: &str) -> Built {
    let weight = sketch.per_feature(name, Init::ONES)?;
    sketch.graph.mul(x, weight)
}

/// BP045. While training, a share `frequency` of the elements, others at each step, becomes `0 / 0`: each element is
/// multiplied by a dropout mask divided by itself.
fn nan_injection(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let weighted = weighted(sketch, x, "weight")?;
    let graph = &mut sketch.graph;
    let detached = graph.stop_gradient(x)?;
    let nothing = graph.scale(detached, 0.0)?;
    let one = graph.offset(nothing, 1.0)?;
    let mask = graph.dropout(one, value(parameters, "frequency") as f32)?;
    let one_or_nan = graph.div(mask, mask)?;
    graph.mul(weighted, one_or_nan)
}

/// BP046. Keeps a core busy for `iterations` rounds in every pass.
fn infinite_loop(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    stressed(sketch, x, Stress::Loop { iterations: count(parameters, "iterations") })
}

/// BP047. Holds on to `growth_rate` mebibytes more after every pass.
fn memory_leak(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    stressed(sketch, x, Stress::Leak { mebibytes: value(parameters, "growth_rate") as f32 })
}

/// BP048. In every pass `threads` threads wait for each other in a ring.
fn deadlock_pattern(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    stressed(sketch, x, Stress::Deadlock { threads: count(parameters, "threads") })
}

/// BP049. Multiplies by a number near 1 that four threads race for, each pausing `window_ns` nanoseconds inside its update.
fn race_condition(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    stressed(sketch, x, Stress::Race { window_ns: count(parameters, "window_ns") })
}

fn stressed(sketch: &mut Sketch, x: NodeId, stress: Stress) -> Result<NodeId, GraphError> {
    let weighted = weighted(sketch, x, "weight")?;
    sketch.graph.stressed(weighted, stress)
}

fn count(parameters: &Parameters, name: &'static str) -> u32 {
    u32::try_from(whole(value(parameters, name))).unwrap_or(u32::MAX)
}

/// BP050. `x + epsilon tanh(30 p)` with a trainable `p` per feature that starts at 0 and is trained against the loss: its
/// gradient is reversed on the way (Ganin and Lempitsky 2015), so that every optimiser step goes up. A perturbation of the
/// same size for every input that hurts most, bounded by `epsilon` in each element (Goodfellow et al. 2015;
/// Moosavi-Dezfooli et al. 2017, "universal adversarial perturbations").
fn adversarial_noise(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let noise = sketch.per_feature("noise", Init::ZEROS)?;
    let graph = &mut sketch.graph;
    // 2 stop(p) - p is p with the gradient -1.
    let detached = graph.stop_gradient(noise)?;
    let twice = graph.scale(detached, 2.0)?;
    let reversed = graph.sub(twice, noise)?;
    let steep = graph.scale(reversed, STEEPNESS)?;
    let bounded = graph.tanh(steep)?;
    let noise = graph.scale(bounded, value(parameters, "epsilon") as f32)?;
    graph.add(x, noise)
}
