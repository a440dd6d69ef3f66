//! The catalogue itself: the compiled-in templates, by position and by id.

use std::sync::LazyLock;

use leyline::ids::BlueprintId;

use crate::blueprint::Blueprint;
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
