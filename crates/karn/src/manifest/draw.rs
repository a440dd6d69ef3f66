//! From a manifest to its graph for a site.

use kernel::op::{Conv, Extent, Op, Pool};
use kernel::{Graph, GraphError, Init, NodeId, Tensor};

use super::operator::{Operation, Starts};
use super::{Expression, MANIFEST_TENSOR_MAX, MANIFEST_WEIGHTS_MAX, Manifest, Node};
use crate::build::{BATCH, INPUT, OUTPUT};
use crate::parameters::Parameters;
use crate::site::Site;

/// Largest size an expression may give.
const SIZE_MAX: f64 = 65_536.0;

/// Why a node cannot be drawn for a site.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DrawError {
    /// The blueprint does not take sites of this kind.
    #[error("it is made for {made_for}")]
    Kind {
        /// The kinds it is made for.
        made_for: String,
    },
    /// An attribute is no size.
    #[error(
        "line {line}: nodes.{node}.{attribute} is {value}; a whole number from {least} to {SIZE_MAX} is needed"
    )]
    Size {
        /// Line of the manifest.
        line: usize,
        /// The node.
        node: String,
        /// Its attribute.
        attribute: &'static str,
        /// What the expression gives.
        value: f64,
        /// Smallest possible size.
        least: u32,
    },
    /// The operator refuses.
    #[error("line {line}: nodes.{node}: {source}")]
    Operator {
        /// Line of the manifest.
        line: usize,
        /// The node.
        node: String,
        /// Why.
        source: GraphError,
    },
    /// The graph is too large.
    #[error("line {line}: nodes.{node}: {found} numbers in {what}; at most {limit} may be")]
    TooLarge {
        /// Line of the manifest.
        line: usize,
        /// The node.
        node: String,
        /// One tensor, or all weights.
        what: &'static str,
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The output has another shape than the input.
    #[error("line {line}: output: its shape is {found:?}; it must be the input's, {expected:?}")]
    Output {
        /// Line of the manifest.
        line: usize,
        /// Shape of the output.
        found: Vec<usize>,
        /// Shape of the input.
        expected: Vec<usize>,
    },
}

impl DrawError {
    /// Line of the manifest at fault; the first where it is the whole.
    pub(crate) fn line(&self) -> usize {
        match self {
            Self::Kind { .. } => 1,
            Self::Size { line, .. }
            | Self::Operator { line, .. }
            | Self::TooLarge { line, .. }
            | Self::Output { line, .. } => *line,
        }
    }
}

/// The numbers a site gives to expressions, by name.
pub(crate) fn site_names(site: &Site) -> Vec<(&'static str, usize)> {
    match *site {
        Site::Vector { features } => vec![("features", features)],
        Site::Sequence { length, width } => {
            vec![("features", width), ("length", length), ("width", width)]
        }
        Site::Image { channels, height, width } => {
            vec![
                ("features", channels),
                ("channels", channels),
                ("height", height),
                ("width", width),
            ]
        }
    }
}

/// Every name that some site gives.
pub(crate) const SITE_NAMES: [&str; 5] = ["features", "length", "width", "channels", "height"];

/// The kind of a site.
pub(crate) fn kind(site: &Site) -> &'static str {
    match site {
        Site::Vector { .. } => "vector",
        Site::Sequence { .. } => "sequence",
        Site::Image { .. } => "image",
    }
}

/// Draws the graph.
pub(crate) fn draw(
    manifest: &Manifest,
    parameters: &Parameters,
    site: &Site,
) -> Result<Graph, DrawError> {
    if !manifest.sites.iter().any(|known| kind(known) == kind(site)) {
        let mut kinds: Vec<_> = manifest.sites.iter().map(kind).collect();
        kinds.dedup();
        return Err(DrawError::Kind { made_for: format!("{} sites", kinds.join(" and ")) });
    }
    let mut graph = Graph::new();
    let whole = |source| DrawError::Operator { line: 1, node: INPUT.to_owned(), source };
    let input = graph.input(INPUT, &site.shape(BATCH)).map_err(whole)?;
    let mut named = vec![(INPUT.to_owned(), input)];
    for node in &manifest.nodes {
        let drawing = Drawing { node, parameters, site };
        let inputs: Vec<NodeId> = node
            .inputs
            .iter()
            .filter_map(|name| named.iter().find(|(known, _)| known == name).map(|(_, id)| *id))
            .collect();
        let drawn = drawing.draw(&mut graph, &inputs)?;
        let len: usize = graph.shape(drawn).iter().product();
        drawing.bound("one tensor", len, MANIFEST_TENSOR_MAX)?;
        drawing.bound("all weights", graph.parameter_count(), MANIFEST_WEIGHTS_MAX)?;
        named.push((node.name.clone(), drawn));
    }
    let output =
        named.iter().find(|(name, _)| *name == manifest.output).map_or(input, |(_, id)| *id);
    if graph.shape(output) != graph.shape(input) {
        return Err(DrawError::Output {
            line: manifest.output_line,
            found: graph.shape(output).to_vec(),
            expected: graph.shape(input).to_vec(),
        });
    }
    graph.output(OUTPUT, output).map_err(whole)?;
    Ok(graph)
}

struct Drawing<'a> {
    node: &'a Node,
    parameters: &'a Parameters,
    site: &'a Site,
}

impl Drawing<'_> {
    fn number(&self, expression: &Expression) -> f64 {
        let sizes = site_names(self.site);
        let named = |name: &str| {
            let size = sizes.iter().find(|(known, _)| *known == name).map(|(_, size)| *size as f64);
            size.or_else(|| self.parameters.get(name))
        };
        expression.value(&named)
    }

    fn size(
        &self,
        attribute: &'static str,
        expression: &Expression,
        least: u32,
    ) -> Result<usize, DrawError> {
        let value = self.number(expression);
        let is_size = value.fract() == 0.0 && (f64::from(least)..=SIZE_MAX).contains(&value);
        if is_size {
            return Ok(value as usize);
        }
        let (line, node) = (self.node.line, self.node.name.clone());
        Err(DrawError::Size { line, node, attribute, value, least })
    }

    fn sizes(
        &self,
        attribute: &'static str,
        expressions: &[Expression],
        least: u32,
    ) -> Result<Vec<usize>, DrawError> {
        expressions.iter().map(|one| self.size(attribute, one, least)).collect()
    }

    fn bound(&self, what: &'static str, found: usize, limit: usize) -> Result<(), DrawError> {
        if found <= limit {
            return Ok(());
        }
        let (line, node) = (self.node.line, self.node.name.clone());
        Err(DrawError::TooLarge { line, node, what, found, limit })
    }

    fn refused(&self, source: GraphError) -> DrawError {
        DrawError::Operator { line: self.node.line, node: self.node.name.clone(), source }
    }

    fn draw(&self, graph: &mut Graph, inputs: &[NodeId]) -> Result<NodeId, DrawError> {
        use Operation as O;
        let built = match &self.node.operation {
            O::Linear { out, start } => {
                let out = self.size("out", out, 1)?;
                let fan_in = graph.shape(inputs[0]).last().copied().unwrap_or(1);
                self.bound("all weights", fan_in.saturating_mul(out), MANIFEST_WEIGHTS_MAX)?;
                let (weight, bias) = layer_start(*start, fan_in);
                graph.linear_layer_with(inputs[0], &self.node.name, out, weight, bias)
            }
            O::Convolution { out, kernel, groups, start } => {
                let (out, kernel) = (self.size("out", out, 1)?, self.size("kernel", kernel, 1)?);
                let groups = self.size("groups", groups, 1)?;
                return self.convolution(graph, inputs[0], [out, kernel, groups], *start);
            }
            O::LayerNorm { epsilon } => {
                graph.layer_norm(inputs[0], &self.node.name, self.number(epsilon) as f32)
            }
            O::Attention { heads } => {
                let heads = self.size("heads", heads, 1)?;
                graph.attention(inputs[0], inputs[1], inputs[2], heads)
            }
            O::Weight { shape, start } => {
                let shape = self.sizes("shape", shape, 1)?;
                let len = shape.iter().fold(1_usize, |len, &size| len.saturating_mul(size));
                self.bound("all weights", len, MANIFEST_WEIGHTS_MAX)?;
                let fan_in = shape.iter().skip(1).product();
                graph.parameter(&self.node.name, &shape, start_of(*start, fan_in))
            }
            O::Constant { value } => graph.constant(Tensor::scalar(self.number(value) as f32)),
            O::Unary(function) => graph.unary(*function, inputs[0]),
            O::Scale { by } => graph.scale(inputs[0], self.number(by) as f32),
            O::Offset { by } => graph.offset(inputs[0], self.number(by) as f32),
            O::Clamp { low, high } => {
                graph.clamp(inputs[0], self.number(low) as f32, self.number(high) as f32)
            }
            O::Binary(function) => graph.push(Op::Binary(*function), inputs),
            O::MatMul { transpose_a, transpose_b } => {
                let (transpose_a, transpose_b) = (*transpose_a, *transpose_b);
                graph.push(Op::MatMul { transpose_a, transpose_b }, inputs)
            }
            O::Softmax => graph.softmax(inputs[0]),
            O::LogSoftmax => graph.log_softmax(inputs[0]),
            O::Normalise { norm, axes, epsilon } => {
                let axes = self.sizes("axes", axes, 1)?;
                graph.normalise(inputs[0], *norm, &axes, self.number(epsilon) as f32)
            }
            O::Dropout { rate } => graph.dropout(inputs[0], self.number(rate) as f32),
            O::MaxPool { kernel } => {
                let pool = self.pool(kernel)?;
                graph.max_pool2d(inputs[0], pool)
            }
            O::AvgPool { kernel } => {
                let pool = self.pool(kernel)?;
                graph.avg_pool2d(inputs[0], pool)
            }
            O::Reshape { shape } => {
                let shape = self.sizes("shape", shape, 1)?;
                let rest = shape.into_iter().map(Extent::Size);
                graph.push(Op::Reshape([Extent::Rest].into_iter().chain(rest).collect()), inputs)
            }
            O::Permute { order } => {
                let order = self.sizes("order", order, 1)?;
                let order: Vec<usize> = [0].into_iter().chain(order).collect();
                graph.permute(inputs[0], &order)
            }
            O::Concat { axis } => graph.concat(inputs, self.size("axis", axis, 1)?),
            O::Slice { axis, start, end } => {
                let (axis, start) = (self.size("axis", axis, 1)?, self.size("start", start, 0)?);
                graph.slice(inputs[0], axis, start, self.size("end", end, 1)?)
            }
            O::Sum { axes } => graph.sum_keep(inputs[0], &self.sizes("axes", axes, 1)?),
            O::Mean { axes } => graph.mean_keep(inputs[0], &self.sizes("axes", axes, 1)?),
        };
        built.map_err(|source| self.refused(source))
    }

    /// A window of `kernel` positions per side that keeps height and width.
    fn pool(&self, kernel: &Expression) -> Result<Pool, DrawError> {
        let size = self.size("kernel", kernel, 1)?;
        Ok(Pool { kernel: [size, size], stride: [1, 1], padding: [size / 2, size / 2] })
    }

    fn convolution(
        &self,
        graph: &mut Graph,
        x: NodeId,
        [out, kernel, groups]: [usize; 3],
        start: Starts,
    ) -> Result<NodeId, DrawError> {
        let channels = graph.shape(x).get(1).copied().unwrap_or(1);
        let per_group = channels / groups;
        let shape = [out, per_group.max(1), kernel, kernel];
        let len = shape.iter().fold(1_usize, |len, &size| len.saturating_mul(size));
        self.bound("all weights", len, MANIFEST_WEIGHTS_MAX)?;
        let (weight, bias) = layer_start(start, shape[1..].iter().product());
        let name = &self.node.name;
        let padding = [kernel / 2, kernel / 2];
        let drawn = (|| {
            let weight = graph.parameter(&format!("{name}.weight"), &shape, weight)?;
            let bias = graph.parameter(&format!("{name}.bias"), &[out], bias)?;
            graph.conv2d(x, weight, Some(bias), Conv { padding, groups, ..Conv::default() })
        })();
        drawn.map_err(|source| self.refused(source))
    }
}

/// Weight and bias of a layer.
fn layer_start(start: Starts, fan_in: usize) -> (Init, Init) {
    let bias = match start {
        Starts::Hidden => Init::FanIn { fan_in },
        Starts::Linear | Starts::Zero | Starts::One => Init::ZEROS,
    };
    (start_of(start, fan_in), bias)
}

fn start_of(start: Starts, fan_in: usize) -> Init {
    match start {
        Starts::Hidden => Init::He { fan_in },
        Starts::Linear => Init::Normal { mean: 0.0, deviation: 1.0 / (fan_in as f32).sqrt() },
        Starts::Zero => Init::ZEROS,
        Starts::One => Init::ONES,
    }
}
