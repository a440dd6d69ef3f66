//! Loops that move elements.

use super::whole;
use crate::error::RunError;

/// A view of a row-major tensor around one axis: `outer` blocks of `size` times `inner` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) struct Axis {
    pub(in crate::plan) outer: usize,
    pub(in crate::plan) size: usize,
    pub(in crate::plan) inner: usize,
}

impl Axis {
    pub(in crate::plan) fn new(shape: &[usize], axis: usize) -> Self {
        Self {
            outer: shape[..axis].iter().product(),
            size: shape[axis],
            inner: shape[axis + 1..].iter().product(),
        }
    }

    fn block(self) -> usize {
        self.size * self.inner
    }
}

/// Writes `part` into the blocks of `out` at `start` of the axis.
pub(in crate::plan) fn place(whole: Axis, start: usize, part: &[f32], out: &mut [f32]) {
    let width = part.len() / whole.outer;
    let blocks = out.chunks_exact_mut(whole.block()).zip(part.chunks_exact(width));
    for (block, part) in blocks {
        block[start * whole.inner..][..width].copy_from_slice(part);
    }
}

/// Reads the part of the blocks of `x` that begins at `start` of the axis.
pub(in crate::plan) fn cut(whole: Axis, start: usize, x: &[f32], out: &mut [f32]) {
    let width = out.len() / whole.outer;
    for (block, out) in x.chunks_exact(whole.block()).zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&block[start * whole.inner..][..width]);
    }
}

/// Sizes of the result's dimensions with the source's stride for each; neighbours that stay together are one.
pub(in crate::plan) fn permutation(source: &[usize], order: &[usize]) -> Vec<(usize, usize)> {
    let stride = |axis: usize| source[axis + 1..].iter().product::<usize>();
    let mut places: Vec<(usize, usize)> = Vec::new();
    for &axis in order.iter().filter(|&&axis| source[axis] != 1) {
        let (size, stride) = (source[axis], stride(axis));
        match places.last_mut() {
            Some(last) if last.1 == stride * size => *last = (last.0 * size, stride),
            _ => places.push((size, stride)),
        }
    }
    places
}

/// Copies `x` in the order of [`permutation`].
pub(in crate::plan) fn permute(places: &[(usize, usize)], x: &[f32], out: &mut [f32]) {
    let Some((&(size, stride), lead)) = places.split_last() else {
        out.copy_from_slice(x);
        return;
    };
    let mut source = 0;
    let mut index = [0; crate::shape::RANK_MAX];
    for row in out.chunks_exact_mut(size) {
        if stride == 1 {
            copy_row(&x[source..][..size], row);
        } else {
            row.iter_mut()
                .zip(x[source..].iter().step_by(stride))
                .for_each(|(to, &from)| *to = from);
        }
        for (at, &(size, stride)) in index.iter_mut().zip(lead.iter().rev()) {
            *at += 1;
            source += stride;
            if *at < size {
                break;
            }
            source -= stride * size;
            *at = 0;
        }
    }
}

/// By pieces of known length: a call for a row of a few vectors takes longer than the row.
#[inline(always)]
fn copy_row(from: &[f32], to: &mut [f32]) {
    const PIECE: usize = 8;
    if from.len() > 32 * PIECE || !from.len().is_multiple_of(PIECE) {
        to.copy_from_slice(from);
        return;
    }
    for (from, to) in from.chunks_exact(PIECE).zip(to.chunks_exact_mut(PIECE)) {
        if let (Some(from), Some(to)) = (from.first_chunk::<PIECE>(), to.first_chunk_mut()) {
            *to = *from;
        }
    }
}

/// Rows of the table.
pub(in crate::plan) fn gather(
    rows: usize,
    table: &[f32],
    index: &[f32],
    out: &mut [f32],
) -> Result<(), RunError> {
    let width = table.len() / rows;
    for (&index, out) in index.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&table[whole("gather", index, rows)? * width..][..width]);
    }
    Ok(())
}

/// Adds rows up in the table.
pub(in crate::plan) fn scatter_add(
    rows: usize,
    index: &[f32],
    gradient: &[f32],
    out: &mut [f32],
) -> Result<(), RunError> {
    let width = out.len() / rows;
    out.fill(0.0);
    for (&index, gradient) in index.iter().zip(gradient.chunks_exact(width)) {
        let row = &mut out[whole("scatter_add", index, rows)? * width..][..width];
        row.iter_mut().zip(gradient).for_each(|(sum, &value)| *sum += value);
    }
    Ok(())
}
