//! From a template to its graph: `plain` (functions without neighbours), `residual` (blocks over features), `spatial`,
//! `convolution` and `pyramid` (blocks over positions), `attention` (gates), `transformer` and `local` (attention
//! over positions), `position`, `mixture`, `memory` and `recurrent`, all drawn with `sketch` and its views.

mod attention;
mod convolution;
mod local;
mod memory;
mod mixture;
mod plain;
mod position;
mod pyramid;
mod recurrent;
mod residual;
mod sketch;
mod spatial;
mod stress;
mod transformer;
mod view;

use kernel::{Cost, Graph, GraphError};
use leyline::ids::BlueprintId;

use crate::blueprint::{Blueprint, Tier};
use crate::manifest::{self, DrawError};
use crate::parameters::{Parameters, ParametersError};
use crate::site::Site;
use sketch::Sketch;
pub use stress::build_in_quarantine;

/// Name of a kernel's input: the activation of the host at the slot.
pub const INPUT: &str = "input";

/// Name of a kernel's output: what takes the activation's place, in the same shape.
pub const OUTPUT: &str = "output";

/// Samples in the batch a graph is built for; [`Graph::with_batch`] changes it. The published guards are taken at it.
pub const BATCH: usize = 8;

/// Why a graph was not built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// The parameters do not fit the blueprint.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// The template is in the catalogue, but has no graph yet.
    #[error("blueprint {blueprint} ({name}) has no graph yet")]
    NotYetBuilt {
        /// The blueprint.
        blueprint: BlueprintId,
        /// Its name.
        name: &'static str,
    },
    /// The template is a stressor, which is built in quarantine only: [`build_in_quarantine`].
    #[error("blueprint {blueprint} ({name}) is a stressor; it is built in quarantine only")]
    Stressor {
        /// The blueprint.
        blueprint: BlueprintId,
        /// Its name.
        name: &'static str,
    },
    /// The site does not suit the operators: a size of zero, or one too large.
    #[error("blueprint {blueprint} cannot be built for {site}")]
    Site {
        /// The blueprint.
        blueprint: BlueprintId,
        /// The site asked for.
        site: Site,
        /// Which operator refused, and why.
        source: Box<GraphError>,
    },
    /// A user's blueprint does not suit the site.
    #[error("blueprint {blueprint} cannot be built for {site}")]
    Manifest {
        /// The blueprint.
        blueprint: BlueprintId,
        /// The site asked for.
        site: Site,
        /// Which node refused, and why.
        source: Box<DrawError>,
    },
    /// The site makes the graph too large.
    #[error(
        "blueprint {blueprint} cannot be built for {site}: {what} would have {found} numbers; at most {limit} may be. Attach it where the activation is smaller"
    )]
    TooLarge {
        /// The blueprint.
        blueprint: BlueprintId,
        /// The site asked for.
        site: Site,
        /// What is too large.
        what: &'static str,
        /// Its numbers.
        found: usize,
        /// The bound.
        limit: usize,
    },
}

/// Most numbers in one sample of a site's activation: one million.
pub const SITE_LEN_MAX: usize = 1 << 20;
/// Most numbers in one tensor of a graph for [`BATCH`] samples: 256 MiB.
pub const TENSOR_LEN_MAX: usize = 1 << 26;
/// Most numbers in all parameters of a graph, so that they fit into an artifact beside its manifest: 192 MiB.
pub const WEIGHTS_MAX: usize = 48 << 20;

impl BuildError {
    /// Line of the manifest at fault, for a user's blueprint.
    pub(crate) fn line(&self) -> usize {
        match self {
            Self::Manifest { source, .. } => source.line(),
            Self::Parameters(_)
            | Self::NotYetBuilt { .. }
            | Self::Stressor { .. }
            | Self::Site { .. }
            | Self::TooLarge { .. } => 1,
        }
    }

    /// The error and its cause on one line.
    pub fn full_text(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Whether a blueprint fits a site, without building anything of its size: shapes only. What it would cost, for
/// [`BATCH`] samples.
///
/// # Errors
/// [`BuildError`], which says with operator, input and expected shapes what does not fit.
pub fn check(
    blueprint: &Blueprint,
    parameters: &Parameters,
    site: &Site,
) -> Result<Cost, BuildError> {
    build(blueprint, parameters, site).map(|graph| Cost::of(&graph))
}

/// Builds the graph of a blueprint for a site: one input [`INPUT`], one output [`OUTPUT`] of the same shape, for
/// [`BATCH`] samples. The same arguments give the same graph, byte for byte. A graph holds shapes, not weights.
///
/// # Errors
/// [`BuildError`]; parameters are checked before anything is built.
pub fn build(
    blueprint: &Blueprint,
    parameters: &Parameters,
    site: &Site,
) -> Result<Graph, BuildError> {
    blueprint.check(parameters)?;
    let (id, name) = (blueprint.id(), blueprint.name());
    if blueprint.tier() == Tier::HighRisk {
        return Err(BuildError::Stressor { blueprint: id.clone(), name });
    }
    let too_large = |what, found, limit| BuildError::TooLarge {
        blueprint: id.clone(),
        site: *site,
        what,
        found,
        limit,
    };
    let sizes = site.shape(1);
    let len = sizes.iter().fold(1_usize, |len, &size| len.saturating_mul(size));
    if len > SITE_LEN_MAX {
        return Err(too_large("one sample", len, SITE_LEN_MAX));
    }
    let graph = draw(blueprint, parameters, site)?;
    let weights = graph.parameter_count();
    if weights > WEIGHTS_MAX {
        return Err(too_large("its parameters", weights, WEIGHTS_MAX));
    }
    let largest = graph.nodes().iter().map(|node| node.shape().iter().product()).max();
    match largest {
        Some(len) if len > TENSOR_LEN_MAX => Err(too_large("one tensor", len, TENSOR_LEN_MAX)),
        _ => Ok(graph),
    }
}

fn draw(blueprint: &Blueprint, parameters: &Parameters, site: &Site) -> Result<Graph, BuildError> {
    let (id, name) = (blueprint.id(), blueprint.name());
    if let Some(manifest) = blueprint.manifest() {
        return manifest::draw(manifest, parameters, site).map_err(|source| {
            let (blueprint, site, source) = (id.clone(), *site, Box::new(source));
            BuildError::Manifest { blueprint, site, source }
        });
    }
    let Some(draw) = drawing(id.as_str()) else {
        return Err(BuildError::NotYetBuilt { blueprint: id.clone(), name });
    };
    draw_on(blueprint, parameters, site, draw)
}

/// A template's graph on a site.
fn draw_on(
    blueprint: &Blueprint,
    parameters: &Parameters,
    site: &Site,
    draw: Draw,
) -> Result<Graph, BuildError> {
    let draw_whole = || {
        let mut sketch = Sketch::new(*site)?;
        let input = sketch.input();
        let output = draw(&mut sketch, input, parameters)?;
        sketch.finish(output)
    };
    draw_whole().map_err(|source| {
        let source = Box::new(source);
        BuildError::Site { blueprint: blueprint.id().clone(), site: *site, source }
    })
}

/// Whether the template has a graph.
pub(crate) fn is_drawn(blueprint: &Blueprint) -> bool {
    blueprint.manifest().is_some() || drawing(blueprint.id().as_str()).is_some()
}

/// Adds a template's nodes to a sketch and returns the one that takes the input's place.
type Draw = fn(&mut Sketch, kernel::NodeId, &Parameters) -> Result<kernel::NodeId, GraphError>;

/// Templates by id, one line each: a name is for people and may be like another's.
fn drawing(id: &str) -> Option<Draw> {
    Some(match id {
        "BP001" => plain::identity_passthrough,
        "BP002" => plain::linear_projection,
        "BP003" => plain::layer_norm_basic,
        "BP004" => plain::dropout_light,
        "BP005" => plain::relu_activation,
        "BP006" => plain::batch_norm_1d,
        "BP007" => spatial::pooling_max,
        "BP008" => residual::skip_connection,
        "BP009" => residual::residual_block,
        "BP010" => residual::concat_fusion,
        "BP011" => plain::gelu_activation,
        "BP012" => plain::layer_scaling,
        "BP013" => spatial::grouped_conv,
        "BP014" => residual::highway_gate,
        "BP015" => spatial::depthwise_separable,
        "BP016" => attention::squeeze_excitation,
        "BP017" => attention::channel_attention,
        "BP018" => attention::spatial_attention,
        "BP019" => transformer::cross_attention,
        "BP020" => local::attention_single_head,
        "BP021" => residual::feedforward_gated,
        "BP022" | "BP029" => transformer::multi_head_attention,
        "BP023" => transformer::transformer_block,
        "BP024" => transformer::conv_transformer,
        "BP025" => convolution::dynamic_conv,
        "BP026" => pyramid::adaptive_pooling,
        "BP027" => pyramid::feature_pyramid,
        "BP028" => residual::dense_connection,
        "BP030" => local::graph_attention,
        "BP031" => convolution::temporal_conv,
        "BP032" => convolution::dilated_conv,
        "BP033" => convolution::deformable_conv,
        "BP034" => local::non_local_block,
        "BP035" => position::learned_positional,
        "BP036" => mixture::mixture_of_experts,
        "BP037" => local::hierarchical_attention,
        "BP038" => memory::memory_augmented,
        "BP039" => recurrent::neural_ode_block,
        "BP040" => mixture::differentiable_nas,
        "BP041" => memory::meta_learning_layer,
        "BP042" => recurrent::recursive_processing,
        _ => return None,
    })
}
