//! Operators that move elements.

use super::{Array, Real, whole};
use crate::error::RunError;

pub(super) fn permute<T: Real>(order: &[usize], x: &Array<T>, shape: &[usize]) -> Array<T> {
    let mut source = vec![0; shape.len()];
    Array::from_fn(shape, |index| {
        order.iter().zip(index).for_each(|(&axis, &at)| source[axis] = at);
        x.at(&source)
    })
}

pub(super) fn concat<T: Real>(axis: usize, parts: &[&Array<T>], shape: &[usize]) -> Array<T> {
    Array::from_fn(shape, |index| {
        let mut index = index.to_vec();
        for part in parts {
            let size = part.shape[axis];
            if index[axis] < size {
                return part.at(&index);
            }
            index[axis] -= size;
        }
        unreachable!("the sizes of the parts add up to the result's")
    })
}

pub(super) fn slice<T: Real>(axis: usize, start: usize, x: &Array<T>, shape: &[usize]) -> Array<T> {
    Array::from_fn(shape, |index| {
        let mut index = index.to_vec();
        index[axis] += start;
        x.at(&index)
    })
}

pub(super) fn pad<T: Real>(axis: usize, start: usize, x: &Array<T>, shape: &[usize]) -> Array<T> {
    Array::from_fn(shape, |index| {
        let mut index = index.to_vec();
        match index[axis].checked_sub(start) {
            Some(at) if at < x.shape[axis] => {
                index[axis] = at;
                x.at(&index)
            }
            _ => T::ZERO,
        }
    })
}

pub(super) fn gather<T: Real>(
    table: &Array<T>,
    indices: &Array<T>,
    shape: &[usize],
) -> Result<Array<T>, RunError> {
    let (rows, width) = (table.shape[0], table.shape[1]);
    let mut data = Vec::with_capacity(shape.iter().product());
    for &index in &indices.data {
        let row = whole("gather", index, rows)?;
        data.extend_from_slice(&table.data[row * width..][..width]);
    }
    Ok(Array { shape: shape.to_vec(), data })
}

pub(super) fn scatter_add<T: Real>(
    indices: &Array<T>,
    gradient: &Array<T>,
    shape: &[usize],
) -> Result<Array<T>, RunError> {
    let (rows, width) = (shape[0], shape[1]);
    let mut result = Array::full(shape, T::ZERO);
    for (&index, values) in indices.data.iter().zip(gradient.data.chunks_exact(width)) {
        let row = whole("scatter_add", index, rows)?;
        let target = &mut result.data[row * width..][..width];
        target.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
    }
    Ok(result)
}
