//! How many loops a plan has: what is fused stays fused.

use kernel::bench::Workload;
use kernel::{Graph, Plan, differentiate_trainable};

fn steps(graph: &Graph) -> usize {
    Plan::compile(graph).unwrap().step_count()
}

fn built(build: impl FnOnce(&mut Graph, kernel::NodeId) -> kernel::NodeId) -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 8, 16]).unwrap();
    let y = build(&mut graph, x);
    graph.output("y", y).unwrap();
    graph
}

#[test]
fn a_product_takes_bias_activation_and_residual_along() {
    let graph = built(|graph, x| {
        let y = graph.linear_layer(x, "fc", 16).unwrap();
        let y = graph.gelu(y).unwrap();
        graph.add(x, y).unwrap()
    });
    assert_eq!(steps(&graph), 1);
}

#[test]
fn a_blend_is_one_loop_behind_the_product() {
    let graph = built(|graph, x| {
        let [alpha, kept] = ["alpha", "kept"].map(|name| graph.scalar_input(name).unwrap());
        let y = graph.linear_layer(x, "fc", 16).unwrap();
        let grown = graph.mul(alpha, y).unwrap();
        let host = graph.mul(kept, x).unwrap();
        graph.add(grown, host).unwrap()
    });
    assert_eq!(steps(&graph), 1);
}

#[test]
fn elementwise_operators_are_one_loop() {
    let graph = built(|graph, x| {
        let y = graph.tanh(x).unwrap();
        let y = graph.scale(y, 0.5).unwrap();
        let y = graph.dropout(y, 0.1).unwrap();
        let y = graph.mul(x, y).unwrap();
        graph.sigmoid(y).unwrap()
    });
    assert_eq!(steps(&graph), 1);
}

#[test]
fn a_norm_takes_scale_and_shift_along() {
    let graph = built(|graph, x| graph.layer_norm(x, "norm", 1e-5).unwrap());
    assert_eq!(steps(&graph), 1);
}

/// Forward: norm. Backward: through the scale and the norm at once, the scale, the shift; and the loss with its own.
#[test]
fn the_gradient_of_a_norm_is_three_loops() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 16]).unwrap();
    let weight = graph.parameter("w", &[4, 16], kernel::Init::ONES).unwrap();
    let y = graph.mul(x, weight).unwrap();
    let y = graph.layer_norm(y, "norm", 1e-5).unwrap();
    let target = graph.input("target", &[4, 16]).unwrap();
    let loss = graph.mse(y, target).unwrap();
    graph.output("loss", loss).unwrap();
    let forward = steps(&graph);
    let both = steps(&differentiate_trainable(&graph, "loss").unwrap());
    // x w; norm, scale, shift, difference, square; mean.
    assert_eq!(forward, 3);
    // x w; norm to difference; square; mean; gradient of the difference; of shift; of scale; of norm, times x.
    assert_eq!(both, 8);
}

#[test]
fn a_perceptron_has_no_loop_too_many() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[64, 64]).unwrap();
    let hidden = graph.linear_layer(x, "hidden", 128).unwrap();
    let hidden = graph.relu(hidden).unwrap();
    let logits = graph.linear_layer(hidden, "head", 10).unwrap();
    let labels = graph.input("labels", &[64]).unwrap();
    let loss = graph.cross_entropy(logits, labels).unwrap();
    graph.output("loss", loss).unwrap();
    assert_eq!(steps(&graph), 3);
    // Backward: the loss; weight and bias of the head; the hidden layer's activation; its weight and bias.
    assert_eq!(steps(&differentiate_trainable(&graph, "loss").unwrap()), 3 + 1 + 2 + 1 + 2);
}

#[test]
fn a_transformer_block_has_no_loop_too_many() {
    // Products, sums of biases, the heads' permutes, softmax and norms; everything elementwise but the GELU, whose
    // operand the gradient needs, is done with one of them.
    assert_eq!(steps(&Workload::transformer().unwrap().graph), 51);
}
