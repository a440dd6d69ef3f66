//! What a run gave: named values in one piece of memory, whether a plan or the interpreter put them there.

use std::ops::Range;

use crate::error::RunError;
use crate::gradient::gradient_target;

/// A named part of that memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

impl Slot {
    pub(crate) fn wrong_size(&self, kind: &'static str, found: usize) -> RunError {
        RunError::Size { kind, name: self.name.clone(), expected: self.shape.clone(), found }
    }
}

/// What one run gave, to be read where it lies until the next run.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    outputs: &'a [Slot],
    updates: &'a [Slot],
    values: &'a [f32],
}

impl<'a> Outputs<'a> {
    pub(crate) fn new(outputs: &'a [Slot], updates: &'a [Slot], values: &'a [f32]) -> Self {
        Self { outputs, updates, values }
    }

    /// Values of an output.
    pub fn get(&self, name: &str) -> Option<&'a [f32]> {
        self.outputs.iter().find(|slot| slot.name == name).map(|slot| self.values(slot))
    }

    /// Shape of an output.
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.outputs.iter().find(|slot| slot.name == name).map(|slot| slot.shape.as_slice())
    }

    /// The single value of a scalar output.
    pub fn scalar(&self, name: &str) -> Option<f32> {
        match self.get(name) {
            Some(&[value]) => Some(value),
            _ => None,
        }
    }

    /// The gradient with respect to `name`, if the graph has it.
    pub fn gradient(&self, name: &str) -> Option<&'a [f32]> {
        self.gradients().find(|(known, _)| *known == name).map(|(_, values)| values)
    }

    /// Every gradient, by the name of what it is the gradient of.
    pub fn gradients(&self) -> impl Iterator<Item = (&'a str, &'a [f32])> {
        self.iter().filter_map(|(name, values)| Some((gradient_target(name)?, values)))
    }

    /// Euclidean norm of all gradients together, summed in double precision; not finite if one of them is not.
    pub fn gradient_norm(&self) -> f32 {
        let values = self.gradients().flat_map(|(_, values)| values);
        let squares: f64 = values.map(|&value| f64::from(value) * f64::from(value)).sum();
        squares.sqrt() as f32
    }

    /// Every output with its values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [f32])> {
        let outputs = *self;
        self.outputs.iter().map(move |slot| (slot.name.as_str(), outputs.values(slot)))
    }

    /// New values of the parameters the graph updates; [`crate::ParamStore::absorb`] writes them.
    pub fn updates(&self) -> impl Iterator<Item = (&'a str, &'a [f32])> {
        let outputs = *self;
        self.updates.iter().map(move |slot| (slot.name.as_str(), outputs.values(slot)))
    }

    fn values(&self, slot: &Slot) -> &'a [f32] {
        &self.values[slot.range.clone()]
    }
}
