//! Which loop computes a product or a convolution, where there are two: by rule, or as chosen.
//!
//! The rule asks neither clock nor machine, so that a plan made without choices is the same everywhere. Its bounds
//! were measured on one machine with AVX-512 (`docs/benchmarks.md`); `choice` measures on this one.

use serde::{Deserialize, Serialize};

use super::kernels::convolution::Geometry;
use super::kernels::direct::Pass;
use super::step::{Epilogue, Kernel, Product, ProductAlgorithm};

/// A loop that computes an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// A product by the `gemm` crate: both sides packed, blocked for the caches.
    Gemm,
    /// A product by register tiles over the operands as they lie.
    Tiles,
    /// A convolution as a product over unfolded windows (im2col).
    Unfolded,
    /// A convolution by register tiles over the padded picture.
    Direct,
}

/// Most multiplications of a product that tiles take by rule; beyond, blocking for the caches pays.
const TILES_WORK_MAX: usize = 1 << 24;
/// Most elements of a right-hand side that tiles take by rule: it is read once for every block of rows.
const TILES_RIGHT_MAX: usize = 1 << 16;
/// Least share of a vector's lanes, in percent, that a direct loop must fill to be taken by rule.
const DIRECT_LANES_MIN: usize = 30;

impl Kernel {
    /// Operator and shape by which a choice is found; `None` where there is one loop only.
    pub(super) fn choice_key(&self) -> Option<(&'static str, String)> {
        if self.algorithms().len() < 2 {
            return None;
        }
        match self {
            Self::Product(sizes, epilogue) => Some(("product", product_shape(sizes, epilogue))),
            Self::Convolution(geometry, epilogue) => {
                Some(("convolution", convolution_shape(geometry) + &epilogue_shape(epilogue)))
            }
            Self::ConvolutionInputGradient(geometry) => {
                Some(("convolution_input_gradient", convolution_shape(geometry)))
            }
            Self::ConvolutionWeightGradient(geometry) => {
                Some(("convolution_weight_gradient", convolution_shape(geometry)))
            }
            _ => None,
        }
    }

    /// The loops that can compute this step.
    pub(super) fn algorithms(&self) -> &'static [Algorithm] {
        match (self, self.geometry()) {
            (Self::Product(..), _) => &[Algorithm::Tiles, Algorithm::Gemm],
            (_, Some((geometry, pass))) if geometry.clone().try_direct(pass) => {
                &[Algorithm::Direct, Algorithm::Unfolded]
            }
            (_, Some(_)) => &[Algorithm::Unfolded],
            (_, None) => &[],
        }
    }

    /// The loop taken when nothing was measured.
    pub(super) fn algorithm_by_rule(&self) -> Option<Algorithm> {
        match (self, self.geometry()) {
            (Self::Product(sizes, _), _) => {
                let work = sizes.rows * sizes.columns * sizes.inner;
                let is_small =
                    work <= TILES_WORK_MAX && sizes.inner * sizes.columns <= TILES_RIGHT_MAX;
                Some(if is_small { Algorithm::Tiles } else { Algorithm::Gemm })
            }
            (_, Some((geometry, pass))) => {
                let can = self.algorithms().contains(&Algorithm::Direct);
                let fills = lanes_filled(geometry, pass) >= DIRECT_LANES_MIN;
                Some(if can && fills { Algorithm::Direct } else { Algorithm::Unfolded })
            }
            (_, None) => None,
        }
    }

    /// Takes another loop. One that cannot compute the step changes nothing.
    pub(super) fn set_algorithm(&mut self, algorithm: Algorithm) {
        if let Self::Product(sizes, _) = self {
            match algorithm {
                Algorithm::Gemm => sizes.algorithm = ProductAlgorithm::Gemm,
                Algorithm::Tiles => sizes.tile(),
                Algorithm::Unfolded | Algorithm::Direct => {}
            }
        } else if let Some((geometry, pass)) = self.geometry_mut() {
            match algorithm {
                Algorithm::Unfolded => geometry.unfolded(),
                Algorithm::Direct => {
                    geometry.try_direct(pass);
                }
                Algorithm::Gemm | Algorithm::Tiles => {}
            }
        }
    }

    /// Lengths of operands and result, for a step that has a choice.
    pub(super) fn lengths(&self) -> Option<(Vec<usize>, usize)> {
        if let Self::Product(sizes, epilogue) = self {
            let &Product { batch, rows, columns, inner, .. } = sizes;
            let mut operands = vec![batch * rows * inner, batch * inner * columns];
            operands.extend(epilogue.has_bias.then_some(columns));
            return Some((operands, batch * rows * columns));
        }
        let (geometry, pass) = self.geometry()?;
        let [x, weight, result] = geometry.lengths();
        Some(match pass {
            Pass::Forward => {
                let mut operands = vec![x, weight];
                if let Self::Convolution(_, Epilogue { has_bias: true, .. }) = self {
                    operands.push(geometry.out_channels);
                }
                (operands, result)
            }
            Pass::InputGradient => (vec![result, weight], x),
            Pass::WeightGradient => (vec![x, result], weight),
        })
    }

    fn geometry(&self) -> Option<(&Geometry, Pass)> {
        match self {
            Self::Convolution(geometry, _) => Some((geometry, Pass::Forward)),
            Self::ConvolutionInputGradient(geometry) => Some((geometry, Pass::InputGradient)),
            Self::ConvolutionWeightGradient(geometry) => Some((geometry, Pass::WeightGradient)),
            _ => None,
        }
    }

    fn geometry_mut(&mut self) -> Option<(&mut Geometry, Pass)> {
        match self {
            Self::Convolution(geometry, _) => Some((geometry, Pass::Forward)),
            Self::ConvolutionInputGradient(geometry) => Some((geometry, Pass::InputGradient)),
            Self::ConvolutionWeightGradient(geometry) => Some((geometry, Pass::WeightGradient)),
            _ => None,
        }
    }
}

/// Share of sixteen lanes that the runs of a direct loop fill, in percent.
fn lanes_filled(geometry: &Geometry, pass: Pass) -> usize {
    let run = match pass {
        Pass::Forward => geometry.out_size[1],
        Pass::InputGradient => geometry.size[1],
        Pass::WeightGradient => {
            let taps = if geometry.conv.dilation[1] == 1 { geometry.kernel[1] } else { 1 };
            taps * geometry.channels / geometry.conv.groups
        }
    };
    100 * run / run.next_multiple_of(16).max(16)
}

fn product_shape(sizes: &Product, epilogue: &Epilogue) -> String {
    let &Product { batch, rows, columns, inner, transpose_a, transpose_b, .. } = sizes;
    let side = |name: &str, is_transposed: bool| {
        if is_transposed { format!("{name}t") } else { name.to_owned() }
    };
    let (a, b) = (side("a", transpose_a), side("b", transpose_b));
    format!("{batch}x[{rows},{inner}]x[{inner},{columns}] {a} {b}{}", epilogue_shape(epilogue))
}

fn convolution_shape(geometry: &Geometry) -> String {
    let Geometry { conv, batch, channels, size, out_channels, kernel, .. } = geometry;
    let pair = |pair: &[usize; 2]| format!("{}x{}", pair[0], pair[1]);
    format!(
        "[{batch},{channels},{},{}] to {out_channels} kernel {} stride {} padding {} dilation {} groups {}",
        size[0],
        size[1],
        pair(kernel),
        pair(&conv.stride),
        pair(&conv.padding),
        pair(&conv.dilation),
        conv.groups
    )
}

fn epilogue_shape(epilogue: &Epilogue) -> String {
    let bias = if epilogue.has_bias { " bias" } else { "" };
    let activation =
        epilogue.activation.map_or(String::new(), |f| format!(" {f:?}").to_lowercase());
    format!("{bias}{activation}")
}
