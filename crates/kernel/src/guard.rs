//! The guard: what shapes a kernel was compiled for, with a digest other programs can compute too.

use serde::{Deserialize, Serialize};

use crate::canonical::write_value;
use crate::digest::Digest;
use crate::graph::{Graph, STEP_INPUT};

/// The only element type the engine has, as the wire contract spells it.
pub const DTYPE: &str = "float32";

/// One input of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardEntry {
    /// Position among the inputs.
    pub index: usize,
    /// Sizes of the dimensions, batch first.
    pub shape: Vec<usize>,
    /// Element type without a library's prefix.
    pub dtype: String,
    /// Elements from one index to the next, per dimension.
    pub stride: Vec<usize>,
    /// Whether the example input wanted a gradient; ours never do.
    pub requires_grad: bool,
}

/// Why an input does not fit a kernel: the first thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardMismatch {
    /// Another number of inputs.
    #[error("the kernel takes {expected} inputs, found {found}")]
    Count {
        /// Number the kernel takes.
        expected: usize,
        /// Number given.
        found: usize,
    },
    /// Another shape, the batch aside.
    #[error(
        "input {index} has shape {found:?}, the kernel was compiled for {expected:?} (the batch may differ)"
    )]
    Shape {
        /// Which input.
        index: usize,
        /// Shape of the guard.
        expected: Vec<usize>,
        /// Shape given.
        found: Vec<usize>,
    },
    /// Another place among the inputs.
    #[error("input {expected} of the kernel is given as input {found}")]
    Index {
        /// Place in the guard.
        expected: usize,
        /// Place given.
        found: usize,
    },
    /// Another element type.
    #[error("input {index} is of {found}, the kernel was compiled for {expected}")]
    Dtype {
        /// Which input.
        index: usize,
        /// Element type of the guard.
        expected: String,
        /// Element type given.
        found: String,
    },
    /// Another layout.
    #[error("input {index} has stride {found:?}, the kernel was compiled for {expected:?}")]
    Stride {
        /// Which input.
        index: usize,
        /// Stride of the guard.
        expected: Vec<usize>,
        /// Stride given.
        found: Vec<usize>,
    },
    /// A gradient is wanted where the kernel was compiled without, or the other way round.
    #[error(
        "input {index} has requires_grad {found}, the kernel was compiled for requires_grad {expected}"
    )]
    RequiresGrad {
        /// Which input.
        index: usize,
        /// What the guard says.
        expected: bool,
        /// What is given.
        found: bool,
    },
}

/// The inputs of a kernel, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuardSpec(Vec<GuardEntry>);

impl GuardSpec {
    /// Contiguous inputs of these shapes.
    pub fn of_shapes<'a>(shapes: impl IntoIterator<Item = &'a [usize]>) -> Self {
        let entry = |(index, shape): (usize, &[usize])| GuardEntry {
            index,
            shape: shape.to_vec(),
            dtype: DTYPE.to_owned(),
            stride: contiguous(shape),
            requires_grad: false,
        };
        Self(shapes.into_iter().enumerate().map(entry).collect())
    }

    /// The inputs of a graph in name order, but for the [`STEP_INPUT`], which is the engine's own.
    pub fn of_graph(graph: &Graph) -> Self {
        Self::of_shapes(
            graph.inputs().filter(|(name, _)| *name != STEP_INPUT).map(|(_, shape)| shape),
        )
    }

    /// The inputs.
    pub fn entries(&self) -> &[GuardEntry] {
        &self.0
    }

    /// SHA-256 of the list as JSON with sorted keys and the separators `", "` and `": "`, as Python's
    /// `json.dumps(entries, sort_keys=True)` writes it.
    pub fn digest(&self) -> Digest {
        let mut text = String::new();
        serde_json::to_value(self)
            .and_then(|value| write_value(&value, ", ", ": ", &mut text))
            .expect("a list of numbers, strings and flags is JSON");
        Digest::of(text)
    }

    /// Each input as `dtype[d0xd1]`, a scalar as `dtype[scalar]`, separated by `", "`.
    pub fn summary(&self) -> String {
        let entries: Vec<String> = self.0.iter().map(GuardEntry::summary).collect();
        entries.join(", ")
    }

    /// Whether contiguous inputs of these shapes may be given to the kernel: everything but the leading dimension must
    /// agree.
    ///
    /// # Errors
    /// [`GuardMismatch`] names the first input that does not fit.
    pub fn check(&self, shapes: &[&[usize]]) -> Result<(), GuardMismatch> {
        self.admits(&Self::of_shapes(shapes.iter().copied()))
    }

    /// Whether these inputs may be given to the kernel: number, place, shape but for the batch, element type, stride and
    /// whether a gradient is wanted must all agree.
    ///
    /// # Errors
    /// [`GuardMismatch`] names the first thing that does not fit.
    pub fn admits(&self, given: &Self) -> Result<(), GuardMismatch> {
        if given.0.len() != self.0.len() {
            return Err(GuardMismatch::Count { expected: self.0.len(), found: given.0.len() });
        }
        self.0.iter().zip(&given.0).try_for_each(|(entry, given)| entry.admits(given))
    }
}

impl GuardEntry {
    fn admits(&self, given: &Self) -> Result<(), GuardMismatch> {
        let index = self.index;
        if given.index != index {
            return Err(GuardMismatch::Index { expected: index, found: given.index });
        }
        let is_same_but_for_the_batch = self.shape.len() == given.shape.len()
            && self.shape.iter().skip(1).eq(given.shape.iter().skip(1));
        if !is_same_but_for_the_batch {
            let (expected, found) = (self.shape.clone(), given.shape.clone());
            return Err(GuardMismatch::Shape { index, expected, found });
        }
        if self.dtype != given.dtype {
            let (expected, found) = (self.dtype.clone(), given.dtype.clone());
            return Err(GuardMismatch::Dtype { index, expected, found });
        }
        // A contiguous tensor's strides do not depend on its batch.
        if self.stride != given.stride {
            let (expected, found) = (self.stride.clone(), given.stride.clone());
            return Err(GuardMismatch::Stride { index, expected, found });
        }
        if self.requires_grad != given.requires_grad {
            let (expected, found) = (self.requires_grad, given.requires_grad);
            return Err(GuardMismatch::RequiresGrad { index, expected, found });
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let sizes = if sizes.is_empty() { "scalar".to_owned() } else { sizes.join("x") };
        format!("{}[{sizes}]", self.dtype)
    }
}

/// Strides of a row-major tensor.
pub(crate) fn contiguous(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shape: &[usize], digest: &str, summary: &str) {
        let guard = GuardSpec::of_shapes([shape]);
        assert_eq!(guard.digest().to_hex(), digest);
        assert_eq!(guard.summary(), summary);
    }

    /// The vectors of the wire contract.
    #[test]
    fn digests_and_summaries() {
        check(
            &[8, 32],
            "c0e3ed3adc7800b37bf6f90a7156046c87111dcef83232afad8a9e0addde055f",
            "float32[8x32]",
        );
        check(
            &[8, 8, 16, 16],
            "b2fd2f05c3298470835b454526892d28cae85e9c429091891d8b2429bfddf46a",
            "float32[8x8x16x16]",
        );
        assert_eq!(GuardSpec::of_shapes([&[][..], &[2]]).summary(), "float32[scalar], float32[2]");
    }

    #[test]
    fn the_batch_may_differ_and_nothing_else() {
        let guard = GuardSpec::of_shapes([&[8, 32][..]]);
        assert_eq!(guard.check(&[&[64, 32]]), Ok(()));
        assert!(matches!(guard.check(&[&[8, 16]]), Err(GuardMismatch::Shape { index: 0, .. })));
        assert!(matches!(guard.check(&[&[8, 32, 1]]), Err(GuardMismatch::Shape { .. })));
        assert!(matches!(guard.check(&[]), Err(GuardMismatch::Count { expected: 1, found: 0 })));
    }

    /// What is found wrong with a guard of which one thing was changed.
    fn changed(change: impl FnOnce(&mut GuardEntry)) -> GuardMismatch {
        let guard = GuardSpec::of_shapes([&[8, 32][..]]);
        let mut other = guard.clone();
        change(&mut other.0[0]);
        assert_ne!(other.digest(), guard.digest(), "the digest tells them apart");
        other.admits(&guard).unwrap_err()
    }

    #[test]
    fn each_thing_that_differs_is_named() {
        let shape = changed(|entry| entry.shape[1] = 16);
        assert!(matches!(shape, GuardMismatch::Shape { index: 0, .. }), "{shape:?}");
        let rank = changed(|entry| entry.shape.push(1));
        assert!(matches!(rank, GuardMismatch::Shape { index: 0, .. }), "{rank:?}");
        let place = changed(|entry| entry.index = 1);
        assert_eq!(place, GuardMismatch::Index { expected: 1, found: 0 });
        let dtype = changed(|entry| entry.dtype = "float64".to_owned());
        assert!(matches!(dtype, GuardMismatch::Dtype { index: 0, .. }), "{dtype:?}");
        let stride = changed(|entry| entry.stride = vec![1, 8]);
        assert!(matches!(stride, GuardMismatch::Stride { index: 0, .. }), "{stride:?}");
        let gradient = changed(|entry| entry.requires_grad = true);
        let expected = GuardMismatch::RequiresGrad { index: 0, expected: true, found: false };
        assert_eq!(gradient, expected);
    }
}
