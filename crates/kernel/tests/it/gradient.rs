//! Gradients derived on the IR against finite differences in double precision.

use kernel::interpret::{Bindings, run_bound};
use kernel::{Graph, GraphError, differentiate, gradient_name};

use crate::cases::{self, Case, Domain};

/// Half the distance of a central difference; its error is about the square of this.
const STEP: f64 = 1e-5;
/// Relative; the curvature rules hold some constants in single precision.
const TOLERANCE: f64 = 2e-7;

fn bindings(case: &Case) -> Bindings<f64> {
    let mut bindings = Bindings::default();
    for position in 0..case.operands.len() {
        let values = case.values(position).into_iter().map(f64::from).collect();
        bindings.parameters.insert(cases::name(position), values);
    }
    bindings.inputs.insert("x".to_owned(), vec![0.5, 1.5, -0.25, 0.75, 2.0, -1.0]);
    bindings.parameters.insert("w".to_owned(), vec![0.25, 1.25, -0.5, 0.125, 2.0, -1.5]);
    bindings
}

fn loss(graph: &Graph, bindings: &Bindings<f64>) -> f64 {
    run_bound(graph, bindings).unwrap().outputs["loss"].data[0]
}

fn check(graph: &Graph, wrt: &str, bindings: &Bindings<f64>, describe: &str) {
    let gradient = differentiate(graph, "loss", &[wrt]).unwrap();
    let derived = run_bound(&gradient, bindings).unwrap().outputs[&gradient_name(wrt)].clone();
    for index in 0..derived.data.len() {
        let at = |offset: f64| {
            let mut moved = bindings.clone();
            let values = moved.parameters.get_mut(wrt).or(moved.inputs.get_mut(wrt)).unwrap();
            values[index] += offset;
            loss(graph, &moved)
        };
        let measured = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let error = (measured - derived.data[index]).abs();
        assert!(
            error <= TOLERANCE * (1.0 + measured.abs()),
            "{describe}, {wrt}[{index}]: derived {}, measured {measured}",
            derived.data[index]
        );
    }
}

#[test]
fn every_operator_by_finite_differences() {
    for case in cases::all() {
        let graph = case.graph();
        let bindings = bindings(&case);
        for (position, (_, domain)) in case.operands.iter().enumerate() {
            let wrt = cases::name(position);
            match domain {
                Domain::Real | Domain::Share => check(&graph, &wrt, &bindings, &case.describe()),
                Domain::Detached | Domain::Index(_) => {
                    let gradient = differentiate(&graph, "loss", &[&wrt]).unwrap();
                    let results = run_bound(&gradient, &bindings).unwrap();
                    let values = &results.outputs[&gradient_name(&wrt)].data;
                    assert!(values.iter().all(|&value| value == 0.0), "{}: {wrt}", case.describe());
                }
            }
        }
    }
}

#[test]
fn inputs_and_parameters_have_gradients() {
    for case in cases::all().into_iter().filter(|case| case.operands.is_empty()) {
        let graph = case.graph();
        let bindings = bindings(&case);
        for (name, _) in graph.inputs().chain(graph.parameters()) {
            check(&graph, name, &bindings, &case.describe());
        }
    }
}

#[test]
fn a_whole_network_by_finite_differences() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[2, 3, 8]).unwrap();
    let y = graph.self_attention_layer(x, "attention", 2).unwrap();
    let y = graph.add(x, y).unwrap();
    let y = graph.layer_norm(y, "norm", 1e-5).unwrap();
    let y = graph.linear_layer(y, "fc", 5).unwrap();
    let y = graph.gelu(y).unwrap();
    let y = graph.rms_norm(y, "rms", 1e-5).unwrap();
    let y = graph.batch_norm(y, "batch", 0.9, 1e-5).unwrap();
    let labels = graph.input("labels", &[2, 3]).unwrap();
    let loss = graph.cross_entropy(y, labels).unwrap();
    graph.output("loss", loss).unwrap();

    let params = graph.init_params(11);
    let x: Vec<f32> = (0..48).map(|index| ((index * 37 % 48) as f32) / 24.0 - 1.0).collect();
    let bindings =
        Bindings::new(&params, &[("x", &x), ("labels", &[0.0, 1.0, 2.0, 3.0, 4.0, 0.0])]);
    for name in graph.trainable().chain(["x"]) {
        check(&graph, name, &bindings, "network");
    }
}

#[test]
fn second_derivatives() {
    // d/dx of the sum of (d/dx sum x^3)^2 = d/dx 9 x^4 = 36 x^3.
    let mut graph = Graph::new();
    let x = graph.input("x", &[2]).unwrap();
    let square = graph.square(x).unwrap();
    let cube = graph.mul(square, x).unwrap();
    let sum = graph.sum_all(cube).unwrap();
    graph.output("loss", sum).unwrap();
    let mut first = differentiate(&graph, "loss", &["x"]).unwrap();
    let gradient = first.output_node(&gradient_name("x")).unwrap();
    let square = first.square(gradient).unwrap();
    let penalty = first.sum_all(square).unwrap();
    first.output("penalty", penalty).unwrap();
    let first = first.select(&["penalty"]).unwrap();
    let second = differentiate(&first, "penalty", &["x"]).unwrap();
    let mut bindings = Bindings::default();
    bindings.inputs.insert("x".to_owned(), vec![0.5, -2.0]);
    let values =
        run_bound::<f64>(&second, &bindings).unwrap().outputs[&gradient_name("x")].data.clone();
    assert_eq!(values, [36.0 * 0.125, 36.0 * -8.0]);
}

#[test]
fn what_cannot_be_differentiated_says_why() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[2]).unwrap();
    graph.output("y", x).unwrap();
    assert!(matches!(differentiate(&graph, "y", &["x"]), Err(GraphError::NotScalar { .. })));
    assert!(matches!(differentiate(&graph, "z", &["x"]), Err(GraphError::UnknownName { .. })));
    let sum = graph.sum_all(x).unwrap();
    graph.output("loss", sum).unwrap();
    assert!(matches!(differentiate(&graph, "loss", &["q"]), Err(GraphError::UnknownName { .. })));
    assert!(matches!(differentiate(&graph, "loss", &["x", "x"]), Err(GraphError::Name { .. })));
}

#[test]
fn a_gradient_graph_keeps_its_form_when_the_batch_changes() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 3, 6, 6]).unwrap();
    let y = graph.conv2d_layer(x, "conv", 4, 3, kernel::op::Conv::default()).unwrap();
    let y = graph.batch_norm(y, "norm", 0.9, 1e-5).unwrap();
    let y = graph.relu(y).unwrap();
    let y = graph.flatten(y).unwrap();
    let y = graph.linear_layer(y, "head", 3).unwrap();
    let labels = graph.input("labels", &[4]).unwrap();
    let loss = graph.cross_entropy(y, labels).unwrap();
    graph.output("loss", loss).unwrap();
    let derived_first =
        kernel::differentiate_trainable(&graph, "loss").unwrap().with_batch(9).unwrap();
    let batched_first =
        kernel::differentiate_trainable(&graph.with_batch(9).unwrap(), "loss").unwrap();
    assert_eq!(derived_first, batched_first);
}
