//! Plans against the interpreter: the same values, for every operator and for random networks.

use std::collections::BTreeMap;

use kernel::interpret;
use kernel::op::{Conv, Norm, Op, Pool, Reduction, Unary};
use kernel::{
    Graph, NodeId, ParamStore, Params, Plan, RunError, Tensor, differentiate,
    differentiate_trainable, optimise,
};
use proptest::prelude::*;

use crate::cases;

/// Rounding in another order; relative to the largest value of the output.
const TOLERANCE: f32 = 2e-5;

type Inputs<'a> = [(&'a str, &'a [f32])];

fn planned(graph: &Graph, params: &Params, inputs: &Inputs<'_>) -> BTreeMap<String, Vec<f32>> {
    let store = ParamStore::with_group("all", params).unwrap();
    let mut plan = Plan::compile(graph).unwrap();
    let copy = |plan: &mut Plan| {
        let outputs = plan.run(&store, inputs).unwrap();
        let all = outputs.iter().chain(outputs.updates());
        all.map(|(name, values)| (name.to_owned(), values.to_vec())).collect::<BTreeMap<_, _>>()
    };
    let first = copy(&mut plan);
    let bits = |values: &BTreeMap<String, Vec<f32>>| {
        values.values().flatten().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(&first), bits(&copy(&mut plan)), "a repeat is bit-identical");
    assert_eq!(
        bits(&first),
        bits(&copy(&mut Plan::compile(graph).unwrap())),
        "a fresh plan is bit-identical"
    );
    first
}

fn compare(graph: &Graph, params: &Params, inputs: &Inputs<'_>, describe: &str) {
    let results = interpret::run::<f64>(graph, params, inputs).unwrap();
    let planned = planned(graph, params, inputs);
    for (name, expected) in results.outputs.iter().chain(&results.updates) {
        let found = &planned[name];
        assert_eq!(found.len(), expected.data.len());
        let scale = expected.data.iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
        for (index, (&found, &expected)) in found.iter().zip(&expected.data).enumerate() {
            let error = (f64::from(found) - expected).abs();
            assert!(
                error <= f64::from(TOLERANCE) * scale,
                "{describe}: {name}[{index}] is {found}, the interpreter says {expected}"
            );
        }
    }
}

fn case_params(case: &cases::Case) -> Params {
    let tensors = case.operands.iter().enumerate().map(|(position, (shape, _))| {
        (cases::name(position), Tensor::new(shape.clone(), case.values(position)).unwrap())
    });
    let w = Tensor::new([2, 3], vec![0.25, 1.25, -0.5, 0.125, 2.0, -1.5]).unwrap();
    tensors.chain([("w".to_owned(), w)]).collect()
}

const X: (&str, &[f32]) = ("x", &[0.5, 1.5, -0.25, 0.75, 2.0, -1.0]);

#[test]
fn every_operator_and_its_gradient() {
    for case in cases::all() {
        let graph = case.graph();
        let inputs: &Inputs<'_> = if matches!(case.op, Op::Input { .. }) { &[X] } else { &[] };
        compare(&graph, &case_params(&case), inputs, &case.describe());
        let graph = differentiate_trainable(&graph, "loss").unwrap();
        compare(&graph, &case_params(&case), inputs, &format!("gradient of {}", case.describe()));
        let optimised = optimise(&graph).unwrap();
        compare(
            &optimised,
            &case_params(&case),
            inputs,
            &format!("optimised gradient of {}", case.describe()),
        );
    }
}

/// One layer of a random network over images.
#[derive(Debug, Clone)]
enum Layer {
    Conv { channels: usize, kernel: usize, stride: usize },
    Depthwise,
    BatchNorm,
    GroupNorm,
    Activation(Unary),
    MaxPool,
    AvgPool,
    Residual,
    Concat,
    Dropout,
    Gate,
}

fn layer() -> impl Strategy<Value = Layer> {
    prop_oneof![
        (1..4_usize, 1..4_usize, 1..3_usize).prop_map(|(channels, kernel, stride)| Layer::Conv {
            channels: 2 * channels,
            kernel,
            stride
        }),
        Just(Layer::Depthwise),
        Just(Layer::BatchNorm),
        Just(Layer::GroupNorm),
        prop::sample::select(vec![
            Unary::Gelu,
            Unary::Silu,
            Unary::Sigmoid,
            Unary::Tanh,
            Unary::Softplus,
            Unary::Erf
        ])
        .prop_map(Layer::Activation),
        Just(Layer::MaxPool),
        Just(Layer::AvgPool),
        Just(Layer::Residual),
        Just(Layer::Concat),
        Just(Layer::Dropout),
        Just(Layer::Gate),
    ]
}

fn grow(graph: &mut Graph, x: NodeId, index: usize, layer: &Layer) -> NodeId {
    let name = format!("layer{index}");
    let channels = graph.shape(x)[1];
    let side = graph.shape(x)[2];
    let pool = Pool { kernel: [2, 2], stride: [2, 1], padding: [1, 1] };
    match layer {
        Layer::Conv { channels, kernel, stride } => {
            let conv =
                Conv { stride: [*stride, 1], padding: [kernel / 2, kernel / 2], ..Conv::default() };
            graph.conv2d_layer(x, &name, *channels, *kernel, conv).unwrap()
        }
        Layer::Depthwise => {
            let conv = Conv { padding: [1, 1], groups: channels, ..Conv::default() };
            graph.conv2d_layer(x, &name, channels, 3, conv).unwrap()
        }
        Layer::BatchNorm => graph.batch_norm(x, &name, 0.9, 1e-3).unwrap(),
        Layer::GroupNorm => graph.group_norm(x, &name, 2, 1e-3).unwrap(),
        Layer::Activation(function) => graph.unary(*function, x).unwrap(),
        Layer::MaxPool if side > 1 => graph.max_pool2d(x, pool).unwrap(),
        Layer::AvgPool if side > 1 => graph.avg_pool2d(x, pool).unwrap(),
        Layer::MaxPool | Layer::AvgPool => x,
        Layer::Residual => {
            let conv = Conv { padding: [1, 1], ..Conv::default() };
            let inner = graph.conv2d_layer(x, &name, channels, 3, conv).unwrap();
            let inner = graph.tanh(inner).unwrap();
            graph.add(x, inner).unwrap()
        }
        Layer::Concat => {
            let half = graph.slice(x, 1, 0, channels / 2).unwrap();
            let scaled = graph.scale(half, -0.5).unwrap();
            graph.concat(&[scaled, x, half], 1).unwrap()
        }
        Layer::Dropout => graph.dropout(x, 0.3).unwrap(),
        Layer::Gate => {
            let pooled = graph.global_avg_pool(x).unwrap();
            let gate = graph.linear_layer(pooled, &name, channels).unwrap();
            let gate = graph.sigmoid(gate).unwrap();
            let gate = graph.reshape(gate, &[channels, 1, 1]).unwrap();
            graph.mul(x, gate).unwrap()
        }
    }
}

fn network(layers: &[Layer]) -> Graph {
    let mut graph = Graph::new();
    let mut x = graph.input("x", &[3, 2, 5, 4]).unwrap();
    for (index, layer) in layers.iter().enumerate() {
        x = grow(&mut graph, x, index, layer);
    }
    let alpha = graph.scalar_input("alpha").unwrap();
    let blended = graph.mul(x, alpha).unwrap();
    let channels = graph.shape(blended)[1];
    let length = graph.shape(blended)[2] * graph.shape(blended)[3];
    let sequence = graph.reshape(blended, &[channels, length]).unwrap();
    let sequence = graph.permute(sequence, &[0, 2, 1]).unwrap();
    let attended = graph.self_attention_layer(sequence, "attention", 2).unwrap();
    let attended = graph.layer_norm(attended, "norm", 1e-3).unwrap();
    let features = graph.mean(attended, &[1]).unwrap();
    let logits = graph.linear_layer(features, "head", 3).unwrap();
    let labels = graph.input("labels", &[3]).unwrap();
    let loss = graph.cross_entropy(logits, labels).unwrap();
    graph.output("loss", loss).unwrap();
    graph.output("logits", logits).unwrap();
    graph
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_networks_and_their_gradients(layers in prop::collection::vec(layer(), 0..6), seed in any::<u64>()) {
        let graph = network(&layers);
        let graph = differentiate_trainable(&graph, "loss").unwrap();
        let params = graph.init_params(seed);
        let x: Vec<f32> = (0..120).map(|index| ((index * 29 + seed as usize % 31) % 60) as f32 / 30.0 - 1.0).collect();
        let mut inputs = vec![("x", &x[..]), ("alpha", &[0.7][..]), ("labels", &[0.0, 2.0, 1.0][..])];
        if graph.input_node("step").is_some() {
            inputs.push(("step", &[5.0]));
        }
        compare(&graph, &params, &inputs, &format!("{layers:?}"));
        let optimised = optimise(&graph).unwrap();
        prop_assert!(optimised.nodes().len() <= graph.nodes().len());
        compare(&optimised, &params, &inputs, &format!("optimised {layers:?}"));
    }
}

#[test]
fn large_products_and_reductions_agree() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[33, 130]).unwrap();
    let y = graph.linear_layer(x, "one", 67).unwrap();
    let y = graph.gelu(y).unwrap();
    let y = graph.normalise(y, Norm::Standard, &[1], 1e-5).unwrap();
    let y = graph.linear_layer(y, "two", 35).unwrap();
    let y = graph.relu(y).unwrap();
    let kept = graph.push(Op::Reduce { kind: Reduction::Mean, axes: vec![0] }, &[y]).unwrap();
    let loss = graph.square(kept).unwrap();
    let loss = graph.sum_all(loss).unwrap();
    graph.output("loss", loss).unwrap();
    let graph =
        differentiate(&graph, "loss", &["x", "one.weight", "one.bias", "two.weight"]).unwrap();
    let x: Vec<f32> =
        (0..33 * 130).map(|index| ((index * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    compare(&graph, &graph.init_params(4), &[("x", &x)], "products");
}

#[test]
fn what_is_missing_is_named() {
    let graph = network(&[]);
    let mut plan = Plan::compile(&graph).unwrap();
    let store = ParamStore::with_group("host", &graph.init_params(1)).unwrap();
    let x = [0.0; 120];
    let labels = [0.0, 1.0, 3.0];
    let alpha = [1.0];
    let run = |plan: &mut Plan, store: &ParamStore, inputs: &Inputs<'_>| {
        plan.run(store, inputs).map(|_| ())
    };
    let full: &Inputs<'_> = &[("x", &x), ("alpha", &alpha), ("labels", &labels)];
    assert!(matches!(
        run(&mut plan, &store, &full[..2]),
        Err(RunError::Missing { kind: "input", .. })
    ));
    let short: &Inputs<'_> = &[("x", &x[1..]), ("alpha", &alpha), ("labels", &labels)];
    assert!(matches!(run(&mut plan, &store, short), Err(RunError::Size { .. })));
    assert!(matches!(run(&mut plan, &store, full), Err(RunError::Index { limit: 3, .. })));
    let empty = ParamStore::new();
    assert!(matches!(
        run(&mut plan, &empty, full),
        Err(RunError::Missing { kind: "parameter", .. })
    ));
    let fine: &Inputs<'_> =
        &[("x", &x), ("alpha", &alpha), ("labels", &labels[..2]), ("more", &alpha)];
    assert!(matches!(run(&mut plan, &store, fine), Err(RunError::Size { .. })));
}

#[test]
fn buffers_share_memory() {
    let mut graph = Graph::new();
    let mut x = graph.input("x", &[16, 64]).unwrap();
    for _ in 0..50 {
        x = graph.softmax(x).unwrap();
        x = graph.log_softmax(x).unwrap();
    }
    graph.output("y", x).unwrap();
    let plan = Plan::compile(&graph).unwrap();
    assert_eq!(plan.step_count(), 100);
    assert_eq!(plan.memory_bytes(), 2 * 16 * 64 * 4, "loops one after another need two places");
}

#[test]
fn bias_and_activation_are_fused() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 8]).unwrap();
    let y = graph.linear_layer(x, "fc", 8).unwrap();
    let y = graph.gelu(y).unwrap();
    graph.output("y", y).unwrap();
    assert_eq!(Plan::compile(&graph).unwrap().step_count(), 1);
}
