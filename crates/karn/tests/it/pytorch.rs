//! Every served template against PyTorch: outputs, gradients and ten steps of Adam, as `python/make_fixtures.py` wrote
//! them down. The plan runs here, so this holds the whole way from template to training step against the field's
//! reference.

use std::collections::BTreeMap;

use karn::{INPUT, OUTPUT, build, catalogue};
use kernel::optimiser::{Adam, Optimiser};
use kernel::{Graph, ParamStore, Plan, STEP_INPUT, differentiate};
use serde::Deserialize;

mod cases;

/// Committed; `cargo xtask pytorch` gives another path, to hold the tests against the torch that is there.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pytorch.json");
const FIXTURES_PATH: &str = "WEATHERLIGHT_PYTORCH_FIXTURES";
/// Difference allowed, as a share of the tensor's root mean square and of one.
const TOLERANCE: f64 = 2e-4;
/// The same after ten steps, each of which adds its own rounding to the last: a rectifier near its bend may take the
/// other side.
const TRAINED_TOLERANCE: f64 = 1e-2;

#[derive(Deserialize)]
struct Fixtures {
    steps: usize,
    adam: AdamSettings,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct AdamSettings {
    lr: f32,
    betas: (f32, f32),
    eps: f32,
}

#[derive(Deserialize)]
struct Case {
    output: Kept,
    inference: Kept,
    input_gradient: Kept,
    gradients: BTreeMap<String, Kept>,
    updates: BTreeMap<String, Kept>,
    losses: Vec<f64>,
    trained: BTreeMap<String, Kept>,
}

/// What is kept of a tensor.
#[derive(Deserialize)]
struct Kept {
    len: usize,
    samples: Vec<f64>,
    sum: f64,
    norm: f64,
}

impl Kept {
    fn check(&self, what: &str, found: &[f32], tolerance: f64) {
        assert_eq!(found.len(), self.len, "{what}");
        let stride = found.len().div_ceil(8).max(1);
        let scale = self.norm / (self.len as f64).sqrt() + 1.0;
        let samples = found.iter().step_by(stride).map(|&value| f64::from(value));
        assert_eq!(samples.len(), self.samples.len(), "{what}");
        for (index, (found, expected)) in samples.zip(&self.samples).enumerate() {
            let difference = (found - expected).abs();
            assert!(difference <= tolerance * scale, "{what}[{index}]: {found}, not {expected}");
        }
        let values = || found.iter().map(|&value| f64::from(value));
        let norm = values().map(|value| value * value).sum::<f64>().sqrt();
        let spread = tolerance * scale * (self.len as f64).sqrt();
        assert!((norm - self.norm).abs() <= spread, "{what}: norm {norm}, not {}", self.norm);
        let sum: f64 = values().sum();
        let bound = spread * (self.len as f64).sqrt();
        assert!((sum - self.sum).abs() <= bound, "{what}: sum {sum}, not {}", self.sum);
    }
}

fn wave(count: usize, pace: f64, start: f64) -> Vec<f32> {
    (0..count).map(|index| (pace * index as f64 + start).sin() as f32).collect()
}

/// The graph with the weighted sum of its output as loss, and all gradients.
fn with_gradients(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let output = graph.output_node(OUTPUT).unwrap();
    let shape = graph.shape(output).to_vec();
    let weights = graph.input("weights", &shape).unwrap();
    let weighted = graph.mul(output, weights).unwrap();
    let loss = graph.sum_all(weighted).unwrap();
    graph.output("loss", loss).unwrap();
    let names: Vec<String> = graph.trainable().map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain([INPUT]).collect();
    differentiate(&graph, "loss", &names).unwrap()
}

fn check_case(name: &str, graph: &Graph, case: &Case, fixtures: &Fixtures) {
    let count = graph.shape(graph.input_node(INPUT).unwrap()).iter().product();
    let (x, weights) = (wave(count, 0.7, 0.3), wave(count, 1.3, 0.9));
    let params = cases::params(graph);
    let mut store = ParamStore::with_group("all", &params).unwrap();

    let mut served = Plan::compile(&graph.inference().unwrap()).unwrap();
    let outputs = served.run(&store, &[(INPUT, &x)]).unwrap();
    case.inference.check(&format!("{name} inference"), outputs.get(OUTPUT).unwrap(), TOLERANCE);

    let mut plan = Plan::compile(&with_gradients(graph)).unwrap();
    let step = [3.0];
    let inputs = [(INPUT, &x[..]), ("weights", &weights), (STEP_INPUT, &step)];
    let outputs = plan.run(&store, &inputs).unwrap();
    case.output.check(&format!("{name} output"), outputs.get(OUTPUT).unwrap(), TOLERANCE);
    let gradient = outputs.gradient(INPUT).unwrap();
    case.input_gradient.check(&format!("{name} gradient of the input"), gradient, TOLERANCE);
    for (parameter, kept) in &case.gradients {
        let gradient = outputs.gradient(parameter).unwrap();
        kept.check(&format!("{name} gradient of {parameter}"), gradient, TOLERANCE);
    }
    let updates: BTreeMap<&str, &[f32]> = outputs.updates().collect();
    for (parameter, kept) in &case.updates {
        let updated = updates.get(parameter.as_str()).copied().or_else(|| store.get(parameter));
        kept.check(&format!("{name} update of {parameter}"), updated.unwrap(), TOLERANCE);
    }

    let (beta1, beta2) = fixtures.adam.betas;
    let settings = Adam { beta1, beta2, epsilon: fixtures.adam.eps, ..Adam::default() };
    let mut optimiser = Optimiser::adam(settings);
    optimiser.add_group("all", fixtures.adam.lr).unwrap();
    for (step, expected) in case.losses.iter().enumerate() {
        let step = [step as f32];
        let inputs = [(INPUT, &x[..]), ("weights", &weights), (STEP_INPUT, &step)];
        let outputs = plan.run(&store, &inputs).unwrap();
        let loss = f64::from(outputs.scalar("loss").unwrap());
        let scale = (count as f64).sqrt() + expected.abs();
        assert!(
            (loss - expected).abs() <= TRAINED_TOLERANCE * scale,
            "{name} loss at step {step:?}: {loss}, not {expected}"
        );
        optimiser.step(&mut store, &outputs, 1.0).unwrap();
        store.absorb(&outputs).unwrap();
    }
    for (parameter, kept) in &case.trained {
        let trained = store.get(parameter).unwrap();
        kept.check(&format!("{name} trained {parameter}"), trained, TRAINED_TOLERANCE);
    }
    let steps = if case.trained.is_empty() { 0 } else { fixtures.steps };
    assert_eq!(case.losses.len(), steps, "{name}");
}

#[test]
fn every_served_template_agrees_with_pytorch() {
    let path = std::env::var(FIXTURES_PATH).unwrap_or_else(|_| FIXTURES.to_owned());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let fixtures: Fixtures = serde_json::from_str(&text).unwrap();
    let mut seen = 0;
    for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        for site in cases::SITES {
            let name = format!("{} {site}", blueprint.id());
            let case = fixtures.cases.get(&name).unwrap_or_else(|| {
                panic!("no fixture for {name}; run python/make_fixtures.py, its head says how")
            });
            let graph = build(blueprint, &blueprint.midpoints(), &site).unwrap();
            check_case(&name, &graph, case, &fixtures);
            seen += 1;
        }
    }
    assert_eq!(seen, fixtures.cases.len(), "fixtures of templates that are not served");
}
