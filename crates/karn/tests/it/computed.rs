//! What the templates compute, by the interpreter: identity at the start, gradients, independence of samples.

use std::collections::BTreeSet;

use karn::{INPUT, OUTPUT, Parameters, Site, build, find};
use kernel::{Graph, Init, Params, STEP_INPUT, differentiate, gradient_name, interpret};

use crate::graphs::{SITES, each_graph};

/// Templates that do not start as the identity at their midpoints, and why.
const NOT_IDENTITIES: [(&str, &str); 8] = [
    ("BP002", "a linear map with SiLU, nothing skips around it"),
    ("BP003", "what is standardised is not what came"),
    ("BP004", "drops while training; after it the identity"),
    ("BP005", "a rectifier cuts"),
    ("BP006", "what is standardised is not what came"),
    ("BP007", "the largest neighbour is not oneself"),
    ("BP011", "bends"),
    ("BP014", "its parameter says how far the gate is open, at most it lets a part through"),
];

/// Sites on which every template has room to do something. On one position pooling, say, is the identity.
const ROOMY: [Site; 3] = [SITES[0], SITES[5], SITES[7]];

/// Every template for every site, for two samples: the interpreter is plain, not fast.
fn each_pair(mut check: impl FnMut(&str, Site, &Graph)) {
    each_graph(|id, site, graph| check(id, site, &graph.with_batch(2).expect("the batch is free")));
}

/// Values that no template maps to themselves by chance.
fn noise(len: usize, salt: u64) -> Vec<f32> {
    let mut graph = Graph::new();
    let init = Init::Normal { mean: 0.3, deviation: 1.0 };
    graph.parameter("noise", &[len], init).expect("a vector is a sound parameter");
    let params = graph.init_params(salt);
    params.get("noise").expect("just added").data().to_vec()
}

fn len_of(graph: &Graph, input: &str) -> usize {
    let node = graph.input_node(input).expect("every kernel has an input");
    graph.shape(node).iter().product()
}

/// Runs a graph, giving the step where it asks for one.
fn run(graph: &Graph, params: &Params, input: &[f32]) -> interpret::Results<f64> {
    let mut inputs = vec![(INPUT, input)];
    if graph.input_node(STEP_INPUT).is_some() {
        inputs.push((STEP_INPUT, &[7.0]));
    }
    interpret::run(graph, params, &inputs).expect("everything the graph asks for is given")
}

fn output(graph: &Graph, params: &Params, input: &[f32]) -> Vec<f64> {
    run(graph, params, input).outputs.remove(OUTPUT).expect("every kernel has an output").data
}

#[test]
fn identity_at_the_start_where_it_is_claimed() {
    each_pair(|id, site, graph| {
        let input = noise(len_of(graph, INPUT), 1);
        let expected: Vec<f64> = input.iter().map(|&value| f64::from(value)).collect();
        let params = graph.init_params(11);
        let inference = graph.inference().expect("a sound graph has an inference form");
        let claimed = NOT_IDENTITIES.iter().all(|(other, _)| *other != id);
        if claimed {
            assert_eq!(output(graph, &params, &input), expected, "{id} {site} training");
        }
        if claimed || id == "BP004" {
            assert_eq!(output(&inference, &params, &input), expected, "{id} {site} inference");
        } else if ROOMY.contains(&site) {
            assert!(output(&inference, &params, &input) != expected, "{id} {site}: claim it");
        }
    });
}

/// The same graph with the sum of `output * weights` as its loss, differentiated by everything trainable.
fn with_gradients(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let node = graph.output_node(OUTPUT).expect("every kernel has an output");
    let shape = graph.shape(node).to_vec();
    let weights = graph.input("weights", &shape).expect("the name is free");
    let product = graph.mul(node, weights).expect("equal shapes");
    let loss = graph.sum_all(product).expect("a tensor has a sum");
    graph.output("loss", loss).expect("the name is free");
    let names: Vec<String> = graph.trainable().map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain([INPUT]).collect();
    differentiate(&graph, "loss", &names).expect("the loss is a scalar")
}

#[test]
fn every_trainable_parameter_and_the_input_has_a_gradient() {
    each_pair(|id, site, graph| {
        let differentiated = with_gradients(graph);
        // Away from the zero start, where whatever stands before a zero projection has none yet.
        let params: Params = graph
            .init_params(3)
            .iter()
            .map(|(name, tensor)| {
                let mut tensor = tensor.clone();
                let moves = noise(tensor.len(), name.len() as u64 + 5);
                if graph.trainable().any(|trainable| trainable == name) {
                    tensor
                        .data_mut()
                        .iter_mut()
                        .zip(moves)
                        .for_each(|(value, by)| *value += by * 0.5);
                }
                (name.to_owned(), tensor)
            })
            .collect();
        let len = len_of(graph, INPUT);
        let (input, weights) = (noise(len, 1), noise(len, 2));
        let mut inputs: Vec<(&str, &[f32])> = vec![(INPUT, &input), ("weights", &weights)];
        if graph.input_node(STEP_INPUT).is_some() {
            inputs.push((STEP_INPUT, &[7.0]));
        }
        let results =
            interpret::run::<f64>(&differentiated, &params, &inputs).expect("all is given");
        for name in graph.trainable().chain([INPUT]) {
            let gradient = &results.outputs[&gradient_name(name)];
            assert!(gradient.data.iter().all(|value| value.is_finite()), "{id} {site} {name}");
            let moves = gradient.data.iter().any(|&value| value != 0.0);
            assert!(moves || !ROOMY.contains(&site), "{id} {site} {name}");
        }
    });
}

#[test]
fn samples_do_not_see_each_other_after_training() {
    each_pair(|id, site, graph| {
        let inference = graph.inference().expect("a sound graph has an inference form");
        let params = graph.init_params(5);
        let sample: usize = site.shape(1).iter().product();
        let input = noise(len_of(graph, INPUT), 1);
        let mut other = noise(len_of(graph, INPUT), 2);
        other[..sample].copy_from_slice(&input[..sample]);
        let (one, two) = (output(&inference, &params, &input), output(&inference, &params, &other));
        assert_eq!(one[..sample], two[..sample], "{id} {site}");
        assert!(one.iter().chain(&two).all(|value| value.is_finite()), "{id} {site}");
    });
}

#[test]
fn only_batch_norm_and_dropout_depend_on_the_phase() {
    let mut by_phase = BTreeSet::new();
    each_pair(|id, _, graph| {
        let phased = !graph.updates().is_empty() || graph.input_node(STEP_INPUT).is_some();
        if phased {
            by_phase.insert(id.to_owned());
        }
        assert_eq!(!graph.updates().is_empty(), id == "BP006");
    });
    assert_eq!(by_phase.into_iter().collect::<Vec<_>>(), ["BP004", "BP006"]);
}

/// Output of a template's inference form on one kind of site, for its first sample.
fn first_sample(id: &str, parameters: &[(&str, f64)], site: Site, sample: &[f32]) -> Vec<f64> {
    let blueprint = find(&id.into()).expect("the test names a blueprint of the catalogue");
    let parameters: Parameters = parameters.iter().copied().collect();
    let graph = build(blueprint, &parameters, &site).expect("the test asks for what can be built");
    let graph = graph.inference().expect("a sound graph has an inference form");
    let graph = graph.with_batch(1).expect("the batch is free");
    output(&graph, &graph.init_params(0), sample)
}

#[test]
fn pooling_takes_the_largest_neighbour_within_its_channel() {
    let (site, sample) = (Site::Vector { features: 8 }, [1.0, 5.0, 0.0, 2.0, -4.0, -3.0, 9.0, 8.0]);
    // Eight features are four channels of two positions.
    let pooled = first_sample("BP007", &[("kernel", 3.5)], site, &sample);
    assert_eq!(pooled, [5.0, 5.0, 2.0, 2.0, -3.0, -3.0, 9.0, 9.0]);
    let line = Site::Sequence { length: 5, width: 1 };
    let narrow = first_sample("BP007", &[("kernel", 2.0)], line, &[0.0, 3.0, 1.0, 2.0, 0.0]);
    assert_eq!(narrow, [3.0, 3.0, 3.0, 2.0, 2.0]);
    let wide = first_sample("BP007", &[("kernel", 5.0)], line, &[0.0, 3.0, 1.0, 2.0, 0.0]);
    assert_eq!(wide, [3.0, 3.0, 3.0, 3.0, 2.0]);
}

#[test]
fn layer_norm_standardises_each_sample() {
    let site = Site::Vector { features: 4 };
    let normal = first_sample("BP003", &[("epsilon", 0.001)], site, &[1.0, 2.0, 3.0, 4.0]);
    let deviation = (1.25_f64 + 0.001_f32 as f64).sqrt();
    for (value, centred) in normal.iter().zip([-1.5, -0.5, 0.5, 1.5]) {
        assert!((value - centred / deviation).abs() < 1e-6, "{value}");
    }
}

#[test]
fn the_highway_gate_carries_as_far_as_its_bias_says() {
    let site = Site::Vector { features: 6 };
    let sample = [0.5, -1.0, 2.0, 0.1, -0.7, 1.4];
    let moved = |bias: f64| {
        let output = first_sample("BP014", &[("gate_bias", bias)], site, &sample);
        let steps = output.iter().zip(sample).map(|(value, given)| value - f64::from(given));
        steps.collect::<Vec<_>>()
    };
    let (closed, half, open) = (moved(-3.0), moved(0.0), moved(3.0));
    let gate = |bias: f64| 1.0 / (1.0 + (-bias).exp());
    for ((closed, half), open) in closed.iter().zip(half).zip(open) {
        assert!((closed - half * gate(-3.0) / 0.5).abs() < 1e-6);
        assert!((open - half * gate(3.0) / 0.5).abs() < 1e-6);
    }
}

#[test]
fn layer_scaling_multiplies_by_its_parameter() {
    let site = Site::Image { channels: 2, height: 1, width: 2 };
    let scaled = first_sample("BP012", &[("scale", 0.8)], site, &[1.0, 2.0, 3.0, 4.0]);
    for (value, given) in scaled.iter().zip([1.0, 2.0, 3.0, 4.0]) {
        assert!((value - given * f64::from(0.8_f32)).abs() < 1e-6, "{value}");
    }
}

#[test]
fn linear_projection_starts_with_the_gain_asked_for() {
    let blueprint = find(&"BP002".into()).unwrap();
    for gain in [0.5, 1.25, 2.0] {
        let parameters = [("scale", gain)].into_iter().collect();
        let graph = build(blueprint, &parameters, &Site::Vector { features: 128 }).unwrap();
        let params = graph.init_params(1);
        let weights = params.get("projection.weight").unwrap().data();
        let squares: f64 = weights.iter().map(|&weight| f64::from(weight).powi(2)).sum();
        let deviation = (squares / weights.len() as f64).sqrt() * 128_f64.sqrt();
        assert!((deviation / gain - 1.0).abs() < 0.05, "{gain}: {deviation}");
    }
}
