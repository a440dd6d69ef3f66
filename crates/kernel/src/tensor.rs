//! Dense row-major tensors and the ordered map of named parameters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::GraphError;
use crate::mapping::Mapping;
use crate::shape::element_count;

/// A dense `f32` tensor in row-major order. A scalar has the empty shape and one element.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "RawTensor", into = "RawTensor")]
pub struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

/// Where the values lie.
#[derive(Debug, Clone)]
enum Values {
    Owned(Vec<f32>),
    /// In an artifact's file; copied when they are changed.
    Mapped(Arc<Mapping>, Range<usize>),
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.data() == other.data()
    }
}

/// What is written and read; checked on the way in.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl TryFrom<RawTensor> for Tensor {
    type Error = GraphError;

    fn try_from(raw: RawTensor) -> Result<Self, GraphError> {
        Self::new(raw.shape, raw.data)
    }
}

impl From<Tensor> for RawTensor {
    fn from(tensor: Tensor) -> Self {
        Self { shape: tensor.shape.clone(), data: tensor.into_data() }
    }
}

impl Tensor {
    /// A tensor of `shape` holding `data` in row-major order.
    ///
    /// # Errors
    /// [`GraphError::Shape`] when the number of values is not the product of the shape.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self, GraphError> {
        let shape = shape.into();
        check_count(&shape, data.len())?;
        Ok(Self { shape, values: Values::Owned(data) })
    }

    /// A tensor of `shape` whose values stay in the file.
    pub(crate) fn mapped(
        shape: &[usize],
        mapping: &Arc<Mapping>,
        range: Range<usize>,
    ) -> Result<Self, GraphError> {
        check_count(shape, range.len())?;
        Ok(Self { shape: shape.to_vec(), values: Values::Mapped(Arc::clone(mapping), range) })
    }

    /// The file and the part of it where the values lie, unless they are this tensor's own.
    pub(crate) fn place(&self) -> Option<(&Arc<Mapping>, Range<usize>)> {
        match &self.values {
            Values::Owned(_) => None,
            Values::Mapped(mapping, range) => Some((mapping, range.clone())),
        }
    }

    /// A tensor of `shape` filled with `value`.
    ///
    /// # Errors
    /// [`GraphError::TooLarge`] or [`GraphError::Attribute`] when `shape` is not a legal shape.
    pub fn full(shape: impl Into<Vec<usize>>, value: f32) -> Result<Self, GraphError> {
        let shape = shape.into();
        let len = element_count("tensor", &shape)?;
        Ok(Self { shape, values: Values::Owned(vec![value; len]) })
    }

    /// A scalar.
    pub fn scalar(value: f32) -> Self {
        Self { shape: Vec::new(), values: Values::Owned(vec![value]) }
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values in row-major order.
    pub fn data(&self) -> &[f32] {
        match &self.values {
            Values::Owned(data) => data,
            Values::Mapped(mapping, range) => &mapping.words()[range.clone()],
        }
    }

    /// The values, to be changed in place. Values in an artifact's file are copied first.
    pub fn data_mut(&mut self) -> &mut [f32] {
        if let Values::Mapped(..) = &self.values {
            self.values = Values::Owned(self.data().to_vec());
        }
        match &mut self.values {
            Values::Owned(data) => data,
            Values::Mapped(..) => unreachable!("copied above"),
        }
    }

    /// Gives up the tensor for its values.
    pub fn into_data(self) -> Vec<f32> {
        match self.values {
            Values::Owned(data) => data,
            Values::Mapped(mapping, range) => mapping.words()[range].to_vec(),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data().len()
    }

    /// Always false: no dimension may be zero. Present because `len` is.
    pub fn is_empty(&self) -> bool {
        self.data().is_empty()
    }

    /// Whether every value is neither infinite nor NaN.
    pub fn is_finite(&self) -> bool {
        is_finite(self.data())
    }
}

/// The product of the shape must be the number of values.
fn check_count(shape: &[usize], found: usize) -> Result<(), GraphError> {
    let expected = element_count("tensor", shape)?;
    if found == expected {
        return Ok(());
    }
    Err(GraphError::Shape {
        operator: "tensor",
        shapes: vec![shape.to_vec()],
        expected: format!("{expected} values, found {found}"),
    })
}

/// Without a branch for each value, so that sixty-four megabytes take as long as reading them.
fn is_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7F80_0000;
    let is_bad = |value: &f32| u32::from(value.to_bits() & EXPONENT == EXPONENT);
    values.chunks(4096).all(|part| part.iter().map(is_bad).sum::<u32>() == 0)
}

/// Named parameters in name order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Params(BTreeMap<String, Tensor>);

impl Params {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// The tensor called `name`, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        self.0.get_mut(name)
    }

    /// Adds or replaces a tensor and returns the one it replaced.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.0.insert(name.into(), tensor)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    /// Every name and tensor, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of scalars in all tensors together.
    pub fn element_count(&self) -> usize {
        self.0.values().map(Tensor::len).sum()
    }

    /// The same tensors with `prefix` and a dot before each name, as [`crate::Graph::inline`] names them.
    pub fn prefixed(&self, prefix: &str) -> Self {
        self.iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor.clone())).collect()
    }
}

impl FromIterator<(String, Tensor)> for Params {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl Extend<(String, Tensor)> for Params {
    fn extend<I: IntoIterator<Item = (String, Tensor)>>(&mut self, items: I) {
        self.0.extend(items);
    }
}

impl IntoIterator for Params {
    type Item = (String, Tensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
