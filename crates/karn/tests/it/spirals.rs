//! The residual block must learn what the demonstration asks of it: two spirals, which its host alone cannot tell apart.

use karn::{INPUT, OUTPUT, Site, build, find};
use kernel::optimiser::{Adam, Optimiser};
use kernel::{Graph, NodeId, ParamStore, Plan, differentiate_trainable};

const WIDTH: usize = 32;
const TURNS: f32 = 2.0;
/// Steps over all points; the demonstration has some ten times as many.
const STEPS: usize = 300;

/// Points of both arms in alternation, and their classes.
fn spirals(points: usize, shift: f32) -> (Vec<f32>, Vec<f32>) {
    let (mut places, mut classes) = (Vec::new(), Vec::new());
    for index in 0..points {
        let along = ((index / 2) as f32 + shift) / (points / 2) as f32;
        let (radius, class) = (0.1 + 0.9 * along, (index % 2) as f32);
        let angle = TURNS * std::f32::consts::TAU * along + class * std::f32::consts::PI;
        places.extend([radius * angle.cos(), radius * angle.sin()]);
        classes.push(class);
    }
    (places, classes)
}

/// A linear host of 32 features, with a kernel in its slot or without one.
fn network(kernel: Option<&Graph>, batch: usize) -> Graph {
    let mut graph = Graph::new();
    let place = graph.input("place", &[batch, 2]).expect("a fresh graph takes an input");
    let features = graph.linear_layer(place, "host.in", WIDTH).expect("rank 2");
    let slot: NodeId = match kernel {
        Some(kernel) => {
            graph.inline(kernel, &[(INPUT, features)], "seed").expect("it fits")[OUTPUT]
        }
        None => features,
    };
    let logits = graph.linear_layer(slot, "host.out", 2).expect("rank 2");
    graph.output("logits", logits).expect("the name is free");
    let class = graph.input("class", &[batch]).expect("the name is free");
    let loss = graph.cross_entropy(logits, class).expect("shapes fit");
    graph.output("loss", loss).expect("the name is free");
    graph
}

/// Share of fresh points told apart after training.
fn accuracy_after(kernel: Option<&Graph>, steps: usize, seed: u64) -> f64 {
    let ((places, classes), (fresh, truth)) = (spirals(400, 0.0), spirals(400, 0.5));
    let graph = network(kernel, classes.len());
    let mut store = ParamStore::with_group("all", &graph.init_params(seed)).expect("fresh");
    let mut optimiser = Optimiser::adam(Adam::default());
    optimiser.add_group("all", 0.005).expect("fresh");
    let graph = differentiate_trainable(&graph, "loss").expect("the loss is a scalar");
    let mut plan = Plan::compile(&graph).expect("a graph has a plan");
    for _ in 0..steps {
        let outputs = plan.run(&store, &[("place", &places), ("class", &classes)]).expect("given");
        optimiser.step(&mut store, &outputs, 1.0).expect("of this store");
    }
    let outputs = plan.run(&store, &[("place", &fresh), ("class", &truth)]).expect("given");
    let logits = outputs.get("logits").expect("an output");
    let right =
        logits.chunks(2).zip(&truth).filter(|(pair, class)| (pair[1] > pair[0]) == (**class > 0.5));
    right.count() as f64 / truth.len() as f64
}

#[test]
fn a_residual_block_learns_two_spirals_and_its_host_alone_does_not() {
    let block = find(&"BP009".into()).unwrap();
    let site = Site::Vector { features: WIDTH };
    let kernel = build(block, &block.midpoints(), &site).unwrap();
    for seed in 1..=5 {
        let alone = accuracy_after(None, STEPS, seed);
        assert!(alone < 0.7, "seed {seed}: the host alone reaches {alone}");
        let grown = accuracy_after(Some(&kernel), STEPS, seed);
        assert!(grown >= 0.95, "seed {seed}: with the block {grown}");
    }
}
