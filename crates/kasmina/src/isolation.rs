//! Keeping seeds and host apart: no gradient from a seed's branch reaches the host, and no
//! parameter has two owners.

use std::collections::BTreeMap;

use leyline::ids::SeedId;

/// Greatest norm that counts as zero. With the host detached the gradient is exactly zero; the
/// contract's limit leaves room for estimates.
pub const GRADIENT_LIMIT: f64 = 1e-6;

/// The host felt the seed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the seed's branch put a gradient of norm {norm:e} on the host; detach the host branch")]
pub struct Violation {
    /// Norm of the host's gradients that came through the seed's branch.
    pub norm: f64,
}

/// Checks the invariant on the norm of the host's gradients that came through the seed's branch.
///
/// # Errors
/// [`Violation`] above [`GRADIENT_LIMIT`], and for a norm that is no number.
pub fn check(host_gradient_norm: f64) -> Result<(), Violation> {
    if host_gradient_norm.abs() <= GRADIENT_LIMIT {
        return Ok(());
    }
    Err(Violation { norm: host_gradient_norm })
}

/// Who may change a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The host network.
    Host,
    /// A teacher: nobody may change it.
    Teacher,
    /// A seed.
    Seed(SeedId),
}

/// A parameter belongs to somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter {parameter} belongs to {owner:?}; give every seed an instance of its own")]
pub struct Conflict {
    /// The parameter.
    pub parameter: String,
    /// Whose it is.
    pub owner: Owner,
}

/// Every trainable parameter and its one owner.
#[derive(Debug, Default)]
pub struct Ownership {
    owners: BTreeMap<String, Owner>,
}

impl Ownership {
    /// Takes parameters for an owner; what it already owns is fine. All or nothing.
    ///
    /// # Errors
    /// [`Conflict`] names the first parameter that belongs to somebody else.
    pub fn register(&mut self, owner: &Owner, parameters: &[String]) -> Result<(), Conflict> {
        for parameter in parameters {
            if let Some(found) = self.owners.get(parameter).filter(|found| *found != owner) {
                return Err(Conflict { parameter: parameter.clone(), owner: found.clone() });
            }
        }
        for parameter in parameters {
            self.owners.insert(parameter.clone(), owner.clone());
        }
        Ok(())
    }

    /// Frees all that an owner has.
    pub fn deregister(&mut self, owner: &Owner) {
        self.owners.retain(|_, found| found != owner);
    }

    /// Whose parameter it is; `None` for an unknown one.
    pub fn owner_of(&self, parameter: &str) -> Option<&Owner> {
        self.owners.get(parameter)
    }

    /// Whether a seed may change all these parameters: each must be its own.
    pub fn may_update(&self, seed: &SeedId, parameters: &[String]) -> bool {
        parameters
            .iter()
            .all(|parameter| matches!(self.owner_of(parameter), Some(Owner::Seed(owner)) if owner == seed))
    }

    /// Parameters of an owner, in the order of their names.
    pub fn parameters_of<'a>(&'a self, owner: &'a Owner) -> impl Iterator<Item = &'a str> {
        self.owners.iter().filter(move |(_, found)| *found == owner).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_required() {
        assert_eq!(check(0.0), Ok(()));
        assert_eq!(check(1e-6), Ok(()));
        assert_eq!(check(2e-6), Err(Violation { norm: 2e-6 }));
        assert!(check(f64::NAN).is_err());
        assert!(check(f64::INFINITY).is_err());
    }

    #[test]
    fn a_parameter_has_one_owner() {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (a, b) = (Owner::Seed("a".into()), Owner::Seed("b".into()));
        let mut ownership = Ownership::default();
        ownership.register(&Owner::Host, &names(&["h"])).unwrap();
        ownership.register(&Owner::Teacher, &names(&["t"])).unwrap();
        ownership.register(&a, &names(&["a1", "a2"])).unwrap();
        ownership.register(&a, &names(&["a1"])).unwrap();
        let conflict = ownership.register(&b, &names(&["b1", "a2"])).unwrap_err();
        assert_eq!(conflict, Conflict { parameter: "a2".to_owned(), owner: a.clone() });
        assert_eq!(ownership.owner_of("b1"), None, "all or nothing");
        assert!(ownership.may_update(&"a".into(), &names(&["a1", "a2"])));
        for others in ["h", "t", "unknown"] {
            assert!(!ownership.may_update(&"a".into(), &names(&["a1", others])), "{others}");
        }
        ownership.deregister(&a);
        assert_eq!(ownership.parameters_of(&a).count(), 0);
        ownership.register(&b, &names(&["a2"])).unwrap();
    }
}
