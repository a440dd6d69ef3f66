//! Values for a blueprint's parameters, and everything that may be wrong with them.

use std::collections::BTreeMap;
use std::fmt;

use leyline::ids::BlueprintId;
use serde::{Deserialize, Serialize};

use crate::blueprint::{Blueprint, Parameter};

/// Parameter values by name. What they mean, and whether they are permitted, their blueprint says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, f64>);

impl Parameters {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// The values of a command as they stand on the wire, in single precision.
    ///
    /// Each is read as the shortest decimal number that rounds to it. Plain widening would turn a bound
    /// such as 0.99 into 0.9900000095 and have it refused as out of its interval.
    pub fn from_wire(values: &BTreeMap<String, f32>) -> Self {
        let widen = |value: f32| value.to_string().parse().unwrap_or(f64::from(value));
        values.iter().map(|(name, &value)| (name.clone(), widen(value))).collect()
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Sets the value of `name`.
    pub fn insert(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), value);
    }

    /// Names and values in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, &value)| (name.as_str(), value))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no value is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: Into<String>> FromIterator<(S, f64)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (S, f64)>>(values: I) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

/// Everything wrong with the parameters given for one blueprint.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("blueprint {blueprint} ({name}): {}", join(.faults))]
pub struct ParametersError {
    /// The blueprint whose rules were broken.
    pub blueprint: BlueprintId,
    /// Its name.
    pub name: &'static str,
    /// Every fault: first the declared parameters in their order, then what is not declared.
    pub faults: Vec<ParameterFault>,
}

/// One thing wrong with one parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum ParameterFault {
    /// Declared but not given.
    Missing {
        /// The declaration.
        declared: Parameter,
    },
    /// Not a finite number, or outside the closed interval.
    OutOfBounds {
        /// The declaration.
        declared: Parameter,
        /// The value given.
        value: f64,
    },
    /// Given but not declared.
    Unknown {
        /// The name given.
        name: String,
        /// The names that are declared.
        declared: Vec<&'static str>,
    },
}

impl ParametersError {
    pub(crate) fn find(blueprint: &Blueprint, given: &Parameters) -> Option<Self> {
        let mut faults = Vec::new();
        for declared in blueprint.parameters() {
            let declared = declared.clone();
            match given.get(declared.name) {
                None => faults.push(ParameterFault::Missing { declared }),
                Some(value) if !declared.admits(value) => {
                    faults.push(ParameterFault::OutOfBounds { declared, value });
                }
                Some(_) => {}
            }
        }
        let declared: Vec<_> = blueprint.parameters().iter().map(|one| one.name).collect();
        for (name, _) in given.iter().filter(|(name, _)| !declared.contains(name)) {
            let (name, declared) = (name.to_owned(), declared.clone());
            faults.push(ParameterFault::Unknown { name, declared });
        }
        if faults.is_empty() {
            return None;
        }
        Some(Self { blueprint: blueprint.id().clone(), name: blueprint.name(), faults })
    }
}

impl fmt::Display for ParameterFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { declared: Parameter { name, min, max } } => {
                write!(f, "parameter {name} is missing, give a value from {min} to {max}")
            }
            Self::OutOfBounds { declared: Parameter { name, min, max }, value } => {
                write!(f, "parameter {name} is {value}, it must lie from {min} to {max}")
            }
            Self::Unknown { name, declared } if declared.is_empty() => {
                write!(f, "parameter {name:?} is unknown, the blueprint has none")
            }
            Self::Unknown { name, declared } => {
                write!(f, "parameter {name:?} is unknown, declared are: {}", declared.join(", "))
            }
        }
    }
}

fn join(faults: &[ParameterFault]) -> String {
    let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{catalogue, find};
    use proptest::prelude::*;

    fn check(id: &str, given: &[(&str, f64)]) -> Result<(), String> {
        let blueprint = find(&BlueprintId::from(id)).unwrap();
        blueprint.check(&given.iter().copied().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let error = check("BP036", &[("capacity", 2.5), ("expert", 4.0), ("zeal", 1.0)]);
        let expected = "blueprint BP036 (mixture_of_experts_4): \
            parameter capacity is 2.5, it must lie from 1 to 2; \
            parameter experts is missing, give a value from 4 to 8; \
            parameter \"expert\" is unknown, declared are: capacity, experts; \
            parameter \"zeal\" is unknown, declared are: capacity, experts";
        assert_eq!(error, Err(expected.to_owned()));
        let none = check("BP001", &[("scale", 1.0)]);
        let expected = "blueprint BP001 (identity_passthrough): \
            parameter \"scale\" is unknown, the blueprint has none";
        assert_eq!(none, Err(expected.to_owned()));
    }

    #[test]
    fn intervals_are_closed_and_hold_only_finite_numbers() {
        for blueprint in catalogue() {
            assert_eq!(blueprint.check(&blueprint.midpoints()), Ok(()), "{}", blueprint.id());
            for parameter in blueprint.parameters() {
                let with = |value: f64| {
                    let mut parameters = blueprint.midpoints();
                    parameters.insert(parameter.name, value);
                    blueprint.check(&parameters).is_ok()
                };
                assert!(with(parameter.min) && with(parameter.max), "{}", blueprint.id());
                let outside = [parameter.min.next_down(), parameter.max.next_up()];
                for value in outside.into_iter().chain([f64::NAN, f64::INFINITY, -f64::INFINITY]) {
                    assert!(!with(value), "{} {} {value}", blueprint.id(), parameter.name);
                }
            }
        }
    }

    #[test]
    fn bounds_survive_the_single_precision_of_the_wire() {
        for blueprint in catalogue() {
            for bound in [|one: &Parameter| one.min, |one: &Parameter| one.max] {
                let wire = blueprint.parameters().iter();
                let wire = wire.map(|one| (one.name.to_owned(), bound(one) as f32)).collect();
                let parameters = Parameters::from_wire(&wire);
                assert_eq!(blueprint.check(&parameters), Ok(()), "{}", blueprint.id());
            }
        }
        let odd = BTreeMap::from([("scale".to_owned(), f32::NAN)]);
        assert!(Parameters::from_wire(&odd).get("scale").unwrap().is_nan());
    }

    proptest! {
        #[test]
        fn widening_rounds_back_to_the_same_number(value in any::<f32>()) {
            let wire = BTreeMap::from([("x".to_owned(), value)]);
            let wide = Parameters::from_wire(&wire).get("x").unwrap();
            prop_assert!(wide as f32 == value || value.is_nan());
        }
    }
}
