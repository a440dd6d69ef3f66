//! Stress operators run nowhere but in quarantine, and a quarantine always comes to its end.

use std::collections::HashMap;
use std::time::Duration;

use kernel::artifact::{ArtifactError, Kernel, Manifest, write_bytes};
use kernel::quarantine::{Budget, Finding, QuarantineError, Report, Subject, run};
use kernel::stress::{LEAKED_BYTES_MAX, Stress};
use kernel::{
    Digest, Graph, GraphError, Params, Plan, RunError, differentiate, interpret, optimise,
};
use safetensors::tensor::{Dtype, TensorView};

const LOOP: Stress = Stress::Loop { iterations: 10_000 };
const ALL: [Stress; 4] = [
    LOOP,
    Stress::Leak { mebibytes: 1.0 },
    Stress::Deadlock { threads: 2 },
    Stress::Race { window_ns: 10 },
];

fn stressed(stress: Stress) -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 8]).unwrap();
    let y = graph.linear_layer(x, "fc", 8).unwrap();
    let y = graph.stressed(y, stress).unwrap();
    graph.output("y", y).unwrap();
    graph
}

fn plain() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 8]).unwrap();
    let y = graph.linear_layer(x, "fc", 8).unwrap();
    graph.output("y", y).unwrap();
    graph
}

fn trial(graph: Graph, budget: &Budget) -> Report {
    run(budget, move |_| Ok(Subject::fresh(graph, 1))).unwrap()
}

#[test]
fn nothing_outside_quarantine_compiles_or_runs_them() {
    for stress in ALL {
        let graph = stressed(stress);
        let operator = stress.name();
        assert_eq!(graph.stress(), Some(operator));
        let refused = GraphError::Quarantined { operator };
        assert_eq!(Plan::compile(&graph).unwrap_err(), refused);
        assert_eq!(Plan::compile(&graph.inference().unwrap()).unwrap_err(), refused);
        assert_eq!(Plan::compile(&optimise(&graph).unwrap()).unwrap_err(), refused);
        let params = graph.init_params(1);
        let inputs = [("x", &[0.0_f32; 32][..])];
        let error = interpret::run::<f64>(&graph, &params, &inputs).unwrap_err();
        assert_eq!(error, RunError::Quarantined { operator });
        let site = serde_json::json!({});
        let error = Manifest::new("BP009", [].into(), site, graph.clone(), &params, 0.1);
        assert!(
            matches!(error, Err(ArtifactError::Quarantined { operator: found }) if found == operator)
        );

        // Inside another network, and with its gradients, it is refused as well.
        let mut host = Graph::new();
        let x = host.input("features", &[4, 8]).unwrap();
        let y = host.inline(&graph, &[("x", x)], "seed").unwrap()["y"];
        let loss = host.mean_all(y).unwrap();
        host.output("loss", loss).unwrap();
        let derived = differentiate(&host, "loss", &["seed.fc.weight"]).unwrap();
        assert_eq!(Plan::compile(&derived).unwrap_err(), refused);
    }
    assert_eq!(plain().stress(), None);
}

/// The file of a sound manifest in whose graph a stress operator was hidden by hand.
fn smuggled(stress: Stress) -> Vec<u8> {
    let (graph, params) = (plain(), plain().init_params(1));
    let site = serde_json::json!({ "vector": { "features": 8 } });
    let sound = Manifest::new("BP009", [].into(), site, graph, &params, 0.1).unwrap();
    write_bytes(&sound, &params).unwrap();
    let mut manifest = serde_json::to_value(&sound).unwrap();
    manifest["graph"] = serde_json::to_value(stressed(stress)).unwrap();
    let header = HashMap::from([("esper.manifest".to_owned(), manifest.to_string())]);
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = params
        .iter()
        .map(|(name, tensor)| {
            let bytes = tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.to_owned(), tensor.shape().to_vec(), bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, Some(header)).unwrap()
}

#[test]
fn an_artifact_that_smuggles_one_under_another_name_is_refused() {
    for stress in ALL {
        let bytes = smuggled(stress);
        let error = Kernel::parse(&bytes, &Digest::of(&bytes)).unwrap_err();
        let ArtifactError::Quarantined { operator } = error else { panic!("{error:?}") };
        assert_eq!(operator, stress.name());
    }
}

#[test]
fn attributes_beyond_their_bounds_make_no_graph() {
    let beyond = [
        Stress::Loop { iterations: 0 },
        Stress::Loop { iterations: 10_001 },
        Stress::Leak { mebibytes: 0.0 },
        Stress::Leak { mebibytes: 5.1 },
        Stress::Leak { mebibytes: f32::NAN },
        Stress::Deadlock { threads: 1 },
        Stress::Deadlock { threads: 17 },
        Stress::Race { window_ns: 0 },
        Stress::Race { window_ns: 1001 },
    ];
    for stress in beyond {
        let mut graph = plain();
        let x = graph.input_node("x").unwrap();
        let error = graph.stressed(x, stress).unwrap_err();
        assert!(matches!(error, GraphError::Attribute { .. }), "{stress:?}: {error}");
    }
    let text = serde_json::to_string(&stressed(LOOP)).unwrap();
    assert_eq!(serde_json::from_str::<Graph>(&text).unwrap(), stressed(LOOP));
    let hostile = text.replace("10000", "4000000000");
    let error = serde_json::from_str::<Graph>(&hostile).unwrap_err();
    assert!(error.to_string().contains("from 1 to 10000"), "{error}");
}

#[test]
fn a_run_past_its_time_is_abandoned_and_its_thread_stops() {
    let budget = Budget { run_time_max: Duration::from_millis(30), ..Budget::default() };
    let report = trial(stressed(LOOP), &budget);
    assert!(matches!(report.findings[..], [Finding::TimedOut { .. }]), "{report:?}");
    assert!(!report.is_left_running, "the loop looks at the flag after every round");
    let budget = Budget { total_time: Duration::from_millis(30), ..Budget::default() };
    assert_eq!(trial(stressed(LOOP), &budget).verdict(), "timed_out");
}

#[test]
fn a_leak_ends_at_its_cap_whatever_the_budget_says() {
    // How long its runs take is not the matter here.
    let run_time = Duration::from_secs(10);
    let budget = Budget { growth_bytes_max: u64::MAX, run_time, ..Budget::default() };
    let report = trial(stressed(Stress::Leak { mebibytes: 5.0 }), &budget);
    let [Finding::MemoryGrew { grown_bytes, budget_bytes, .. }] = report.findings[..] else {
        panic!("{report:?}");
    };
    assert_eq!(budget_bytes, LEAKED_BYTES_MAX);
    assert!((LEAKED_BYTES_MAX - (5 << 20)..=LEAKED_BYTES_MAX).contains(&grown_bytes));
}

#[test]
fn what_shows_while_training_only_is_found_too() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 8]).unwrap();
    let bad = graph.stressed(x, Stress::Race { window_ns: 100 }).unwrap();
    let y = graph.phase(bad, x).unwrap();
    graph.output("y", y).unwrap();
    assert_eq!(trial(graph, &Budget::default()).verdict(), "not_repeatable");
}

#[test]
fn budgets_are_budgets() {
    let sound = trial(plain(), &Budget::default());
    assert!(sound.is_sound(), "{sound:?}");
    assert_eq!(sound.verdict(), "sound");
    let small = Budget { memory_bytes_max: 100, ..Budget::default() };
    assert_eq!(trial(plain(), &small).verdict(), "too_large");
    let tight = Budget { amplification_max: 1e-6, ..Budget::default() };
    assert_eq!(trial(plain(), &tight).verdict(), "gradient_exploded");
    let tight = Budget { output_ratio_max: 1e-6, ..Budget::default() };
    assert_eq!(trial(plain(), &tight).verdict(), "output_drifted");
    let tight = Budget { amplification_min: 1e6, ..Budget::default() };
    assert_eq!(trial(plain(), &tight).verdict(), "gradient_vanished");
}

#[test]
fn what_cannot_be_tried_is_said() {
    let refused = run(&Budget::default(), |_| Err("no such blueprint".into())).unwrap_err();
    assert!(matches!(refused, QuarantineError::Build { .. }), "{refused}");
    let panicked = run(&Budget::default(), |_| panic!("on purpose")).unwrap();
    assert_eq!(panicked.verdict(), "panicked");
    let mut two = plain();
    two.input("another", &[4, 8]).unwrap();
    let unfit = run(&Budget::default(), |_| Ok(Subject::fresh(two, 1))).unwrap_err();
    assert!(matches!(unfit, QuarantineError::Unfit { .. }), "{unfit}");
    let foreign = Subject { graph: plain(), params: Params::new() };
    let report = run(&Budget::default(), |_| Ok(foreign)).unwrap();
    assert_eq!(report.verdict(), "failed");
}

#[test]
fn every_finding_has_a_reason_of_its_own() {
    let mut reasons = Finding::REASONS.to_vec();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), Finding::REASONS.len());
    let finding = Finding::Deadlocked { threads: 3, waited_ms: 200 };
    let json = serde_json::to_value(&finding).unwrap();
    assert_eq!(json["reason"], finding.reason());
}
