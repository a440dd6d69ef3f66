//! Which blueprint a query gets. A pure function: the same query always has the same answer.
//!
//! The order of the rules, and the pool from which a context picks, are those other programs know. Where the
//! prototype let a query past its own safety rules (an explicit id ignored tier, caution and quarantine; a
//! conservative query that found nothing safe was served without restriction), this one refuses.

use std::collections::BTreeSet;

use leyline::ids::BlueprintId;
use sha2::{Digest as _, Sha256};

use crate::blueprint::{Blueprint, Clearance, Tier};
use crate::catalogue::Catalogue;
use crate::parameters::{Parameters, ParametersError};

/// How many SAFE templates, in catalogue order, a conservative query chooses from.
pub const CONSERVATIVE_POOL_MAX: usize = 10;

/// What is asked for. `Query::default()` asks for anything fit for production.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    /// This very blueprint. Every rule below holds for it all the same.
    pub blueprint: Option<BlueprintId>,
    /// Only this tier.
    pub tier: Option<Tier>,
    /// Parameter values. With `blueprint` all declared ones must be here; without, an empty map stands for the
    /// midpoints of whatever is chosen.
    pub parameters: Parameters,
    /// Picks from the pool: equal contexts get equal blueprints. Empty picks the first.
    pub context: String,
    /// How careful to be.
    pub caution: Caution,
    /// Whether stressors (tier HIGH_RISK) may be chosen. Needs [`Destination::Quarantine`] as well.
    pub allow_adversarial: bool,
    /// Where the blueprint is to run.
    pub destination: Destination,
    /// Blueprints somebody has approved.
    pub approved: BTreeSet<BlueprintId>,
}

/// How careful a selection is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Caution {
    /// Any blueprint the other rules leave.
    #[default]
    Normal,
    /// Only the first [`CONSERVATIVE_POOL_MAX`] SAFE ones.
    Conservative,
}

/// Where a blueprint is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Destination {
    /// In a host that matters.
    #[default]
    Production,
    /// In a host that exists to try things out.
    Quarantine,
}

/// What a query got.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The blueprint.
    pub blueprint: &'static Blueprint,
    /// Its parameters: the checked ones of the query, or the midpoints.
    pub parameters: Parameters,
    /// The caution under which it was chosen.
    pub caution: Caution,
}

/// Why a query got nothing. Each is the asker's to mend; none says that the catalogue is unwell, so none may
/// open a breaker.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SelectError {
    /// There is no such blueprint.
    #[error("no blueprint {blueprint}; the catalogue has {first} to {last}")]
    Unknown {
        /// Id asked for.
        blueprint: BlueprintId,
        /// First id of the catalogue.
        first: &'static BlueprintId,
        /// Last id of the catalogue.
        last: &'static BlueprintId,
    },
    /// The parameters do not fit the blueprint.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// The blueprint named is of another tier than the one asked for.
    #[error(
        "blueprint {blueprint} is {actual:?}, the query asks for {wanted:?}; drop one of the two"
    )]
    TierMismatch {
        /// Id asked for.
        blueprint: BlueprintId,
        /// Its tier.
        actual: Tier,
        /// Tier asked for.
        wanted: Tier,
    },
    /// Stressors were not allowed.
    #[error(
        "blueprint {blueprint} is a stressor; only a query that allows adversarial ones gets it"
    )]
    AdversarialNotAllowed {
        /// Id asked for.
        blueprint: BlueprintId,
    },
    /// Stressors were allowed for a production host.
    #[error("stressors never reach production, whatever the query allows; ask for quarantine")]
    AdversarialInProduction,
    /// The blueprint named is not among those a conservative query may have.
    #[error("blueprint {blueprint} is not among the conservative ones ({first} to {last})")]
    NotConservative {
        /// Id asked for.
        blueprint: BlueprintId,
        /// First of the conservative pool.
        first: &'static BlueprintId,
        /// Last of the conservative pool.
        last: &'static BlueprintId,
    },
    /// The blueprint may run in quarantine only.
    #[error("blueprint {blueprint} runs in quarantine only")]
    QuarantineOnly {
        /// The blueprint chosen.
        blueprint: BlueprintId,
    },
    /// The blueprint needs an approval that the query does not carry.
    #[error("blueprint {blueprint} needs an approval; have it approved, or ask for tier Safe")]
    ApprovalRequired {
        /// The blueprint chosen.
        blueprint: BlueprintId,
    },
    /// The rules leave no blueprint.
    #[error(
        "no blueprint is left: tier {tier:?}, caution {caution:?}, adversarial allowed: {adversarial}"
    )]
    NothingLeft {
        /// Tier asked for.
        tier: Option<Tier>,
        /// Caution asked for.
        caution: Caution,
        /// Whether stressors were allowed.
        adversarial: bool,
    },
}

/// Answers a query from the compiled-in catalogue.
///
/// # Errors
/// As [`Catalogue::select`].
pub fn select(query: &Query) -> Result<Selection, SelectError> {
    Catalogue::built_in().select(query)
}

impl Catalogue {
    /// Answers a query.
    ///
    /// Approval and quarantine are judged after the choice, not by thinning out the pool: an approval given to one
    /// blueprint must not change what every other context gets.
    ///
    /// # Errors
    /// [`SelectError`] says which rule left nothing, and what to ask instead.
    pub fn select(&self, query: &Query) -> Result<Selection, SelectError> {
        if query.allow_adversarial && query.destination == Destination::Production {
            return Err(SelectError::AdversarialInProduction);
        }
        let blueprint = match &query.blueprint {
            Some(id) => by_id(self, id, query)?,
            None => by_context(self, query)?,
        };
        check_clearance(blueprint, query)?;
        let midpoints = query.blueprint.is_none() && query.parameters.is_empty();
        let parameters = if midpoints { blueprint.midpoints() } else { query.parameters.clone() };
        blueprint.check(&parameters)?;
        Ok(Selection { blueprint, parameters, caution: query.caution })
    }
}

fn by_id(
    catalogue: &Catalogue,
    id: &BlueprintId,
    query: &Query,
) -> Result<&'static Blueprint, SelectError> {
    let blueprint = id.clone();
    let Some(found) = catalogue.find(id) else {
        let (first, last) = ends(catalogue.iter());
        return Err(SelectError::Unknown { blueprint, first, last });
    };
    if let Some(wanted) = query.tier.filter(|&tier| tier != found.tier()) {
        return Err(SelectError::TierMismatch { blueprint, actual: found.tier(), wanted });
    }
    if found.tier() == Tier::HighRisk && !query.allow_adversarial {
        return Err(SelectError::AdversarialNotAllowed { blueprint });
    }
    if query.caution == Caution::Conservative && !conservative(catalogue).any(|safe| safe == found)
    {
        let (first, last) = ends(conservative(catalogue));
        return Err(SelectError::NotConservative { blueprint, first, last });
    }
    Ok(found)
}

fn by_context(catalogue: &Catalogue, query: &Query) -> Result<&'static Blueprint, SelectError> {
    let fits = |blueprint: &&Blueprint| {
        query.tier.is_none_or(|tier| tier == blueprint.tier())
            && (query.allow_adversarial || blueprint.tier() != Tier::HighRisk)
    };
    // Both are in catalogue order, which is the order of the ids.
    let pool: Vec<_> = match query.caution {
        Caution::Normal => catalogue.iter().filter(fits).collect(),
        Caution::Conservative => conservative(catalogue).filter(fits).collect(),
    };
    if pool.is_empty() {
        return Err(SelectError::NothingLeft {
            tier: query.tier,
            caution: query.caution,
            adversarial: query.allow_adversarial,
        });
    }
    Ok(pool[index(&query.context, pool.len())])
}

fn check_clearance(blueprint: &Blueprint, query: &Query) -> Result<(), SelectError> {
    let id = || blueprint.id().clone();
    let approved = query.approved.contains(blueprint.id());
    match blueprint.clearance() {
        Clearance::Open => Ok(()),
        Clearance::Quarantine if query.destination == Destination::Production => {
            Err(SelectError::QuarantineOnly { blueprint: id() })
        }
        Clearance::Approval | Clearance::Quarantine if !approved => {
            Err(SelectError::ApprovalRequired { blueprint: id() })
        }
        Clearance::Approval | Clearance::Quarantine => Ok(()),
    }
}

fn conservative(catalogue: &Catalogue) -> impl Iterator<Item = &'static Blueprint> {
    let safe = catalogue.iter().filter(|blueprint| blueprint.tier() == Tier::Safe);
    safe.take(CONSERVATIVE_POOL_MAX)
}

/// First 4 bytes of SHA-256 of the context, big-endian, modulo `count`; 0 for the empty context.
fn index(context: &str, count: usize) -> usize {
    if context.is_empty() {
        return 0;
    }
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(context).into();
    u32::from_be_bytes([a, b, c, d]) as usize % count
}

fn ends(
    mut blueprints: impl Iterator<Item = &'static Blueprint>,
) -> (&'static BlueprintId, &'static BlueprintId) {
    let first = blueprints.next().expect("the catalogue is compiled in and not empty");
    let last = blueprints.last().unwrap_or(first);
    (first.id(), last.id())
}
