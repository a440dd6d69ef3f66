//! A graph being drawn for a site: layers that know which axis holds the features, and the map view.

use kernel::op::{Conv, Pool};
use kernel::{Graph, GraphError, Init, NodeId};

use super::{BATCH, INPUT, OUTPUT};
use crate::parameters::Parameters;
use crate::site::{MapSize, Site};

pub(super) type Built = Result<NodeId, GraphError>;

/// A graph being drawn for one site.
pub(super) struct Sketch {
    pub(super) graph: Graph,
    pub(super) site: Site,
    input: NodeId,
}

/// How the weights of a layer start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Start {
    /// Before a rectifier-like function (He et al. 2015), with a spread of biases so that the units of a layer
    /// differ in where they bend.
    Hidden,
    /// Before no function, or one of slope about 1: weights normal with deviation `gain / sqrt(fan_in)`.
    Linear {
        /// Gain of the layer at the start.
        gain: f32,
        /// Every bias.
        bias: f32,
    },
    /// Weights zero, biases uniform within this distance of zero: what the layer gives does not hang on its input yet,
    /// but stands between the whole numbers.
    Scattered {
        /// Largest bias.
        within: f32,
    },
    /// All zero: the branch the layer ends contributes nothing until it has learnt something
    /// (Goyal et al. 2017; Zhang et al. 2019, "Fixup").
    Zero,
}

impl Start {
    /// Before no function, of gain 1 and without bias.
    pub(super) const LINEAR: Self = Self::Linear { gain: 1.0, bias: 0.0 };

    pub(super) fn weight(self, fan_in: usize) -> Init {
        match self {
            Self::Hidden => Init::He { fan_in },
            Self::Linear { gain, .. } => {
                Init::Normal { mean: 0.0, deviation: gain / (fan_in as f32).sqrt() }
            }
            Self::Scattered { .. } | Self::Zero => Init::ZEROS,
        }
    }

    pub(super) fn bias(self, fan_in: usize) -> Init {
        match self {
            Self::Hidden => Init::FanIn { fan_in },
            Self::Linear { bias, .. } => Init::Constant { value: bias },
            Self::Scattered { within } => Init::Uniform { low: -within, high: within },
            Self::Zero => Init::ZEROS,
        }
    }
}

impl Sketch {
    pub(super) fn new(site: Site) -> Result<Self, GraphError> {
        let mut graph = Graph::new();
        let input = graph.input(INPUT, &site.shape(BATCH))?;
        Ok(Self { graph, site, input })
    }

    pub(super) fn input(&self) -> NodeId {
        self.input
    }

    /// Ends the drawing.
    ///
    /// # Panics
    /// When the output has not the input's shape: then the template is wrong, whatever its caller asked for.
    pub(super) fn finish(mut self, output: NodeId) -> Result<Graph, GraphError> {
        let (given, taken) = (self.graph.shape(output), self.graph.shape(self.input));
        assert_eq!(given, taken, "a template preserves the shape of {}", self.site);
        self.graph.output(OUTPUT, output)?;
        Ok(self.graph)
    }

    /// Size of the features view.
    pub(super) fn features(&self) -> usize {
        self.site.features()
    }

    /// A linear map with bias over the features, `name.weight [width_out, width_in]` and `name.bias`.
    pub(super) fn dense(&mut self, x: NodeId, name: &str, width_out: usize, start: Start) -> Built {
        let width_in = self.graph.shape(x)[self.site.feature_axis()];
        if let Site::Image { .. } = self.site {
            return self.conv(x, name, Window::point(width_out), start);
        }
        let graph = &mut self.graph;
        let (weight, bias) = (start.weight(width_in), start.bias(width_in));
        graph.linear_layer_with(x, name, width_out, weight, bias)
    }

    /// A trainable value per feature, in a shape that broadcasts against the site's.
    pub(super) fn per_feature(&mut self, name: &str, init: Init) -> Built {
        let vector = self.graph.parameter(name, &[self.site.features()], init)?;
        match self.site {
            Site::Image { .. } => self.graph.per_channel(vector, 4),
            Site::Vector { .. } | Site::Sequence { .. } => Ok(vector),
        }
    }

    /// The map view of an activation of the site.
    pub(super) fn as_map(&mut self, x: NodeId) -> Built {
        let MapSize { channels, height, width } = self.site.map();
        match self.site {
            Site::Image { .. } => Ok(x),
            Site::Vector { .. } => self.graph.reshape(x, &[channels, height, width]),
            Site::Sequence { .. } => {
                let swapped = self.graph.transpose(x, 1, 2)?;
                self.graph.reshape(swapped, &[channels, height, width])
            }
        }
    }

    /// Back from the map view.
    pub(super) fn restore(&mut self, map: NodeId) -> Built {
        match self.site {
            Site::Image { .. } => Ok(map),
            Site::Vector { features } => self.graph.reshape(map, &[features]),
            Site::Sequence { length, width } => {
                let flat = self.graph.reshape(map, &[width, length])?;
                self.graph.transpose(flat, 1, 2)
            }
        }
    }

    /// A convolution of a map with bias that keeps height and width.
    pub(super) fn conv(&mut self, map: NodeId, name: &str, window: Window, start: Start) -> Built {
        self.conv_apart(map, name, window, [1, 1], start)
    }

    /// The same with the taps `dilation` positions apart, which a window that keeps height and width can be.
    pub(super) fn conv_apart(
        &mut self,
        map: NodeId,
        name: &str,
        window: Window,
        dilation: [usize; 2],
        start: Start,
    ) -> Built {
        let [_, height, width] = self.sides(map);
        let kernel = window.within(height, width);
        let padding = [0, 1].map(|side| dilation[side] * (kernel[side] / 2));
        let conv = Conv { padding, dilation, groups: window.groups, ..Conv::default() };
        self.convolve(map, name, kernel, window.channels_out, conv, start)
    }

    /// A convolution of a map with bias, every attribute given.
    pub(super) fn convolve(
        &mut self,
        map: NodeId,
        name: &str,
        kernel: [usize; 2],
        channels_out: usize,
        conv: Conv,
        start: Start,
    ) -> Built {
        let [channels, ..] = self.sides(map);
        let per_group = channels / conv.groups;
        let fan_in = per_group * kernel[0] * kernel[1];
        let shape = [channels_out, per_group, kernel[0], kernel[1]];
        let graph = &mut self.graph;
        let weight = graph.parameter(&format!("{name}.weight"), &shape, start.weight(fan_in))?;
        let bias = graph.parameter(&format!("{name}.bias"), &[channels_out], start.bias(fan_in))?;
        graph.conv2d(map, weight, Some(bias), conv)
    }

    /// Channels, height and width of a map.
    pub(super) fn sides(&self, map: NodeId) -> [usize; 3] {
        match *self.graph.shape(map) {
            [_, channels, height, width] => [channels, height, width],
            _ => unreachable!("only maps, which have four dimensions, come here"),
        }
    }

    /// Largest value of the neighbourhood of `kernel` positions, at every position of a map.
    pub(super) fn neighbourhood_max(&mut self, map: NodeId, kernel: usize) -> Built {
        let pool = self.neighbourhood(map, kernel);
        self.graph.max_pool2d(map, pool)
    }

    /// Mean of the neighbourhood, positions beyond the edge counting as zero.
    pub(super) fn neighbourhood_mean(&mut self, map: NodeId, kernel: usize) -> Built {
        let pool = self.neighbourhood(map, kernel);
        self.graph.avg_pool2d(map, pool)
    }

    fn neighbourhood(&self, map: NodeId, kernel: usize) -> Pool {
        let [_, height, width] = self.sides(map);
        let kernel = Window { kernel, channels_out: 0, groups: 1 }.within(height, width);
        Pool { kernel, stride: [1, 1], padding: kernel.map(|size| size / 2) }
    }
}

/// What a convolution looks at and gives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Odd number of positions per side.
    pub(super) kernel: usize,
    pub(super) channels_out: usize,
    pub(super) groups: usize,
}

impl Window {
    /// A 1x1 window.
    pub(super) const fn point(channels_out: usize) -> Self {
        Self { kernel: 1, channels_out, groups: 1 }
    }

    /// Height and width of the window on a map: never more than its sides can reach, so that no weight looks at
    /// padding only. A side of one position needs one tap, any other at most twice its length less one.
    pub(super) fn within(self, height: usize, width: usize) -> [usize; 2] {
        [height, width].map(|side| self.kernel.min(2 * side - 1))
    }
}

/// A parameter that [`crate::Blueprint::check`] has found to be there.
pub(super) fn value(parameters: &Parameters, name: &'static str) -> f64 {
    let value = parameters.get(name);
    value.unwrap_or_else(|| unreachable!("parameter {name} was checked before the graph is drawn"))
}

/// The nearest whole number, at least 1.
pub(super) fn whole(value: f64) -> usize {
    value.round().max(1.0) as usize
}

/// The nearest odd number; of two as near, the larger.
pub(super) fn odd(value: f64) -> usize {
    (value / 2.0).floor().max(0.0) as usize * 2 + 1
}

/// The largest divisor of `count` that is at most the nearest whole number to `wanted`.
pub(super) fn divisor(count: usize, wanted: f64) -> usize {
    let most = whole(wanted).min(count);
    (1..=most).rev().find(|&size| count.is_multiple_of(size)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_become_sizes() {
        assert_eq!([1.0, 2.4, 2.5, 4.0].map(whole), [1, 2, 3, 4]);
        assert_eq!([2.0, 3.5, 4.0, 5.0, 7.0].map(odd), [3, 3, 5, 5, 7]);
        assert_eq!([5.0, 8.0, 2.0].map(|wanted| divisor(8, wanted)), [4, 8, 2]);
        assert_eq!((divisor(31, 8.0), divisor(3, 8.0)), (1, 3));
    }

    #[test]
    fn a_window_never_looks_at_padding_only() {
        let window = |kernel| Window { kernel, channels_out: 1, groups: 1 };
        assert_eq!(window(7).within(1, 2), [1, 3]);
        assert_eq!(window(3).within(16, 16), [3, 3]);
    }
}
