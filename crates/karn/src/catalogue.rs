//! The catalogue itself: the compiled-in templates, by position and by id, and those that users bring.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, LazyLock};

use leyline::ids::BlueprintId;

use crate::blueprint::{Blueprint, Clearance};
use crate::examine::examine;
use crate::manifest::{Manifest, ManifestError, ManifestFault};
use crate::table::ROWS;

static CATALOGUE: LazyLock<Vec<Blueprint>> =
    LazyLock::new(|| ROWS.iter().map(Blueprint::from_row).collect());

/// All 50 blueprints, ordered by id.
pub fn catalogue() -> &'static [Blueprint] {
    &CATALOGUE
}

/// The blueprint called `id`, if there is one.
pub fn find(id: &BlueprintId) -> Option<&'static Blueprint> {
    let position = CATALOGUE.binary_search_by(|blueprint| blueprint.id().cmp(id));
    position.ok().map(|index| &CATALOGUE[index])
}

/// Most blueprints that users bring into one catalogue.
pub const USER_BLUEPRINTS_MAX: usize = 64;

/// The blueprints of one process: ours, and those of its users. Made once at the start; cheap to clone.
#[derive(Clone, PartialEq)]
pub struct Catalogue {
    /// Ours in the order of their ids, then the users' in the order of theirs.
    blueprints: Arc<[&'static Blueprint]>,
}

/// Why a blueprint may not be germinated in a production host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// It needs an approval that nobody gave.
    ApprovalRequired,
    /// It runs in quarantine only.
    QuarantineOnly,
}

impl Withheld {
    /// Its stable name in events and refusals.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApprovalRequired => "approval_required",
            Self::QuarantineOnly => "quarantine_only",
        }
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::built_in()
    }
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(Blueprint::id)).finish()
    }
}

impl Catalogue {
    /// The 50 compiled-in ones.
    pub fn built_in() -> Self {
        Self { blueprints: catalogue().iter().collect() }
    }

    /// This one and a user's blueprint, once that has been examined: on each site the manifest names its graph is drawn
    /// at the midpoints, the least and the largest values of its parameters, and run at the midpoints, forward and
    /// backward.
    ///
    /// # Errors
    /// Everything wrong with it, each with its line.
    pub fn with(&self, manifest: Manifest) -> Result<Self, ManifestError> {
        let fault = |field: &str, problem: String| {
            ManifestError(vec![ManifestFault { line: 1, field: field.to_owned(), problem }])
        };
        let id = BlueprintId::from(manifest.id());
        if self.find(&id).is_some() {
            return Err(fault("id", format!("there is a blueprint {id} already; choose another")));
        }
        if self.blueprints.len() - ROWS.len() >= USER_BLUEPRINTS_MAX {
            let problem = format!("a catalogue takes at most {USER_BLUEPRINTS_MAX} manifests");
            return Err(fault("file", problem));
        }
        let (sites, blueprint) = (manifest.sites.clone(), Blueprint::of_manifest(manifest));
        let mut faults = Vec::new();
        for site in sites {
            let ends = [Blueprint::midpoints, Blueprint::least, Blueprint::largest];
            let mut drawn = true;
            for parameters in ends.map(|end| end(blueprint)) {
                if let Err(error) = crate::build::check(blueprint, &parameters, &site) {
                    drawn = false;
                    let (line, problem) = (error.line(), error.full_text());
                    let field = format!("sites.{site}");
                    faults.push(ManifestFault { line, field, problem });
                }
            }
            if drawn && let Err(error) = examine(blueprint, &blueprint.midpoints(), &site) {
                let (field, problem) = (format!("sites.{site}"), error.to_string());
                faults.push(ManifestFault { line: 1, field, problem });
            }
        }
        faults.dedup();
        if !faults.is_empty() {
            return Err(ManifestError(faults));
        }
        let users = self.blueprints.iter().skip(ROWS.len()).copied().chain([blueprint]);
        let users: BTreeMap<&BlueprintId, &'static Blueprint> =
            users.map(|blueprint| (blueprint.id(), blueprint)).collect();
        let ours = catalogue().iter();
        Ok(Self { blueprints: ours.chain(users.into_values()).collect() })
    }

    /// All of them: ours by id, then the users' by id.
    pub fn iter(&self) -> impl Iterator<Item = &'static Blueprint> {
        self.blueprints.iter().copied()
    }

    /// The blueprint called `id`, if there is one.
    pub fn find(&self, id: &BlueprintId) -> Option<&'static Blueprint> {
        find(id).or_else(|| {
            self.blueprints.iter().skip(ROWS.len()).find(|blueprint| blueprint.id() == id).copied()
        })
    }

    /// The ones the forge compiles and the prefetch worker serves.
    pub fn served(&self) -> impl Iterator<Item = &'static Blueprint> {
        self.iter().filter(|blueprint| blueprint.graftable())
    }

    /// What may not be germinated in a production host, given these approvals, and why. An approval never lets a
    /// blueprint out of quarantine.
    pub fn withheld(&self, approved: &BTreeSet<BlueprintId>) -> BTreeMap<BlueprintId, Withheld> {
        let reason = |blueprint: &Blueprint| match blueprint.clearance() {
            Clearance::Quarantine => Some(Withheld::QuarantineOnly),
            Clearance::Approval if !approved.contains(blueprint.id()) => {
                Some(Withheld::ApprovalRequired)
            }
            Clearance::Approval | Clearance::Open => None,
        };
        self.iter().filter_map(|one| Some((one.id().clone(), reason(one)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::Tier;

    fn count(wanted: impl Fn(&Blueprint) -> bool) -> usize {
        catalogue().iter().filter(|blueprint| wanted(blueprint)).count()
    }

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(catalogue().len(), 50);
        assert_eq!(count(|blueprint| blueprint.tier() == Tier::Safe), 35);
        assert_eq!(count(|blueprint| blueprint.tier() == Tier::Experimental), 7);
        assert_eq!(count(|blueprint| blueprint.tier() == Tier::HighRisk), 8);
        for stage in 0..6 {
            assert_eq!(count(|blueprint| blueprint.stage() == stage), 7, "stage {stage}");
        }
        assert_eq!(count(|blueprint| blueprint.stage() == 6), 8);
        assert_eq!(count(Blueprint::quarantine_only), 8);
        assert_eq!(count(Blueprint::approval_required), 15);
    }

    #[test]
    fn ids_are_consecutive_and_found() {
        for (index, blueprint) in catalogue().iter().enumerate() {
            assert_eq!(blueprint.id().as_str(), format!("BP{:03}", index + 1));
            assert_eq!(find(blueprint.id()), Some(blueprint));
        }
        for unknown in ["BP000", "BP051", "bp001", "", "BP0011"] {
            assert_eq!(find(&BlueprintId::from(unknown)), None, "{unknown}");
        }
    }

    #[test]
    fn names_are_unique_and_intervals_are_not_empty() {
        for blueprint in catalogue() {
            assert_eq!(count(|other| other.name() == blueprint.name()), 1, "{}", blueprint.name());
            for parameter in blueprint.parameters() {
                assert!(parameter.min < parameter.max, "{} {}", blueprint.id(), parameter.name);
            }
            assert!((0.0..=1.0).contains(&blueprint.risk()));
        }
    }

    #[test]
    fn the_policy_grafts_the_first_eighteen_by_itself() {
        for (index, blueprint) in catalogue().iter().enumerate() {
            assert_eq!(blueprint.autonomous(), index < 18, "{}", blueprint.id());
            assert!(blueprint.graftable() || index >= 18, "{}", blueprint.id());
            assert!(!blueprint.graftable() || index < 42, "{}", blueprint.id());
        }
        let at_the_limit = |blueprint: &Blueprint| {
            blueprint.tier() == Tier::Safe && blueprint.risk() == crate::GRAFT_RISK_LIMIT
        };
        assert_eq!(count(at_the_limit), 17, "the ones this decision is about");
    }

    #[test]
    fn risk_is_single_precision_on_the_wire() {
        let memory = find(&BlueprintId::from("BP038")).unwrap();
        assert!(f64::from(memory.descriptor().risk) >= 0.8);
    }

    #[test]
    fn a_descriptor_carries_the_whole_record() {
        let experts = find(&BlueprintId::from("BP036")).unwrap().descriptor();
        assert_eq!(experts.blueprint_id, "BP036");
        assert_eq!(experts.name, "mixture_of_experts_4");
        assert_eq!(experts.tier(), leyline::wire::BlueprintTier::Experimental);
        assert_eq!(experts.allowed_parameters["capacity"].max_value, 2.0);
        assert_eq!(experts.allowed_parameters["experts"].min_value, 4.0);
        assert_eq!((experts.risk, experts.stage), (0.7, 5));
        assert_eq!((experts.quarantine_only, experts.approval_required), (false, true));
        assert_eq!(experts.description, "sparse mixture of experts");
    }
}
