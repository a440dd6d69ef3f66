//! One step of a plan: which loop runs on which buffers.

use std::sync::Arc;

use super::fuse::Composite;
use super::kernels::chain::Chain;
use super::kernels::convolution::{self, Geometry as Convolution};
use super::kernels::elementwise;
use super::kernels::gradient;
use super::kernels::layout::{self, Axis};
use super::kernels::product::{self, Ends, Into, Matrix, product, tiled_product};
use super::kernels::statistics::{self, Groups};
use super::kernels::tile::{Finish, Start, Table};
use super::kernels::window::{self, Geometry as Window};
use super::pattern::Pattern;
use crate::dropout::Mask;
use crate::error::RunError;
use crate::op::{Binary, Reduction, Unary};
use crate::stress::{Stress, Ward};

/// Sizes of a matrix product, fixed by the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Product {
    pub(super) batch: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) transpose_a: bool,
    pub(super) transpose_b: bool,
    pub(super) algorithm: ProductAlgorithm,
}

/// The loops that compute a product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProductAlgorithm {
    /// The `gemm` crate: both sides are packed and blocked for the caches.
    Gemm,
    /// Our tiles: nothing is packed but a right-hand side whose columns are apart.
    Tiles(Arc<Table>),
}

/// What a product does to its result before anything else reads it. The bias is the operand after the product's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Epilogue {
    pub(super) has_bias: bool,
    pub(super) activation: Option<Unary>,
}

/// A loop with everything about it that is known beforehand.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kernel {
    Copy,
    Unary(Unary),
    UnaryGradient(Unary),
    Binary(Binary, Pattern, Pattern),
    Product(Product, Epilogue),
    Convolution(Convolution, Epilogue),
    ConvolutionInputGradient(Convolution),
    ConvolutionWeightGradient(Convolution),
    MaxPool(Window),
    MaxPoolGradient(Window),
    MaxPoolPick(Window),
    AvgPool(Window),
    AvgPoolGradient(Window),
    Softmax(usize),
    LogSoftmax(usize),
    Normalise(Groups),
    NormaliseGradient(Groups),
    Dropout { rate: f32, stream: u32 },
    Gather { rows: usize },
    ScatterAdd { rows: usize },
    Permute(Vec<(usize, usize)>),
    Concat(Axis),
    Slice(Axis, usize),
    Pad(Axis, usize),
    Reduce(Reduction, Pattern),
    Broadcast(Reduction, Pattern),
    CrossEntropy { classes: usize, len: usize },
    CrossEntropyGradient(usize),
    Composite(Composite),
    Chain(Chain),
    Stress(Stress, Ward),
}

impl Kernel {
    /// Elements of scratch a run of this loop needs.
    pub(super) fn scratch_len(&self) -> usize {
        match self {
            Self::Convolution(geometry, _)
            | Self::ConvolutionInputGradient(geometry)
            | Self::ConvolutionWeightGradient(geometry) => geometry.scratch_len(),
            Self::Normalise(groups) | Self::NormaliseGradient(groups) => groups.scratch_len(),
            Self::CrossEntropy { len, .. } => *len,
            Self::Product(sizes, _) => sizes.scratch_len(),
            Self::Composite(composite) => composite.scratch_len(),
            Self::Chain(chain) => chain.scratch_len(),
            Self::Copy
            | Self::Unary(_)
            | Self::UnaryGradient(_)
            | Self::Binary(..)
            | Self::MaxPool(_)
            | Self::MaxPoolGradient(_)
            | Self::MaxPoolPick(_)
            | Self::AvgPool(_)
            | Self::AvgPoolGradient(_)
            | Self::Softmax(_)
            | Self::LogSoftmax(_)
            | Self::Dropout { .. }
            | Self::Gather { .. }
            | Self::ScatterAdd { .. }
            | Self::Permute(_)
            | Self::Concat(_)
            | Self::Slice(..)
            | Self::Pad(..)
            | Self::Reduce(..)
            | Self::Broadcast(..)
            | Self::CrossEntropyGradient(_)
            | Self::Stress(..) => 0,
        }
    }

    /// Runs the loop. `operand` gives the operands by position; there are `operands` of them.
    pub(super) fn run<'a>(
        &self,
        operands: usize,
        operand: impl Fn(usize) -> &'a [f32],
        out: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), RunError> {
        match self {
            Self::Copy => out.copy_from_slice(operand(0)),
            Self::Unary(function) => elementwise::unary(*function, operand(0), out),
            Self::UnaryGradient(function) => {
                elementwise::unary_gradient(*function, operand(0), operand(1), out)
            }
            Self::Binary(function, a, b) => {
                elementwise::binary(*function, (operand(0), a), (operand(1), b), out)
            }
            Self::Product(sizes, epilogue) => {
                let bias = epilogue.has_bias.then(|| operand(2));
                let operands = (operand(0), operand(1), bias);
                run_product(sizes, operands, epilogue.activation, out, scratch);
            }
            Self::Convolution(geometry, epilogue) => {
                let bias = epilogue.has_bias.then(|| operand(2));
                let operands = (operand(0), operand(1), bias);
                convolution::forward(geometry, operands, epilogue.activation, out, scratch);
            }
            Self::ConvolutionInputGradient(geometry) => {
                convolution::input_gradient(geometry, operand(0), operand(1), out, scratch);
            }
            Self::ConvolutionWeightGradient(geometry) => {
                convolution::weight_gradient(geometry, operand(0), operand(1), out, scratch);
            }
            Self::MaxPool(geometry) => window::max_pick(geometry, operand(0), operand(0), out),
            Self::MaxPoolPick(geometry) => window::max_pick(geometry, operand(0), operand(1), out),
            Self::MaxPoolGradient(geometry) => {
                window::max_gradient(geometry, operand(0), operand(1), out)
            }
            Self::AvgPool(geometry) => window::average(geometry, operand(0), out),
            Self::AvgPoolGradient(geometry) => window::average_gradient(geometry, operand(0), out),
            Self::Softmax(classes) => statistics::softmax(*classes, operand(0), out),
            Self::LogSoftmax(classes) => statistics::log_softmax(*classes, operand(0), out),
            Self::Normalise(groups) => statistics::normalise(groups, operand(0), out, scratch),
            Self::NormaliseGradient(groups) => {
                statistics::normalise_gradient(groups, operand(0), operand(1), out, scratch);
            }
            Self::Dropout { rate, stream } => {
                elementwise::dropout(Mask::new(*rate, *stream, operand(1)[0]), operand(0), out);
            }
            Self::Gather { rows } => layout::gather(*rows, operand(0), operand(1), out)?,
            Self::ScatterAdd { rows } => layout::scatter_add(*rows, operand(0), operand(1), out)?,
            Self::Permute(places) => layout::permute(places, operand(0), out),
            Self::Concat(axis) => {
                let mut start = 0;
                for part in (0..operands).map(operand) {
                    layout::place(*axis, start, part, out);
                    start += part.len() / (axis.outer * axis.inner);
                }
            }
            Self::Slice(axis, start) => layout::cut(*axis, *start, operand(0), out),
            Self::Pad(axis, start) => {
                out.fill(0.0);
                layout::place(*axis, *start, operand(0), out);
            }
            Self::Reduce(kind, pattern) => statistics::reduce(*kind, pattern, operand(0), out),
            Self::Broadcast(kind, pattern) => {
                statistics::broadcast(*kind, pattern, operand(0), out)
            }
            Self::CrossEntropy { classes, .. } => {
                out[0] = statistics::cross_entropy(*classes, operand(0), operand(1), scratch)?;
            }
            Self::Composite(composite) => composite.run(operand, out, scratch),
            Self::Chain(chain) => chain.run(&operand, out, scratch),
            Self::Stress(stress, ward) => stress.run(ward, operand(0), out)?,
            Self::CrossEntropyGradient(classes) => {
                statistics::cross_entropy_gradient(
                    *classes,
                    operand(0),
                    operand(1),
                    operand(2)[0],
                    out,
                )?;
            }
        }
        Ok(())
    }
}

impl Composite {
    fn scratch_len(&self) -> usize {
        match self {
            Self::Softmax(_) | Self::LogSoftmax(_) | Self::NormaliseWeight(_) => 0,
            Self::ScaledNormalise(groups) => groups.width(),
        }
    }

    fn run<'a>(&self, operand: impl Fn(usize) -> &'a [f32], out: &mut [f32], scratch: &mut [f32]) {
        match self {
            Self::Softmax(classes) => {
                gradient::softmax_gradient(*classes, operand(0), operand(1), out);
            }
            Self::LogSoftmax(classes) => {
                gradient::log_softmax_gradient(*classes, operand(0), operand(1), out);
            }
            Self::ScaledNormalise(groups) => {
                let operands = (operand(0), operand(1), operand(2));
                gradient::scaled_normalise_gradient(groups, operands, out, scratch);
            }
            Self::NormaliseWeight(groups) => {
                gradient::normalise_weight_gradient(groups, operand(0), operand(1), out);
            }
        }
    }
}

impl Product {
    fn scratch_len(&self) -> usize {
        match self.algorithm {
            ProductAlgorithm::Gemm => 0,
            ProductAlgorithm::Tiles(_) => {
                product::tiled_scratch_len(self.sizes(), self.transpose_b)
            }
        }
    }

    fn sizes(&self) -> product::Sizes {
        (self.rows, self.columns, self.inner)
    }

    /// Computes it by tiles from now on.
    pub(super) fn tile(&mut self) {
        let table = product::tiled_table(self.sizes(), self.transpose_b);
        self.algorithm = ProductAlgorithm::Tiles(Arc::new(table));
    }
}

/// The product of each part of a batch, then bias and activation.
fn run_product(
    sizes: &Product,
    (a, b, bias): (&[f32], &[f32], Option<&[f32]>),
    activation: Option<Unary>,
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let &Product { batch, rows, columns, inner, transpose_a, transpose_b, ref algorithm } = sizes;
    let a_width = if transpose_a { rows } else { inner };
    let b_width = if transpose_b { inner } else { columns };
    let start = bias.map_or(Start::Zero, Start::Columns);
    let (finish, rest) = match activation {
        Some(Unary::Relu) => (Finish::Relu, None),
        other => (Finish::Keep, other),
    };
    let ends = Ends { start, finish };
    let parts = a.chunks_exact(rows * inner).zip(b.chunks_exact(inner * columns));
    for ((a, b), out) in parts.zip(out.chunks_exact_mut(rows * columns)).take(batch) {
        let a = Matrix::stored(a, a_width, transpose_a);
        let b = Matrix::stored(b, b_width, transpose_b);
        let sizes = (rows, columns, inner);
        match algorithm {
            ProductAlgorithm::Gemm => product(sizes, a, b, out, Into::Fresh),
            ProductAlgorithm::Tiles(table) => {
                tiled_product(sizes, a, b, (ends, table), out, scratch)
            }
        }
    }
    match algorithm {
        ProductAlgorithm::Gemm => finish_rows(bias, activation, out),
        ProductAlgorithm::Tiles(_) => apply(rest, out),
    }
}

fn finish_rows(bias: Option<&[f32]>, activation: Option<Unary>, out: &mut [f32]) {
    match (bias, activation) {
        (Some(bias), Some(Unary::Relu)) => elementwise::bias_rows_relu(bias, out),
        (Some(bias), activation) => {
            elementwise::bias_rows(bias, out);
            apply(activation, out);
        }
        (None, activation) => apply(activation, out),
    }
}

fn apply(activation: Option<Unary>, out: &mut [f32]) {
    if let Some(function) = activation {
        elementwise::unary_in_place(function, out);
    }
}
