//! Selection: the published vectors, and the safety rules on every path.

use karn::{
    Caution, Destination, ParameterFault, Parameters, Query, SelectError, Tier, catalogue, find,
    select,
};
use leyline::ids::BlueprintId;

fn check(query: &Query, expected: &str) {
    match select(query) {
        Ok(selection) => assert_eq!(selection.blueprint.id().as_str(), expected, "{query:?}"),
        Err(error) => panic!("{query:?}: {error}"),
    }
}

fn with_approvals(query: Query) -> Query {
    Query {
        approved: catalogue().iter().map(|blueprint| blueprint.id().clone()).collect(),
        ..query
    }
}

fn by_id(id: &str) -> Query {
    let parameters = find(&id.into()).map(|blueprint| blueprint.midpoints()).unwrap_or_default();
    Query { blueprint: Some(id.into()), parameters, ..Query::default() }
}

fn quarantine(query: Query) -> Query {
    Query { destination: Destination::Quarantine, allow_adversarial: true, ..query }
}

#[test]
fn published_context_vectors() {
    let vectors = [
        ("run-1", "BP018", "BP002", "BP039", "BP002"),
        ("run-demo", "BP028", "BP006", "BP042", "BP046"),
        ("seed-7", "BP027", "BP003", "BP041", "BP023"),
        ("layer4/relu", "BP029", "BP007", "BP036", "BP047"),
    ];
    for (context, default, conservative, experimental, adversarial) in vectors {
        let query = Query { context: context.to_owned(), ..Query::default() };
        check(&query, default);
        check(&Query { caution: Caution::Conservative, ..query.clone() }, conservative);
        let tier = Some(Tier::Experimental);
        check(&with_approvals(Query { tier, ..query.clone() }), experimental);
        check(&with_approvals(quarantine(query)), adversarial);
    }
}

#[test]
fn without_a_context_the_first_is_chosen_at_its_midpoints() {
    check(&Query::default(), "BP001");
    check(&Query { caution: Caution::Conservative, ..Query::default() }, "BP001");
    let query = Query { tier: Some(Tier::Experimental), ..Query::default() };
    check(&with_approvals(query.clone()), "BP036");
    let selection = select(&with_approvals(query)).unwrap();
    assert_eq!(selection.parameters.get("capacity"), Some(1.5));
    assert_eq!(selection.parameters.get("experts"), Some(6.0));
}

#[test]
fn approvals_do_not_move_anybody_elses_choice() {
    for number in 0..200 {
        let query = Query { context: format!("run-{number}"), ..Query::default() };
        let approved = select(&with_approvals(query.clone())).unwrap().blueprint;
        match select(&query) {
            Ok(selection) => assert_eq!(selection.blueprint, approved),
            Err(error) => {
                let blueprint = approved.id().clone();
                assert_eq!(error, SelectError::ApprovalRequired { blueprint });
            }
        }
    }
}

#[test]
fn no_query_whatsoever_gets_a_stressor_into_production() {
    let ids = catalogue().iter().map(|blueprint| Some(blueprint.id().clone())).chain([None]);
    for blueprint in ids {
        for tier in [None, Some(Tier::Safe), Some(Tier::Experimental), Some(Tier::HighRisk)] {
            for caution in [Caution::Normal, Caution::Conservative] {
                for allow_adversarial in [false, true] {
                    for context in ["", "run-1", "run-demo", "layer4/relu"] {
                        let parameters =
                            blueprint.as_ref().and_then(find).map(|one| one.midpoints());
                        let query = with_approvals(Query {
                            blueprint: blueprint.clone(),
                            tier,
                            caution,
                            allow_adversarial,
                            context: context.to_owned(),
                            parameters: parameters.unwrap_or_default(),
                            ..Query::default()
                        });
                        if let Ok(selection) = select(&query) {
                            let chosen = selection.blueprint;
                            assert_ne!(chosen.tier(), Tier::HighRisk, "{query:?}");
                            assert!(!chosen.quarantine_only(), "{query:?}");
                            assert!(tier.is_none_or(|tier| tier == chosen.tier()), "{query:?}");
                            if caution == Caution::Conservative {
                                assert!(chosen.id() <= &"BP010".into(), "{query:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn an_explicit_id_meets_every_rule() {
    let id = BlueprintId::from;
    let refused = |query: Query, expected: SelectError| assert_eq!(select(&query), Err(expected));
    check(&by_id("BP009"), "BP009");

    let tier = Some(Tier::Experimental);
    let expected = SelectError::TierMismatch {
        blueprint: id("BP009"),
        actual: Tier::Safe,
        wanted: Tier::Experimental,
    };
    refused(Query { tier, ..by_id("BP009") }, expected);

    let conservative = |id| Query { caution: Caution::Conservative, ..by_id(id) };
    check(&conservative("BP010"), "BP010");
    let error = select(&conservative("BP011")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "blueprint BP011 is not among the conservative ones (BP001 to BP010)"
    );

    refused(by_id("BP045"), SelectError::AdversarialNotAllowed { blueprint: id("BP045") });
    let production = Query { allow_adversarial: true, ..by_id("BP045") };
    refused(production, SelectError::AdversarialInProduction);
    refused(quarantine(by_id("BP045")), SelectError::ApprovalRequired { blueprint: id("BP045") });
    check(&with_approvals(quarantine(by_id("BP045"))), "BP045");

    refused(by_id("BP036"), SelectError::ApprovalRequired { blueprint: id("BP036") });
    check(&with_approvals(by_id("BP036")), "BP036");
}

#[test]
fn an_explicit_id_needs_all_its_parameters_and_no_others() {
    let query = Query { parameters: Parameters::new(), ..by_id("BP009") };
    let Err(SelectError::Parameters(error)) = select(&query) else { panic!("depth is missing") };
    assert!(matches!(error.faults[..], [ParameterFault::Missing { .. }]), "{error}");

    let query = Query {
        parameters: [("dept", 2.0), ("depth", 9.0)].into_iter().collect(),
        ..by_id("BP009")
    };
    let Err(SelectError::Parameters(error)) = select(&query) else { panic!("two faults") };
    assert_eq!(error.faults.len(), 2, "{error}");
}

#[test]
fn parameters_without_an_id_are_checked_against_the_choice() {
    let scale = |value: f64| Query {
        context: "run-1".to_owned(),
        caution: Caution::Conservative,
        parameters: [("scale", value)].into_iter().collect(),
        ..Query::default()
    };
    check(&scale(0.5), "BP002");
    assert!(matches!(select(&scale(0.4)), Err(SelectError::Parameters(_))));
}

#[test]
fn a_conservative_query_that_finds_nothing_safe_is_refused() {
    let query = Query {
        tier: Some(Tier::Experimental),
        caution: Caution::Conservative,
        ..with_approvals(Query::default())
    };
    assert!(matches!(select(&query), Err(SelectError::NothingLeft { .. })));
    let query = Query { tier: Some(Tier::HighRisk), ..Query::default() };
    assert!(matches!(select(&query), Err(SelectError::NothingLeft { .. })));
}

#[test]
fn an_unknown_id_is_named_with_what_there_is() {
    let error = select(&by_id("BP051")).unwrap_err();
    assert_eq!(error.to_string(), "no blueprint BP051; the catalogue has BP001 to BP050");
}
