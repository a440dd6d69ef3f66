//! What a plan is valid for.

use kernel::{Execution, Fallback, Graph, Plan, PlanGuard, Purpose, Runner, differentiate};

fn graph(batch: usize, width: usize) -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[batch, width]).unwrap();
    let y = graph.linear_layer(x, "fc", 2).unwrap();
    graph.output("y", y).unwrap();
    let loss = graph.mean_all(y).unwrap();
    graph.output("loss", loss).unwrap();
    graph
}

#[test]
fn a_plan_is_for_its_shapes_purpose_and_frozen_parameters_only() {
    let trained = differentiate(&graph(4, 3), "loss", &["fc.weight", "fc.bias"]).unwrap();
    let plan = Plan::compile(&trained).unwrap();
    assert_eq!(plan.guard().purpose, Purpose::Training);
    assert_eq!(plan.guard().check(&PlanGuard::of(&trained)), Ok(()));

    let refuse = |found: &Graph| plan.guard().check(&PlanGuard::of(found)).unwrap_err().to_string();
    let wider = differentiate(&graph(4, 5), "loss", &["fc.weight", "fc.bias"]).unwrap();
    assert_eq!(
        refuse(&wider),
        "the plan is for input \"x\" with float32 [4, 3], stride [3, 1], frozen, found float32 [4, 5], stride [5, 1], frozen; compile the graph again"
    );
    let larger = differentiate(&graph(8, 3), "loss", &["fc.weight", "fc.bias"]).unwrap();
    assert!(refuse(&larger).contains("found float32 [8, 3]"));
    let frozen = differentiate(&graph(4, 3), "loss", &["fc.weight"]).unwrap();
    assert!(refuse(&frozen).contains("parameter \"fc.bias\" with"), "{}", refuse(&frozen));
    assert!(refuse(&graph(4, 3)).starts_with("the plan is for purpose training, found evaluation"));
    let mut other = PlanGuard::of(&trained);
    other.engine = "kernel-0".to_owned();
    assert_eq!(plan.guard().check(&other).unwrap_err().subject, "engine");
}

#[test]
fn its_digest_is_stable_and_its_own() {
    let guard = PlanGuard::of(&graph(4, 3));
    assert_eq!(guard.digest(), PlanGuard::of(&graph(4, 3)).digest());
    assert_ne!(guard.digest(), PlanGuard::of(&graph(5, 3)).digest());
    let text = serde_json::to_string(&guard).unwrap();
    let read: PlanGuard = serde_json::from_str(&text).unwrap();
    assert_eq!(read.digest(), guard.digest());
}

#[test]
fn where_the_guard_fails_the_interpreter_serves() {
    let plan = || Plan::compile(&graph(4, 3)).unwrap();
    assert_eq!(*Runner::guarded(plan(), &graph(4, 3)).execution(), Execution::Plan);
    let runner = Runner::guarded(plan(), &graph(8, 3));
    let reason = runner.execution().reason().cloned();
    assert!(matches!(reason, Some(Fallback::Guard { .. })), "{reason:?}");
}
