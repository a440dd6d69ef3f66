//! The loops: each takes slices of the right lengths and writes every element of its result.
//!
//! Elementwise loops run under [`simd`], which picks the widest vectors of this machine; nothing here reorders a
//! sum by that width, so results do not depend on it. Matrix products do depend on the machine.

pub(super) mod chain;
pub(super) mod convolution;
pub(super) mod direct;
pub(super) mod elementwise;
pub(super) mod gradient;
pub(super) mod layout;
pub(crate) mod math;
pub(super) mod product;
pub(super) mod statistics;
pub(super) mod tile;
mod transpose;
pub(super) mod window;

use crate::error::RunError;

/// Runs a loop compiled for the widest vectors this machine has.
#[inline(always)]
pub(crate) fn simd<R>(run: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(run)
}

/// A whole number below `limit` out of a floating-point operand.
pub(super) fn whole(operator: &'static str, value: f32, limit: usize) -> Result<usize, RunError> {
    let index = value as usize;
    if value >= 0.0 && index < limit && index as f32 == value {
        return Ok(index);
    }
    Err(RunError::Index { operator, found: value.to_string(), limit })
}
