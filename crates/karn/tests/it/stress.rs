//! Every stressor is caught in quarantine for what it does, at both ends and in the middle of its interval, and on every
//! kind of site; sound templates are not.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

use karn::{BuildError, Parameters, Site, build, build_in_quarantine, catalogue, find};
use kernel::quarantine::{Budget, QuarantineError, Report, Subject, run};

/// The reason for which each stressor is caught.
const REASONS: [(&str, &str); 8] = [
    ("BP043", "gradient_exploded"),
    ("BP044", "gradient_vanished"),
    ("BP045", "not_finite"),
    ("BP046", "too_slow"),
    ("BP047", "memory_grew"),
    ("BP048", "deadlocked"),
    ("BP049", "not_repeatable"),
    ("BP050", "harmful"),
];

const SITES: [Site; 3] = [
    Site::Vector { features: 32 },
    Site::Image { channels: 4, height: 6, width: 5 },
    Site::Sequence { length: 6, width: 8 },
];

fn quarantine(
    id: &str,
    parameters: Parameters,
    site: Site,
    budget: &Budget,
) -> Result<Report, QuarantineError> {
    let blueprint = find(&id.into()).expect("the test names a blueprint of the catalogue");
    run(budget, move |permit| {
        let graph = build_in_quarantine(blueprint, &parameters, &site, permit)?;
        Ok(Subject::fresh(graph, 7))
    })
}

/// The values of the one parameter of a stressor: both ends and the middle.
fn values(id: &str) -> (&'static str, [f64; 3]) {
    let blueprint = find(&id.into()).unwrap();
    let [parameter] = blueprint.parameters() else { panic!("{id} has one parameter") };
    (parameter.name, [parameter.min, parameter.midpoint(), parameter.max])
}

#[track_caller]
fn check(id: &str) {
    let (_, expected) = REASONS.iter().find(|(known, _)| *known == id).unwrap();
    let (name, values) = values(id);
    for value in values {
        let parameters = [(name, value)].into_iter().collect();
        let report = quarantine(id, parameters, SITES[0], &Budget::default()).unwrap();
        println!("{id} {name}={value}: {:?}", report.findings);
        assert_eq!(report.verdict(), *expected, "{id} {name}={value}: {report:?}");
        assert!(!report.is_left_running, "{id} {name}={value}");
        assert!(!report.is_sound());
    }
}

#[test]
fn exploding_gradient_by_the_ceiling() {
    check("BP043");
}

#[test]
fn vanishing_gradient_by_the_floor() {
    check("BP044");
}

#[test]
fn nan_injection_by_the_finite_check() {
    check("BP045");
}

#[test]
fn infinite_loop_by_its_time() {
    check("BP046");
}

#[test]
fn memory_leak_by_what_it_holds() {
    check("BP047");
}

#[test]
fn deadlock_by_the_bound_of_the_wait() {
    check("BP048");
}

#[test]
fn race_by_the_repetition() {
    check("BP049");
}

#[test]
fn adversarial_noise_by_the_loss() {
    check("BP050");
}

#[test]
fn stressors_are_caught_on_every_kind_of_site() {
    for (id, expected) in REASONS {
        for site in SITES {
            let parameters = find(&id.into()).unwrap().midpoints();
            // The shortest loop will do: what is tested is the site.
            let parameters = match id {
                "BP046" => [("iterations", 1000.0)].into_iter().collect(),
                _ => parameters,
            };
            let report = quarantine(id, parameters, site, &Budget::default()).unwrap();
            assert_eq!(report.verdict(), expected, "{id} {site}: {report:?}");
        }
    }
}

#[test]
fn sound_templates_raise_no_alarm() {
    for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        for site in SITES {
            let id = blueprint.id().as_str();
            let report = quarantine(id, blueprint.midpoints(), site, &Budget::default()).unwrap();
            println!(
                "{id} {site}: {} amplification {:?}, loss {:?} to {:?}",
                report.verdict(),
                report.amplification(),
                report.loss_before,
                report.loss_after
            );
            assert!(report.is_sound(), "{id} {site}: {:?}", report.findings);
            assert_eq!(report.measures.len(), 64);
        }
    }
}

#[test]
fn a_quarantine_says_the_same_every_time() {
    for id in ["BP001", "BP009", "BP014", "BP018"] {
        let parameters = || find(&id.into()).unwrap().midpoints();
        let mut seen: Option<Vec<(f64, f64)>> = None;
        for _ in 0..10 {
            let report = quarantine(id, parameters(), SITES[0], &Budget::default()).unwrap();
            assert!(report.is_sound(), "{id}: {:?}", report.findings);
            let losses = report.measures.iter().map(|one| (one.loss, one.gradient_norm)).collect();
            assert_eq!(*seen.get_or_insert_with(|| Vec::clone(&losses)), losses, "{id}");
        }
    }
}

#[test]
fn outside_quarantine_stressors_are_not_even_built() {
    for (id, _) in REASONS {
        let blueprint = find(&id.into()).unwrap();
        let error = build(blueprint, &blueprint.midpoints(), &SITES[0]).unwrap_err();
        assert!(matches!(error, BuildError::Stressor { .. }), "{error}");
        assert!(!blueprint.graftable());
    }
}

#[test]
fn bad_parameters_are_refused_before_anything_runs() {
    for (name, value) in [("scale", 4.9), ("scale", f64::NAN), ("decay", 0.1)] {
        let parameters = [(name, value)].into_iter().collect();
        let error = quarantine("BP043", parameters, SITES[0], &Budget::default()).unwrap_err();
        let QuarantineError::Build { source } = error else { panic!("{error}") };
        assert!(source.to_string().contains("BP043"), "{source}");
    }
}
