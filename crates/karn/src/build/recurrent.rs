//! One block applied many times: an ordinary differential equation, a recursion.

use kernel::op::{Conv, Norm};
use kernel::{Init, NodeId};

use super::sketch::{Built, Sketch, Start, Window, value, whole};
use super::view::NORM_EPSILON;
use crate::parameters::Parameters;
use crate::site::Site;

/// Two layers that share their weights wherever they are applied: linear over the features, or convolutions of 3
/// positions per side on an image. The second starts at zero.
struct Block {
    first: Weights,
    second: Weights,
}

struct Weights {
    weight: NodeId,
    bias: NodeId,
    /// For an image: how it is convolved.
    conv: Option<Conv>,
}

impl Block {
    /// A block with as many hidden units as features.
    fn new(sketch: &mut Sketch) -> Result<Self, kernel::GraphError> {
        let first = Weights::new(sketch, "expand", Start::Hidden)?;
        let second = Weights::new(sketch, "project", Start::Zero)?;
        Ok(Self { first, second })
    }
}

impl Weights {
    fn new(sketch: &mut Sketch, name: &str, start: Start) -> Result<Self, kernel::GraphError> {
        let features = sketch.features();
        let (shape, conv) = match sketch.site {
            Site::Image { height, width, .. } => {
                let window = Window { kernel: 3, channels_out: features, groups: 1 };
                let kernel = window.within(height, width);
                let padding = kernel.map(|size| size / 2);
                let shape = vec![features, features, kernel[0], kernel[1]];
                (shape, Some(Conv { padding, ..Conv::default() }))
            }
            Site::Vector { .. } | Site::Sequence { .. } => (vec![features, features], None),
        };
        let fan_in = shape[1..].iter().product();
        let graph = &mut sketch.graph;
        let weight = graph.parameter(&format!("{name}.weight"), &shape, start.weight(fan_in))?;
        let bias = graph.parameter(&format!("{name}.bias"), &[features], start.bias(fan_in))?;
        Ok(Self { weight, bias, conv })
    }

    fn apply(&self, sketch: &mut Sketch, x: NodeId) -> Built {
        match self.conv {
            Some(conv) => sketch.graph.conv2d(x, self.weight, Some(self.bias), conv),
            None => sketch.graph.linear(x, self.weight, Some(self.bias)),
        }
    }
}

/// BP039. A neural ordinary differential equation (Chen et al. 2018): `dx/dt = W2 tanh(W1 x + b1 + t u) + b2` from 0 to 1
/// in `steps` steps of the classical Runge-Kutta method of fourth order (Kutta 1901), unrolled, so that its gradient
/// is exact for what is computed. `W1` and `W2` are convolutions of 3 positions per side on an image. `W2` starts at
/// zero. Identity at the start.
pub(super) fn neural_ode_block(sketch: &mut Sketch, x: NodeId, parameters: &Parameters) -> Built {
    let steps = whole(value(parameters, "steps"));
    let block = Block::new(sketch)?;
    let pace = sketch.per_feature("time", Init::Normal { mean: 0.0, deviation: 0.1 })?;
    let slope = |sketch: &mut Sketch, x: NodeId, time: f32| -> Built {
        let hidden = block.first.apply(sketch, x)?;
        let by = sketch.graph.scale(pace, time)?;
        let hidden = sketch.graph.add(hidden, by)?;
        let hidden = sketch.graph.tanh(hidden)?;
        block.second.apply(sketch, hidden)
    };
    let moved = |sketch: &mut Sketch, x: NodeId, slope: NodeId, by: f32| -> Built {
        let by = sketch.graph.scale(slope, by)?;
        sketch.graph.add(x, by)
    };
    let step = 1.0 / steps as f32;
    let mut x = x;
    for index in 0..steps {
        let time = index as f32 * step;
        let first = slope(sketch, x, time)?;
        let middle = moved(sketch, x, first, step / 2.0)?;
        let second = slope(sketch, middle, time + step / 2.0)?;
        let middle = moved(sketch, x, second, step / 2.0)?;
        let third = slope(sketch, middle, time + step / 2.0)?;
        let end = moved(sketch, x, third, step)?;
        let fourth = slope(sketch, end, time + step)?;
        let inner = sketch.graph.add(second, third)?;
        let inner = sketch.graph.scale(inner, 2.0)?;
        let outer = sketch.graph.add(first, fourth)?;
        let all = sketch.graph.add(inner, outer)?;
        x = moved(sketch, x, all, step / 6.0)?;
    }
    Ok(x)
}

/// BP042. Recursive processing (Eigen et al. 2014; Dehghani et al. 2019, "Universal Transformers"): the same block
/// `x + W2 GELU(W1 norm(x) + e_d)` applied `depth` times, where only the learnt vector `e_d` tells the depth and
/// the norm is the root mean square of the features (Zhang and Sennrich 2019). `W1` and `W2` are convolutions of 3
/// positions per side on an image. `W2` starts at zero. Identity at the start.
pub(super) fn recursive_processing(
    sketch: &mut Sketch,
    x: NodeId,
    parameters: &Parameters,
) -> Built {
    let depth = whole(value(parameters, "depth"));
    let block = Block::new(sketch)?;
    let axis = sketch.site.feature_axis();
    let mut x = x;
    for level in 0..depth {
        let init = Init::Normal { mean: 0.0, deviation: 0.1 };
        let mark = sketch.per_feature(&format!("depth{level}"), init)?;
        let normal = sketch.graph.normalise(x, Norm::RootMeanSquare, &[axis], NORM_EPSILON)?;
        let hidden = block.first.apply(sketch, normal)?;
        let hidden = sketch.graph.add(hidden, mark)?;
        let hidden = sketch.graph.gelu(hidden)?;
        let branch = block.second.apply(sketch, hidden)?;
        x = sketch.graph.add(x, branch)?;
    }
    Ok(x)
}
