//! What a plan is valid for, and what it says to anything else.

use serde::{Deserialize, Serialize};

use crate::canonical::write_value;
use crate::digest::Digest;
use crate::gradient::gradient_name;
use crate::graph::Graph;
use crate::guard::{DTYPE, contiguous};
use crate::op::Op;

/// Version of the plan compiler. A plan of another version may lay out and compute otherwise.
pub const PLAN_ENGINE: &str = concat!("kernel-", env!("CARGO_PKG_VERSION"));

/// What a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// It gives gradients, updates state, or drops elements.
    Training,
    /// None of these.
    Evaluation,
}

/// A value a plan reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardedValue {
    /// Name of the input or parameter.
    pub name: String,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    pub stride: Vec<usize>,
    /// Element type.
    pub dtype: String,
    /// Whether the graph gives no gradient with respect to it.
    pub frozen: bool,
}

/// Everything a plan relies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanGuard {
    /// [`PLAN_ENGINE`] of the compiler.
    pub engine: String,
    /// Training or evaluation.
    pub purpose: Purpose,
    /// Inputs in name order.
    pub inputs: Vec<GuardedValue>,
    /// Parameters in name order.
    pub parameters: Vec<GuardedValue>,
}

/// Why a plan does not serve: what it was made for and what was found. Compile the graph again, or run it by the
/// interpreter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the plan is for {subject} {expected}, found {found}; compile the graph again")]
pub struct PlanMismatch {
    /// Engine, purpose, or an input or parameter by name.
    pub subject: String,
    /// What the plan was made for.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl PlanGuard {
    /// What a plan of this graph relies on.
    pub fn of(graph: &Graph) -> Self {
        let gives = |name: &str| {
            let name = gradient_name(name);
            graph.outputs().iter().any(|output| output.name == name)
        };
        let value = |(name, shape): (&str, &[usize])| GuardedValue {
            name: name.to_owned(),
            shape: shape.to_vec(),
            stride: contiguous(shape),
            dtype: DTYPE.to_owned(),
            frozen: !gives(name),
        };
        let inputs: Vec<GuardedValue> = graph.inputs().map(value).collect();
        let parameters: Vec<GuardedValue> = graph.parameters().map(value).collect();
        let drops = graph.nodes().iter().any(|node| matches!(node.op(), Op::Dropout { .. }));
        let has_gradients = inputs.iter().chain(&parameters).any(|value| !value.frozen);
        let purpose = if drops || has_gradients || !graph.updates().is_empty() {
            Purpose::Training
        } else {
            Purpose::Evaluation
        };
        Self { engine: PLAN_ENGINE.to_owned(), purpose, inputs, parameters }
    }

    /// SHA-256 of the guard as JSON with sorted keys: the same on every machine.
    pub fn digest(&self) -> Digest {
        let mut text = String::new();
        serde_json::to_value(self)
            .and_then(|value| write_value(&value, ",", ":", &mut text))
            .expect("names, numbers and flags are JSON");
        Digest::of(text)
    }

    /// Whether what is found is what the plan was made for.
    ///
    /// # Errors
    /// [`PlanMismatch`] names the first thing that differs.
    pub fn check(&self, found: &Self) -> Result<(), PlanMismatch> {
        let differs = |subject: &str, expected: String, found: String| PlanMismatch {
            subject: subject.to_owned(),
            expected,
            found,
        };
        if self.engine != found.engine {
            return Err(differs("engine", self.engine.clone(), found.engine.clone()));
        }
        if self.purpose != found.purpose {
            let text = |purpose: Purpose| format!("{purpose:?}").to_lowercase();
            return Err(differs("purpose", text(self.purpose), text(found.purpose)));
        }
        let lists = [
            ("input", &self.inputs, &found.inputs),
            ("parameter", &self.parameters, &found.parameters),
        ];
        for (kind, expected, found) in lists {
            for value in expected {
                let same_name = found.iter().find(|other| other.name == value.name);
                if same_name != Some(value) {
                    let subject = format!("{kind} {:?} with", value.name);
                    let other = same_name.map_or_else(|| "none".to_owned(), GuardedValue::summary);
                    return Err(differs(&subject, value.summary(), other));
                }
            }
            let surplus = |value: &&GuardedValue| expected.iter().all(|own| own.name != value.name);
            if let Some(value) = found.iter().find(surplus) {
                let subject = format!("{kind} {:?} with", value.name);
                return Err(differs(&subject, "none".to_owned(), value.summary()));
            }
        }
        Ok(())
    }
}

impl GuardedValue {
    fn summary(&self) -> String {
        let state = if self.frozen { "frozen" } else { "trained" };
        format!("{} {:?}, stride {:?}, {state}", self.dtype, self.shape, self.stride)
    }
}
