//! The check of a plan against the interpreter, and who runs the graph afterwards.

use kernel::check::{Check, CheckError, Form};
use kernel::{Execution, Fallback, Graph, GraphError, ParamStore, Plan, RunError, Runner};

fn block() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 3, 8]).unwrap();
    let y = graph.layer_norm(x, "norm", 1e-5).unwrap();
    let y = graph.self_attention_layer(y, "attention", 2).unwrap();
    let y = graph.dropout(y, 0.25).unwrap();
    let y = graph.add(x, y).unwrap();
    graph.output("y", y).unwrap();
    graph
}

#[test]
fn a_right_plan_is_used_and_every_operator_has_its_line() {
    let graph = block();
    let params = graph.init_params(3);
    let report = Check::new(&graph, &params, "x", "y").run().unwrap();
    assert_eq!(report.fault, None);
    assert_eq!(report.execution(), Execution::Plan);
    assert!(report.difference() < 1e-5, "{}", report.difference());
    let names: Vec<&str> = report.operators.iter().map(|operator| operator.operator).collect();
    for expected in ["mat_mul", "normalise", "normalise_gradient", "softmax", "dropout", "permute"]
    {
        assert!(names.contains(&expected), "{expected} is not in {names:?}");
    }
    let values = |form: Form| report.values.iter().filter(move |value| value.form == form);
    assert!(values(Form::Training).any(|value| value.value == "gradient/norm.weight"));
    assert_eq!(values(Form::Inference).count(), 1);
}

#[test]
fn a_wrong_plan_is_found_and_the_interpreter_serves() {
    let graph = block();
    let params = graph.init_params(3);
    let check = Check { compile: Plan::compile_wrong, ..Check::new(&graph, &params, "x", "y") };
    let report = check.run().unwrap();
    let fault = report.fault.clone().unwrap();
    assert!(matches!(&fault, Fallback::Value { value, .. } if value == "check.loss"), "{fault}");
    assert_eq!(report.execution().name(), "interpreter");

    let store = ParamStore::with_group("all", &params).unwrap();
    let x: Vec<f32> = (0..96).map(|index| (index % 13) as f32 / 6.0 - 1.0).collect();
    let inputs: [(&str, &[f32]); 2] = [("x", &x), ("step", &[3.0])];
    let run = |runner: &mut Runner| -> Vec<f32> {
        runner.run(&store, &inputs).unwrap().get("y").unwrap().to_vec()
    };
    let mut right = Runner::new(&graph);
    let mut wrong = Runner::planned(Plan::compile_wrong(&graph).unwrap());
    let mut fallen_back = Runner::with(&graph, &report.execution());
    assert_eq!(fallen_back.execution().reason(), Some(&fault));
    let expected = run(&mut right);
    let apart = |found: Vec<f32>| {
        expected.iter().zip(found).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()))
    };
    assert!(apart(run(&mut fallen_back)) < 1e-5);
    assert!(apart(run(&mut wrong)) > 0.2, "the fault that was put in shows");
}

#[test]
fn a_plan_that_cannot_be_made_is_no_end() {
    fn refuse(_: &Graph) -> Result<Plan, GraphError> {
        Err(GraphError::TooManyNodes { limit: 1 })
    }
    let graph = block();
    let params = graph.init_params(3);
    let check = Check { compile: refuse, ..Check::new(&graph, &params, "x", "y") };
    assert!(matches!(check.run().unwrap().fault, Some(Fallback::NoPlan { .. })));
}

#[test]
fn a_graph_that_overflows_is_refused_itself() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 3]).unwrap();
    let y = graph.scale(x, 3e38).unwrap();
    let y = graph.square(y).unwrap();
    let y = graph.square(y).unwrap();
    let y = graph.square(y).unwrap();
    let y = graph.square(y).unwrap();
    graph.output("y", y).unwrap();
    let params = graph.init_params(3);
    let error = Check::new(&graph, &params, "x", "y").run().unwrap_err();
    assert!(matches!(error, CheckError::NotFinite { .. }), "{error}");
}

#[test]
fn an_execution_is_written_and_read() {
    let reason = Fallback::Value { value: "y".to_owned(), difference: 0.25, tolerance: 1e-4 };
    let execution = Execution::Interpreter { reason };
    let text = serde_json::to_string(&execution).unwrap();
    assert!(text.starts_with(r#"{"by":"interpreter","reason":{"kind":"value","#), "{text}");
    assert_eq!(serde_json::from_str::<Execution>(&text).unwrap(), execution);
    assert_eq!(serde_json::to_string(&Execution::Plan).unwrap(), r#"{"by":"plan"}"#);
}

#[test]
fn the_interpreter_names_what_is_missing_too() {
    let graph = block();
    let reason = Fallback::Asked { reason: "for comparison".to_owned() };
    let mut runner = Runner::interpreted(&graph, reason);
    let store = ParamStore::with_group("all", &graph.init_params(1)).unwrap();
    let missing = runner.run(&store, &[]).map(|_| ());
    assert!(matches!(missing, Err(RunError::Missing { kind: "input", .. })));
    let missing = runner.run(&ParamStore::new(), &[("x", &[0.0; 96])]).map(|_| ());
    assert!(matches!(missing, Err(RunError::Missing { kind: "parameter", .. })));
}
