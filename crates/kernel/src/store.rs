//! Parameters in training: named ranges in a buffer for each group.
//!
//! A plan reads them where they lie and an optimiser changes them there, so that a step copies none. A group that
//! comes straight out of an artifact's file stays there until it is changed, page by page; the others never move.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use crate::mapping::{Mapping, PrivateMapping};
use crate::outputs::Outputs;
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
    pub(crate) place: Place,
}

/// Where a parameter lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    segment: usize,
    range: Range<usize>,
}

impl Place {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }
}

/// The values of all groups, one segment each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    pub(crate) fn get(&self, place: &Place) -> &[f32] {
        &self.0[place.segment][place.range.clone()]
    }

    pub(crate) fn get_mut(&mut self, place: &Place) -> &mut [f32] {
        &mut self.0[place.segment][place.range.clone()]
    }
}

#[derive(Debug)]
enum Segment {
    Owned(Vec<f32>),
    Mapped(PrivateMapping),
}

impl Deref for Segment {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped(mapping) => mapping,
        }
    }
}

impl DerefMut for Segment {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped(mapping) => mapping,
        }
    }
}

impl Clone for Segment {
    fn clone(&self) -> Self {
        Self::Owned(self.to_vec())
    }
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

/// Parameters where plans and optimisers work on them. Each belongs to exactly one group.
#[derive(Debug, Clone, Default)]
pub struct ParamStore {
    segments: Segments,
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
        let (segment, ranges) = Segment::of(params);
        let index = self.segments.0.len();
        let mut entries = self.layout.entries.clone();
        for ((name, tensor), range) in params.iter().zip(ranges) {
            let (group, shape) = (group.to_owned(), tensor.shape().to_vec());
            let place = Place { segment: index, range };
            entries.insert(name.to_owned(), Entry { group, shape, place });
        }
        self.segments.0.push(segment);
        self.groups.push(group.to_owned());
        self.layout = Arc::new(Layout { entries });
        Ok(())
    }

    /// Takes a group out and returns its parameters; the values of the others do not move.
    ///
    /// # Errors
    /// [`StoreError::UnknownGroup`].
    pub fn remove_group(&mut self, group: &str) -> Result<Params, StoreError> {
        let removed = self.group(group)?;
        let index = self.groups.iter().position(|known| known == group);
        let index = index.expect("its parameters were found above");
        self.groups.remove(index);
        self.segments.0.remove(index);
        let mut entries = self.layout.entries.clone();
        entries.retain(|_, entry| entry.group != group);
        for entry in entries.values_mut().filter(|entry| index < entry.place.segment) {
            entry.place.segment -= 1;
        }
        self.layout = Arc::new(Layout { entries });
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
        let data = self.segments.get(&entry.place).to_vec();
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
        self.layout.entries.get(name).map(|entry| self.segments.get(&entry.place))
    }

    /// Values of one parameter, if it has this shape or at least another number of elements to complain about.
    pub(crate) fn shaped(&self, name: &str, shape: &[usize]) -> Option<&[f32]> {
        let entry = self.layout.entries.get(name)?;
        let values = self.segments.get(&entry.place);
        let is_other = entry.shape != shape && values.len() == shape.iter().product::<usize>();
        (!is_other).then_some(values)
    }

    /// Values of one parameter, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.layout.entries.get(name).map(|entry| self.segments.get_mut(&entry.place))
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

    /// The values, to be found by the places of the layout.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The layout beside the values, so that both can be used at once.
    pub(crate) fn parts_mut(&mut self) -> (&Layout, &mut Segments) {
        (&self.layout, &mut self.segments)
    }
}

impl Segment {
    /// The values of these parameters with the range of each, in their order: the file they all lie in, mapped once
    /// more, or else a copy.
    fn of(params: &Params) -> (Self, Vec<Range<usize>>) {
        if let Some((mapping, ranges)) = common_mapping(params) {
            // Where no more maps are to be had, a copy costs time and nothing else.
            if let Ok(private) = mapping.copy_on_write() {
                return (Self::Mapped(private), ranges);
            }
        }
        let mut values = Vec::with_capacity(params.element_count());
        let mut ranges = Vec::with_capacity(params.len());
        for (_, tensor) in params.iter() {
            let start = values.len();
            values.extend_from_slice(tensor.data());
            ranges.push(start..values.len());
        }
        (Self::Owned(values), ranges)
    }
}

/// The file in which all these parameters lie, with the range of each.
fn common_mapping(params: &Params) -> Option<(&Arc<Mapping>, Vec<Range<usize>>)> {
    let mut common: Option<&Arc<Mapping>> = None;
    let mut ranges = Vec::with_capacity(params.len());
    for (_, tensor) in params.iter() {
        let (mapping, range) = tensor.place()?;
        if common.is_some_and(|common| !Arc::ptr_eq(common, mapping)) {
            return None;
        }
        common = Some(mapping);
        ranges.push(range);
    }
    Some((common?, ranges))
}

impl Layout {
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }
}
