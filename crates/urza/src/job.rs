//! What makes two compile jobs the same.

use std::collections::BTreeMap;

use kernel::Digest;
use leyline::ids::BlueprintId;

/// What a compile job depends on. The same job gives the same bytes on every machine.
#[derive(Debug, Clone, PartialEq)]
pub struct JobKey {
    /// The blueprint.
    pub blueprint: BlueprintId,
    /// Value of each parameter, by name. All finite.
    pub parameters: BTreeMap<String, f64>,
    /// Spelling of the site it is built for, as the builder writes it (`vector[32]`).
    pub site: String,
    /// Version of the engine whose graph and artifact format it is.
    pub engine: String,
}

/// Longest blueprint, site or engine of a job, in bytes.
const JOB_TEXT_MAX: usize = 512;

/// A job cannot be keyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobKeyError {
    /// A text that is too long or holds control characters.
    #[error("{field} of a job has at most {JOB_TEXT_MAX} bytes without control characters")]
    Text {
        /// Which.
        field: &'static str,
    },
    /// NaN and infinities have no place in a key.
    #[error("parameter {name} of blueprint {blueprint} is not finite")]
    NotFinite {
        /// The blueprint.
        blueprint: BlueprintId,
        /// The parameter.
        name: String,
    },
}

impl JobKey {
    /// Checks that the job can be keyed.
    ///
    /// # Errors
    /// [`JobKeyError`] names the parameter at fault.
    pub fn check(&self) -> Result<(), JobKeyError> {
        let texts = [
            ("the blueprint", self.blueprint.as_str()),
            ("the site", &self.site),
            ("the engine", &self.engine),
        ];
        for (field, text) in texts {
            if JOB_TEXT_MAX < text.len() || text.chars().any(char::is_control) {
                return Err(JobKeyError::Text { field });
            }
        }
        match self.parameters.iter().find(|(_, value)| !value.is_finite()) {
            Some((name, _)) => Err(JobKeyError::NotFinite {
                blueprint: self.blueprint.clone(),
                name: name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The parameters as JSON: names in order, each value the shortest text that reads back as it.
    pub fn parameters_json(&self) -> String {
        parameters_json(&self.parameters)
    }

    /// SHA-256 over every field, each preceded by its length, so that no two jobs share a key.
    pub fn digest(&self) -> Digest {
        let parameters = self.parameters_json();
        let mut text = Vec::new();
        for field in [self.blueprint.as_str(), &parameters, &self.site, &self.engine] {
            text.extend_from_slice(&(field.len() as u64).to_le_bytes());
            text.extend_from_slice(field.as_bytes());
        }
        Digest::of(text)
    }
}

pub(crate) fn parameters_json(parameters: &BTreeMap<String, f64>) -> String {
    serde_json::to_string(parameters)
        .unwrap_or_else(|_| unreachable!("a map of names to numbers is always JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobKey {
        JobKey {
            blueprint: "BP002".into(),
            parameters: BTreeMap::from([("a".to_owned(), 0.5), ("b".to_owned(), 2.0)]),
            site: "vector[32]".to_owned(),
            engine: "1".to_owned(),
        }
    }

    #[test]
    fn every_field_counts() {
        let mut others = vec![job(), job(), job(), job(), job()];
        others[0].blueprint = "BP003".into();
        others[1].parameters.insert("a".to_owned(), 0.5000001);
        others[2].site = "vector[33]".to_owned();
        others[3].engine = "2".to_owned();
        others[4].site = String::new();
        others[4].engine = "vector[32]1".to_owned();
        for other in others {
            assert_ne!(other.digest(), job().digest(), "{other:?}");
        }
        assert_eq!(job().digest(), job().digest());
    }

    #[test]
    fn a_parameter_that_is_no_number_is_refused() {
        let mut job = job();
        assert_eq!(job.check(), Ok(()));
        job.parameters.insert("b".to_owned(), f64::NAN);
        assert!(matches!(job.check(), Err(JobKeyError::NotFinite { name, .. }) if name == "b"));
    }
}
