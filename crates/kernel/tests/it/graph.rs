//! The graph IR: shapes, errors, canonical form, batch, inlining.

use kernel::op::Conv;
use kernel::{Graph, GraphError, Init, to_canonical_json};

fn classifier() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[8, 3, 6, 6]).unwrap();
    let conv = Conv { padding: [1, 1], ..Conv::default() };
    let y = graph.conv2d_layer(x, "conv", 4, 3, conv).unwrap();
    let y = graph.batch_norm(y, "norm", 0.9, 1e-5).unwrap();
    let y = graph.relu(y).unwrap();
    let y = graph.dropout(y, 0.25).unwrap();
    let y = graph.global_avg_pool(y).unwrap();
    let logits = graph.linear_layer(y, "head", 5).unwrap();
    let labels = graph.input("labels", &[8]).unwrap();
    let loss = graph.cross_entropy(logits, labels).unwrap();
    graph.output("loss", loss).unwrap();
    graph.output("logits", logits).unwrap();
    graph
}

#[test]
fn canonical_json_round_trips() {
    let graph = classifier();
    let text = to_canonical_json(&graph).unwrap();
    let read: Graph = serde_json::from_str(&text).unwrap();
    assert_eq!(read, graph);
    assert_eq!(to_canonical_json(&read).unwrap(), text);
}

#[test]
fn a_written_graph_is_checked_when_read() {
    let text = to_canonical_json(&classifier()).unwrap();
    let wrong = text.replace("\"shape\":[8,3,6,6]", "\"shape\":[8,2,6,6]");
    assert_ne!(wrong, text);
    let error = serde_json::from_str::<Graph>(&wrong).unwrap_err().to_string();
    assert!(error.contains("conv2d"), "{error}");
    let ahead = r#"{"nodes":[{"op":"softmax","operands":[0]}],"outputs":[],"updates":[]}"#;
    let error = serde_json::from_str::<Graph>(ahead).unwrap_err().to_string();
    assert!(error.contains("node 0 does not exist"), "{error}");
}

#[test]
fn an_error_names_operator_shapes_and_expectation() {
    let mut graph = Graph::new();
    let a = graph.input("a", &[8, 32]).unwrap();
    let b = graph.input("b", &[16, 4]).unwrap();
    let error = graph.matmul(a, b).unwrap_err().to_string();
    assert_eq!(
        error,
        "node 2, mat_mul of nodes [0, 1]: input shapes [[8, 32], [16, 4]] do not fit; expected a second operand with inner dimension 32, found 16"
    );
    let refused = [
        (
            graph.add(a, b),
            "node 2, add of nodes [0, 1]: input shapes [[8, 32], [16, 4]] do not fit; expected equal or broadcastable",
        ),
        (
            graph.concat(&[a, b, a], 0),
            "node 2, concat of nodes [0, 1, 0]: input shapes [[8, 32], [16, 4], [8, 32]]",
        ),
        (
            graph.reshape(a, &[7]),
            "node 2, reshape of nodes [0]: input shapes [[8, 32]] do not fit; expected ",
        ),
        (
            graph.slice(a, 1, 30, 40),
            "node 2, slice of nodes [0]: input shapes [[8, 32]] do not fit; expected more than 1",
        ),
        (
            graph.cross_entropy(a, b),
            "node 2, cross_entropy of nodes [0, 1]: input shapes [[8, 32], [16, 4]] do not fit; expected logits",
        ),
        (
            graph.conv2d(a, b, None, Conv::default()),
            "node 2, conv2d of nodes [0, 1]: input shapes [[8, 32], [16, 4]] do not fit; expected ",
        ),
    ];
    for (result, expected) in refused {
        let text = result.unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text}");
    }
    assert_eq!(graph.nodes().len(), 2, "a refused operator leaves nothing behind");
}

#[test]
fn the_batch_can_be_changed() {
    let graph = classifier();
    let larger = graph.with_batch(32).unwrap();
    let logits = larger.output_node("logits").unwrap();
    assert_eq!(larger.shape(logits), [32, 5]);
    assert_eq!(larger.parameter_count(), graph.parameter_count());
    assert_eq!(larger.with_batch(8).unwrap(), graph);
}

#[test]
fn a_batch_that_moves_is_refused() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 6]).unwrap();
    let turned = graph.transpose(x, 0, 1).unwrap();
    graph.output("y", turned).unwrap();
    let error = graph.with_batch(8).unwrap_err();
    assert!(matches!(error, GraphError::BatchNotLeading { .. }), "{error}");
}

#[test]
fn inference_has_no_dropout_and_no_updates() {
    let graph = classifier();
    assert_eq!(graph.updates().len(), 2);
    let served = graph.select(&["logits"]).unwrap().inference().unwrap();
    let names: Vec<&str> = served.inputs().map(|(name, _)| name).collect();
    assert_eq!(names, ["x"], "neither labels nor step");
    assert!(served.updates().is_empty());
    assert!(served.parameters().any(|(name, _)| name == "norm.running_mean"));
}

#[test]
fn inlining_prefixes_parameters_and_adapts_the_batch() {
    let mut block = Graph::new();
    let x = block.input("x", &[8, 32]).unwrap();
    let y = block.linear_layer(x, "fc", 32).unwrap();
    let y = block.dropout(y, 0.5).unwrap();
    block.output("y", y).unwrap();

    let mut host = Graph::new();
    let x = host.input("x", &[64, 32]).unwrap();
    let first = host.inline(&block, &[("x", x)], "one").unwrap()["y"];
    let second = host.inline(&block, &[("x", first)], "two").unwrap()["y"];
    assert_eq!(host.shape(second), [64, 32]);
    let names: Vec<&str> = host.trainable().collect();
    assert_eq!(names, ["one.fc.bias", "one.fc.weight", "two.fc.bias", "two.fc.weight"]);
    let before = host.clone();
    assert!(host.inline(&block, &[("x", x)], "one").is_err());
    assert_eq!(host, before, "a failed inline changes nothing");
}

#[test]
fn parameters_start_the_same_for_the_same_seed() {
    let graph = classifier();
    let params = graph.init_params(7);
    assert_eq!(params, graph.init_params(7));
    assert_ne!(params, graph.init_params(8));
    assert_eq!(params.len(), graph.parameters().count());
    assert!(params.get("norm.running_variance").unwrap().data().iter().all(|&value| value == 1.0));
}

#[test]
fn sizes_that_overflow_are_refused() {
    let mut graph = Graph::new();
    let huge = [usize::MAX, usize::MAX];
    assert!(matches!(graph.input("x", &huge), Err(GraphError::TooLarge { .. })));
    assert!(graph.input("x", &[4, 0]).is_err());
    let x = graph.input("x", &[1, 1, 4, 4]).unwrap();
    let w = graph.parameter("w", &[1, 1, 3, 3], Init::ZEROS).unwrap();
    let conv = Conv { dilation: [usize::MAX, 1], ..Conv::default() };
    assert!(graph.conv2d(x, w, None, conv).is_err());
}
