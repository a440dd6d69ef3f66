//! SGD and Adam against their formulas; groups that come and go.

use kernel::optimiser::{Adam, Optimiser, OptimiserError, Sgd};
use kernel::{Graph, Init, ParamStore, Params, Plan, StoreError, Tensor, differentiate_trainable};

/// `sum (a - 3)^2 + sum (b + 1)^2`
fn bowl() -> Plan {
    let mut graph = Graph::new();
    let a = graph.parameter("a", &[3], Init::ZEROS).unwrap();
    let b = graph.parameter("b", &[2], Init::ZEROS).unwrap();
    let a = graph.offset(a, -3.0).unwrap();
    let b = graph.offset(b, 1.0).unwrap();
    let both = graph.concat(&[a, b], 0).unwrap();
    let square = graph.square(both).unwrap();
    let loss = graph.sum_all(square).unwrap();
    graph.output("loss", loss).unwrap();
    Plan::compile(&differentiate_trainable(&graph, "loss").unwrap()).unwrap()
}

fn group(name: &str, values: &[f32]) -> Params {
    let tensor = Tensor::new([values.len()], values.to_vec()).unwrap();
    [(name.to_owned(), tensor)].into_iter().collect()
}

fn store() -> ParamStore {
    let mut store = ParamStore::new();
    store.add_group("host", &group("a", &[0.0, 1.0, 2.0])).unwrap();
    store.add_group("seed", &group("b", &[0.5, -0.5])).unwrap();
    store
}

fn step(plan: &mut Plan, store: &mut ParamStore, optimiser: &mut Optimiser) -> f32 {
    let outputs = plan.run(store, &[]).unwrap();
    optimiser.step(store, &outputs, 1.0).unwrap();
    outputs.scalar("loss").unwrap()
}

fn steps(count: usize, plan: &mut Plan, store: &mut ParamStore, optimiser: &mut Optimiser) {
    for _ in 0..count {
        step(plan, store, optimiser);
    }
}

#[test]
fn adam_follows_its_formula() {
    let (mut plan, mut store) = (bowl(), store());
    let mut optimiser = Optimiser::adam(Adam::default());
    optimiser.add_group("host", 0.1).unwrap();
    let (mut p, mut m, mut v) = (1.0_f64, 0.0, 0.0);
    for t in 1..=20 {
        step(&mut plan, &mut store, &mut optimiser);
        let g = 2.0 * (p - 3.0);
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        p -= 0.1 * (m / (1.0 - 0.9_f64.powi(t))) / ((v / (1.0 - 0.999_f64.powi(t))).sqrt() + 1e-8);
        assert!((f64::from(store.get("a").unwrap()[1]) - p).abs() < 1e-4, "step {t}");
    }
    assert_eq!(store.get("b").unwrap(), [0.5, -0.5], "a group the optimiser does not have stays");
}

#[test]
fn sgd_follows_its_formula() {
    let (mut plan, mut store) = (bowl(), store());
    let mut optimiser = Optimiser::sgd(Sgd { momentum: 0.5, weight_decay: 0.25 });
    optimiser.add_group("seed", 0.125).unwrap();
    let (mut p, mut m) = (0.5_f32, 0.0);
    for _ in 0..4 {
        step(&mut plan, &mut store, &mut optimiser);
        m = 0.5 * m + (2.0 * (p + 1.0) + 0.25 * p);
        p -= 0.125 * m;
        assert_eq!(store.get("b").unwrap()[0], p);
    }
}

#[test]
fn a_frozen_group_stays_and_the_loss_falls() {
    let (mut plan, mut store) = (bowl(), store());
    let mut optimiser = Optimiser::adam(Adam::default());
    optimiser.add_group("host", 0.05).unwrap();
    optimiser.add_group("seed", 0.05).unwrap();
    optimiser.freeze("seed").unwrap();
    let first = step(&mut plan, &mut store, &mut optimiser);
    steps(100, &mut plan, &mut store, &mut optimiser);
    assert_eq!(store.get("b").unwrap(), [0.5, -0.5]);
    optimiser.unfreeze("seed").unwrap();
    steps(300, &mut plan, &mut store, &mut optimiser);
    let last = step(&mut plan, &mut store, &mut optimiser);
    assert!(last < 0.01 * first, "{first} to {last}");
}

#[test]
fn groups_come_and_go_and_the_others_keep_their_state() {
    let run = |with_seed: bool| {
        let (mut plan, mut store) = (bowl(), store());
        let mut optimiser = Optimiser::adam(Adam::default());
        optimiser.add_group("host", 0.1).unwrap();
        for index in 0..9 {
            if with_seed && index == 3 {
                optimiser.add_group("seed", 0.2).unwrap();
            }
            if with_seed && index == 6 {
                optimiser.remove_group("seed").unwrap();
                let gone = store.remove_group("seed").unwrap();
                store.add_group("other", &gone).unwrap();
            }
            step(&mut plan, &mut store, &mut optimiser);
        }
        store.get("a").unwrap().to_vec()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_checkpoint_resumes_exactly() {
    let (mut plan, mut store) = (bowl(), store());
    let mut optimiser = Optimiser::adam(Adam::default());
    optimiser.add_group("host", 0.1).unwrap();
    steps(3, &mut plan, &mut store, &mut optimiser);
    let text = serde_json::to_string(&optimiser).unwrap();
    let mut resumed: Optimiser = serde_json::from_str(&text).unwrap();
    assert_eq!(resumed, optimiser);
    let mut copy = store.clone();
    step(&mut plan, &mut store, &mut optimiser);
    step(&mut plan, &mut copy, &mut resumed);
    assert_eq!(copy.get("a"), store.get("a"));
}

#[test]
fn faults_are_named() {
    let mut store = store();
    assert!(matches!(store.add_group("host", &Params::new()), Err(StoreError::GroupExists { .. })));
    assert!(matches!(store.add_group("third", &group("a", &[1.0])), Err(StoreError::Owned { .. })));
    assert!(matches!(store.remove_group("third"), Err(StoreError::UnknownGroup { .. })));
    assert!(matches!(store.set("a", &[1.0]), Err(StoreError::UnknownParameter { .. })));
    let mut optimiser = Optimiser::sgd(Sgd::default());
    assert!(matches!(optimiser.add_group("host", f32::NAN), Err(OptimiserError::Rate { .. })));
    assert!(matches!(optimiser.freeze("host"), Err(OptimiserError::UnknownGroup { .. })));
    optimiser.add_group("host", 0.1).unwrap();
    assert!(matches!(optimiser.add_group("host", 0.1), Err(OptimiserError::GroupExists { .. })));
}
