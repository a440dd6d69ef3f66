//! Parameters in training: one flat buffer with named ranges in named groups.
//!
//! A plan reads them where they lie and an optimiser changes them there, so that a step copies none.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::plan::Outputs;
use crate::tensor::{Params, Tensor};

/// Where everything lies. Replaced as a whole when a group comes or goes, so that plans notice.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) group: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

/// Why a group could not be added, removed or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is a group of that name already.
    #[error("group {group:?} exists already; remove it first or choose another name")]
    GroupExists {
        /// Its name.
        group: String,
    },
    /// There is no group of that name.
    #[error("no group {group:?}; the store has {known:?}")]
    UnknownGroup {
        /// Name asked for.
        group: String,
        /// Groups there are.
        known: Vec<String>,
    },
    /// A parameter of that name belongs to another group.
    #[error("parameter {name:?} belongs to group {group:?} already; prefix the new one's names")]
    Owned {
        /// Its name.
        name: String,
        /// Its owner.
        group: String,
    },
    /// There is no parameter of that name, or it has another size.
    #[error("no parameter {name:?} of {len} values")]
    UnknownParameter {
        /// Name asked for.
        name: String,
        /// Number of values given.
        len: usize,
    },
}

/// Parameters in one flat buffer. Each belongs to exactly one group.
#[derive(Debug, Clone, Default)]
pub struct ParamStore {
    values: Vec<f32>,
    layout: Arc<Layout>,
    groups: Vec<String>,
}

impl ParamStore {
    /// A store without parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store with one group.
    ///
    /// # Errors
    /// None: a fresh store has neither groups nor names to clash with.
    pub fn with_group(group: &str, params: &Params) -> Result<Self, StoreError> {
        let mut store = Self::new();
        store.add_group(group, params)?;
        Ok(store)
    }

    /// Adds a group of parameters behind those there are; their values do not move.
    ///
    /// # Errors
    /// [`StoreError::GroupExists`], [`StoreError::Owned`]. The store is unchanged after an error.
    pub fn add_group(&mut self, group: &str, params: &Params) -> Result<(), StoreError> {
        if self.groups.iter().any(|known| known == group) {
            return Err(StoreError::GroupExists { group: group.to_owned() });
        }
        if let Some((name, entry)) =
            params.iter().find_map(|(name, _)| Some((name, self.layout.entries.get(name)?)))
        {
            return Err(StoreError::Owned { name: name.to_owned(), group: entry.group.clone() });
        }
        let mut entries = self.layout.entries.clone();
        for (name, tensor) in params.iter() {
            let range = self.values.len()..self.values.len() + tensor.len();
            self.values.extend_from_slice(tensor.data());
            let entry = Entry { group: group.to_owned(), shape: tensor.shape().to_vec(), range };
            entries.insert(name.to_owned(), entry);
        }
        self.groups.push(group.to_owned());
        self.layout = Arc::new(Layout { entries });
        Ok(())
    }

    /// Takes a group out and returns its parameters; the others close ranks.
    ///
    /// # Errors
    /// [`StoreError::UnknownGroup`].
    pub fn remove_group(&mut self, group: &str) -> Result<Params, StoreError> {
        let removed = self.group(group)?;
        let kept: Vec<(String, Params)> = self
            .groups
            .iter()
            .filter(|known| *known != group)
            .map(|known| Ok((known.clone(), self.group(known)?)))
            .collect::<Result<_, StoreError>>()?;
        let mut smaller = Self::new();
        for (name, params) in &kept {
            smaller.add_group(name, params)?;
        }
        *self = smaller;
        Ok(removed)
    }

    /// A copy of one group's parameters.
    ///
    /// # Errors
    /// [`StoreError::UnknownGroup`].
    pub fn group(&self, group: &str) -> Result<Params, StoreError> {
        if !self.groups.iter().any(|known| known == group) {
            return Err(StoreError::UnknownGroup {
                group: group.to_owned(),
                known: self.groups.clone(),
            });
        }
        let own = self.layout.entries.iter().filter(|(_, entry)| entry.group == group);
        Ok(own.map(|(name, entry)| (name.clone(), self.tensor(entry))).collect())
    }

    /// A copy of all parameters.
    pub fn params(&self) -> Params {
        let entries = self.layout.entries.iter();
        entries.map(|(name, entry)| (name.clone(), self.tensor(entry))).collect()
    }

    fn tensor(&self, entry: &Entry) -> Tensor {
        let data = self.values[entry.range.clone()].to_vec();
        Tensor::new(entry.shape.clone(), data).expect("the layout was made from tensors")
    }

    /// Names of the groups in the order in which they came.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Names of one group's parameters, in name order.
    pub fn names<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a str> {
        let entries = self.layout.entries.iter();
        entries.filter(move |(_, entry)| entry.group == group).map(|(name, _)| name.as_str())
    }

    /// The group a parameter belongs to.
    pub fn group_of(&self, name: &str) -> Option<&str> {
        self.layout.entries.get(name).map(|entry| entry.group.as_str())
    }

    /// Values of one parameter.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.layout.entries.get(name).map(|entry| &self.values[entry.range.clone()])
    }

    /// Values of one parameter, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.layout.entries.get(name).map(|entry| &mut self.values[entry.range.clone()])
    }

    /// Overwrites one parameter.
    ///
    /// # Errors
    /// [`StoreError::UnknownParameter`] when there is none of that name and size.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<(), StoreError> {
        match self.get_mut(name) {
            Some(old) if old.len() == values.len() => {
                old.copy_from_slice(values);
                Ok(())
            }
            _ => Err(StoreError::UnknownParameter { name: name.to_owned(), len: values.len() }),
        }
    }

    /// Writes the updates of a run: running statistics and other state the graph changes itself.
    ///
    /// # Errors
    /// [`StoreError::UnknownParameter`] when the run was not of this store.
    pub fn absorb(&mut self, outputs: &Outputs<'_>) -> Result<(), StoreError> {
        outputs.updates().try_for_each(|(name, values)| self.set(name, values))
    }

    /// All values; where each parameter lies is the store's own business.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The layout beside the values, so that both can be used at once.
    pub(crate) fn parts_mut(&mut self) -> (&Layout, &mut [f32]) {
        (&self.layout, &mut self.values)
    }
}

impl Layout {
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }
}
