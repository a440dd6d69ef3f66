//! SGD and Adam over the groups of a [`ParamStore`].
//!
//! A group has its own rate and can be frozen. Groups come and go while the state of the others stays: each
//! parameter's moments and step count are its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::outputs::Outputs;
use crate::plan::kernels::simd;
use crate::store::ParamStore;

/// Stochastic gradient descent with momentum: `m = momentum m + g`, `p = p - rate m`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// From 0 (none) to below 1.
    pub momentum: f32,
    /// Share of the parameter added to its gradient.
    pub weight_decay: f32,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0.9, weight_decay: 0.0 }
    }
}

/// Adam (Kingma and Ba 2015), with decoupled weight decay (Loshchilov and Hutter 2019) where that is above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Share of the parameter, times the rate, subtracted at each step.
    pub weight_decay: f32,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Gradient descent.
    Sgd(Sgd),
    /// Adam.
    Adam(Adam),
}

/// Why the optimiser refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptimiserError {
    /// There is a group of that name already.
    #[error("group {group:?} exists already; remove it first or choose another name")]
    GroupExists {
        /// Its name.
        group: String,
    },
    /// There is no group of that name.
    #[error("no group {group:?}; add it before its first use")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// A rate must be a finite number of at least 0.
    #[error("rate {rate} for group {group:?} is not a finite number of at least 0")]
    Rate {
        /// The group.
        group: String,
        /// The rate given.
        rate: f32,
    },
    /// A gradient has another size than its parameter: the run was not of this store.
    #[error("the gradient of {name:?} has {found} values, the parameter {expected}")]
    Size {
        /// The parameter.
        name: String,
        /// Its number of values.
        expected: usize,
        /// The gradient's.
        found: usize,
    },
}

/// A rule with the state of every parameter it has moved. Serialise it for a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimiser {
    rule: Rule,
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Group {
    rate: f32,
    frozen: bool,
    states: BTreeMap<String, State>,
}

/// Moments of one parameter; `second` stays empty for SGD.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    steps: u32,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Optimiser {
    /// An optimiser without groups; it moves nothing until one is added.
    pub fn new(rule: Rule) -> Self {
        Self { rule, groups: BTreeMap::new() }
    }

    /// SGD.
    pub fn sgd(settings: Sgd) -> Self {
        Self::new(Rule::Sgd(settings))
    }

    /// Adam.
    pub fn adam(settings: Adam) -> Self {
        Self::new(Rule::Adam(settings))
    }

    /// Begins to move the parameters of the store's group `group`, with the given learning rate.
    ///
    /// # Errors
    /// [`OptimiserError::GroupExists`], [`OptimiserError::Rate`].
    pub fn add_group(&mut self, group: &str, rate: f32) -> Result<(), OptimiserError> {
        if self.groups.contains_key(group) {
            return Err(OptimiserError::GroupExists { group: group.to_owned() });
        }
        check_rate(group, rate)?;
        self.groups
            .insert(group.to_owned(), Group { rate, frozen: false, states: BTreeMap::new() });
        Ok(())
    }

    /// Forgets a group and its state.
    ///
    /// # Errors
    /// [`OptimiserError::UnknownGroup`].
    pub fn remove_group(&mut self, group: &str) -> Result<(), OptimiserError> {
        let removed = self.groups.remove(group);
        removed.map(|_| ()).ok_or_else(|| OptimiserError::UnknownGroup { group: group.to_owned() })
    }

    /// Changes a group's learning rate.
    ///
    /// # Errors
    /// [`OptimiserError::UnknownGroup`], [`OptimiserError::Rate`].
    pub fn set_rate(&mut self, group: &str, rate: f32) -> Result<(), OptimiserError> {
        check_rate(group, rate)?;
        self.group_mut(group)?.rate = rate;
        Ok(())
    }

    /// Stops moving a group; its state stays.
    ///
    /// # Errors
    /// [`OptimiserError::UnknownGroup`].
    pub fn freeze(&mut self, group: &str) -> Result<(), OptimiserError> {
        self.group_mut(group)?.frozen = true;
        Ok(())
    }

    /// Moves a frozen group again, from the state it had.
    ///
    /// # Errors
    /// [`OptimiserError::UnknownGroup`].
    pub fn unfreeze(&mut self, group: &str) -> Result<(), OptimiserError> {
        self.group_mut(group)?.frozen = false;
        Ok(())
    }

    /// A group's learning rate, if there is such a group.
    pub fn rate(&self, group: &str) -> Option<f32> {
        self.groups.get(group).map(|group| group.rate)
    }

    /// Whether a group is frozen, if there is such a group.
    pub fn is_frozen(&self, group: &str) -> Option<bool> {
        self.groups.get(group).map(|group| group.frozen)
    }

    /// Names of the groups, in name order.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    fn group_mut(&mut self, group: &str) -> Result<&mut Group, OptimiserError> {
        self.groups
            .get_mut(group)
            .ok_or_else(|| OptimiserError::UnknownGroup { group: group.to_owned() })
    }

    /// Moves every parameter that has a gradient in `outputs` and belongs to a group of this optimiser that is not
    /// frozen. Gradients are multiplied by `gradient_scale` first: 1, or less to clip their norm
    /// (see [`Outputs::gradient_norm`]).
    ///
    /// # Errors
    /// [`OptimiserError::Size`]; parameters before the one at fault have moved.
    pub fn step(
        &mut self,
        store: &mut ParamStore,
        outputs: &Outputs<'_>,
        gradient_scale: f32,
    ) -> Result<(), OptimiserError> {
        self.step_with(store, outputs.gradients(), gradient_scale)
    }

    /// [`Optimiser::step`] by gradients from anywhere: (parameter, gradient).
    ///
    /// # Errors
    /// As [`Optimiser::step`].
    pub fn step_with<'a>(
        &mut self,
        store: &mut ParamStore,
        gradients: impl IntoIterator<Item = (&'a str, &'a [f32])>,
        gradient_scale: f32,
    ) -> Result<(), OptimiserError> {
        let (layout, values) = store.parts_mut();
        for (name, gradient) in gradients {
            // Gradients with respect to inputs, or of parameters somebody else moves, are none of our business.
            let Some(entry) = layout.get(name) else { continue };
            let Some(group) = self.groups.get_mut(&entry.group) else { continue };
            if group.frozen {
                continue;
            }
            let parameter = values.get_mut(&entry.place);
            if gradient.len() != parameter.len() {
                let (expected, found) = (parameter.len(), gradient.len());
                return Err(OptimiserError::Size { name: name.to_owned(), expected, found });
            }
            let state = state_of(&mut group.states, name);
            state.advance(parameter.len(), self.rule);
            match self.rule {
                Rule::Sgd(sgd) => sgd.step(group.rate, gradient_scale, parameter, gradient, state),
                Rule::Adam(adam) => {
                    adam.step(group.rate, gradient_scale, parameter, gradient, state)
                }
            }
        }
        Ok(())
    }
}

fn check_rate(group: &str, rate: f32) -> Result<(), OptimiserError> {
    if rate.is_finite() && rate >= 0.0 {
        return Ok(());
    }
    Err(OptimiserError::Rate { group: group.to_owned(), rate })
}

/// Without building a key where there is one already: this runs once per parameter and step.
fn state_of<'a>(states: &'a mut BTreeMap<String, State>, name: &str) -> &'a mut State {
    if !states.contains_key(name) {
        states.insert(name.to_owned(), State::default());
    }
    states.get_mut(name).expect("inserted above")
}

impl State {
    /// Counts a step; a parameter seen for the first time, or of another size, starts from zero moments.
    fn advance(&mut self, len: usize, rule: Rule) {
        if self.first.len() != len {
            let second = if matches!(rule, Rule::Adam(_)) { vec![0.0; len] } else { Vec::new() };
            *self = Self { steps: 0, first: vec![0.0; len], second };
        }
        self.steps = self.steps.saturating_add(1);
    }
}

impl Sgd {
    fn step(
        self,
        rate: f32,
        scale: f32,
        parameter: &mut [f32],
        gradient: &[f32],
        state: &mut State,
    ) {
        let Self { momentum, weight_decay } = self;
        simd(
            #[inline(always)]
            || {
                for ((value, &gradient), first) in
                    parameter.iter_mut().zip(gradient).zip(&mut state.first)
                {
                    *first = momentum * *first + (gradient * scale + weight_decay * *value);
                    *value -= rate * *first;
                }
            },
        );
    }
}

impl Adam {
    fn step(
        self,
        rate: f32,
        scale: f32,
        parameter: &mut [f32],
        gradient: &[f32],
        state: &mut State,
    ) {
        let Self { beta1, beta2, epsilon, weight_decay } = self;
        let steps = f64::from(state.steps);
        // Moments start at zero; dividing by these takes that bias out.
        let correction1 = 1.0 - libm::pow(f64::from(beta1), steps);
        let correction2 = 1.0 - libm::pow(f64::from(beta2), steps);
        let step_size = (f64::from(rate) / correction1) as f32;
        let root_scale = (1.0 / libm::sqrt(correction2)) as f32;
        let keep = 1.0 - rate * weight_decay;
        let moments = state.first.iter_mut().zip(&mut state.second);
        simd(
            #[inline(always)]
            || {
                for ((value, &gradient), (first, second)) in
                    parameter.iter_mut().zip(gradient).zip(moments)
                {
                    let gradient = gradient * scale;
                    *first = beta1 * *first + (1.0 - beta1) * gradient;
                    *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                    *value =
                        *value * keep - step_size * *first / (second.sqrt() * root_scale + epsilon);
                }
            },
        );
    }
}
