//! The passes on random graphs: the optimised graph has the values of the original, NaN and infinities included.

use kernel::interpret::{Bindings, run_bound};
use kernel::op::{Binary, Extent, Op, Reduction, Unary};
use kernel::{Graph, NodeId, Tensor, differentiate, optimise};
use proptest::prelude::*;

/// Constants are folded in single precision; everything else is exact.
const TOLERANCE: f64 = 1e-6;

const FACTORS: [f32; 8] = [1.0, -1.0, 0.0, 2.0, 0.5, 3.0, 1e30, 1e-30];

/// Adds an operator that has, as often as not, something to simplify.
fn grow(graph: &mut Graph, values: &mut Vec<NodeId>, kind: u8, a: usize, b: usize) {
    let (x, y) = (values[a % values.len()], values[b % values.len()]);
    let factor = FACTORS[b % FACTORS.len()];
    let scalar = |graph: &mut Graph, value: f32| graph.constant(Tensor::scalar(value)).unwrap();
    let shape = graph.shape(x).to_vec();
    let rank = shape.len();
    let made = match kind % 20 {
        0 => graph.scale(x, factor).unwrap(),
        1 => graph.offset(x, [0.0, -0.0, 0.25][b % 3]).unwrap(),
        2 => graph.neg(x).unwrap(),
        3 => {
            let one = scalar(graph, 1.0);
            graph.mul(one, x).unwrap()
        }
        4 => {
            let zero = scalar(graph, 0.0);
            graph.add(x, zero).unwrap()
        }
        5 => {
            let one = scalar(graph, 1.0);
            let ones = graph.push(Op::BroadcastLike(Reduction::Sum), &[one, x]).unwrap();
            graph.div(x, ones).unwrap()
        }
        6 => graph.transpose(x, rank - 1, rank - 2).unwrap(),
        7 => graph.reshape(x, &[2, 2]).unwrap(),
        8 => {
            let rest = [2, 2, 3][b % 3];
            let whole: usize = shape.iter().product();
            let rest = if whole.is_multiple_of(rest) { rest } else { 1 };
            graph.push(Op::Reshape(vec![Extent::Rest, Extent::Size(rest)]), &[x]).unwrap()
        }
        9 => graph.push(Op::ReshapeLike, &[x, y]).unwrap_or(x),
        10 => graph.push(Op::BroadcastLike(Reduction::Mean), &[x, y]).unwrap_or(x),
        11 => graph.push(Op::ReduceLike(Reduction::Sum), &[x, y]).unwrap_or(x),
        12 => graph.push(Op::Reduce { kind: Reduction::Sum, axes: vec![] }, &[x]).unwrap(),
        13 => graph.matmul(x, y).or_else(|_| graph.matmul_transposed(x, y)).unwrap_or(x),
        14 => graph.add(x, y).unwrap_or(x),
        15 => graph.push(Op::Binary(Binary::Sub), &[x, y]).unwrap_or(x),
        16 => graph.push(Op::Binary(Binary::Div), &[x, y]).unwrap_or(x),
        17 => {
            let [p, q] = [scalar(graph, factor), scalar(graph, 0.5)];
            let folded = graph.mul(p, q).unwrap();
            graph.mul(x, folded).unwrap()
        }
        18 => graph.unary([Unary::Relu, Unary::Abs, Unary::Tanh][b % 3], x).unwrap(),
        _ => graph.concat(&[x], b % rank).unwrap(),
    };
    values.push(made);
}

fn network(choices: &[(u8, usize, usize)]) -> Graph {
    let mut graph = Graph::new();
    let mut values =
        vec![graph.input("x", &[3, 2, 2]).unwrap(), graph.fixed_input("y", &[2, 2]).unwrap()];
    for &(kind, a, b) in choices {
        grow(&mut graph, &mut values, kind, a, b);
    }
    for (index, &value) in values.iter().rev().take(3).enumerate() {
        graph.output(&format!("value{index}"), value).unwrap();
    }
    let last = values[values.len() - 1];
    let loss = graph.sum_all(last).unwrap();
    graph.output("loss", loss).unwrap();
    graph
}

fn same(a: f64, b: f64) -> bool {
    a == b
        || (a.is_nan() && b.is_nan())
        || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1e-30)
}

fn compare(original: &Graph, x: &[f64], describe: &str) {
    let optimised = optimise(original).unwrap();
    assert!(optimised.nodes().len() <= original.nodes().len(), "{describe}");
    let mut bindings = Bindings::<f64>::default();
    bindings.inputs.insert("x".to_owned(), x.to_vec());
    bindings.inputs.insert("y".to_owned(), vec![0.5, -2.0, 1.25, -0.0]);
    let expected = run_bound(original, &bindings).unwrap();
    let found = run_bound(&optimised, &bindings).unwrap();
    for (name, expected) in &expected.outputs {
        let found = &found.outputs[name];
        assert_eq!(found.shape, expected.shape);
        for (a, b) in expected.data.iter().zip(&found.data) {
            assert!(same(*a, *b), "{describe}: {name} was {a} and is {b}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_value_stays_as_it_was(
        choices in prop::collection::vec((any::<u8>(), any::<usize>(), any::<usize>()), 1..16),
        special in prop::sample::select(vec![0.75, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e300]),
    ) {
        let graph = network(&choices);
        let mut x: Vec<f64> = (0..12).map(|index| f64::from(index * 7 % 12) / 4.0 - 1.3).collect();
        x[5] = special;
        compare(&graph, &x, &format!("{choices:?}"));
        let gradient = differentiate(&graph, "loss", &["x", "y"]).unwrap();
        compare(&gradient, &x, &format!("gradient of {choices:?}"));
    }
}

/// Found by the property above: 1 / -0 became 1 / 0.
#[test]
fn a_sum_over_nothing_keeps_what_it_does_to_the_sign_of_zero() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[3, 2, 2]).unwrap();
    let one = graph.constant(Tensor::scalar(1.0)).unwrap();
    let like = graph.push(Op::ReduceLike(Reduction::Sum), &[x, x]).unwrap();
    let whole = graph.push(Op::Reduce { kind: Reduction::Sum, axes: vec![] }, &[x]).unwrap();
    for (name, sum) in [("like", like), ("whole", whole)] {
        let over = graph.push(Op::Binary(Binary::Div), &[one, sum]).unwrap();
        graph.output(name, over).unwrap();
    }
    let mut values = [1.0; 12];
    values[5] = -0.0;
    compare(&graph, &values, "1 / a sum of one -0");
}

fn nodes_after(build: impl FnOnce(&mut Graph, NodeId) -> NodeId) -> usize {
    let mut graph = Graph::new();
    let x = graph.input("x", &[3, 2, 4]).unwrap();
    let y = build(&mut graph, x);
    graph.output("y", y).unwrap();
    optimise(&graph).unwrap().nodes().len()
}

#[test]
fn what_does_nothing_goes() {
    assert_eq!(nodes_after(|graph, x| graph.scale(x, 1.0).unwrap()), 1);
    assert_eq!(nodes_after(|graph, x| graph.offset(x, 0.0).unwrap()), 1);
    let twice = |graph: &mut Graph, x| {
        let turned = graph.transpose(x, 1, 2).unwrap();
        graph.transpose(turned, 1, 2).unwrap()
    };
    assert_eq!(nodes_after(twice), 1);
    let reshaped = |graph: &mut Graph, x| {
        let flat = graph.flatten(x).unwrap();
        graph.reshape(flat, &[2, 4]).unwrap()
    };
    assert_eq!(nodes_after(reshaped), 1);
    let scaled = |graph: &mut Graph, x| {
        let double = graph.scale(x, 2.0).unwrap();
        graph.scale(double, 4.0).unwrap()
    };
    assert_eq!(nodes_after(scaled), 2);
    let by_ones = |graph: &mut Graph, x| {
        let ones = graph.constant(Tensor::full([4], 1.0).unwrap()).unwrap();
        graph.mul(ones, x).unwrap()
    };
    assert_eq!(nodes_after(by_ones), 1);
    let product = |graph: &mut Graph, x| {
        let turned = graph.transpose(x, 1, 2).unwrap();
        graph.matmul(turned, x).unwrap()
    };
    assert_eq!(nodes_after(product), 2, "the product transposes by itself");
}

#[test]
fn what_only_seems_to_do_nothing_stays() {
    let by_zero = |graph: &mut Graph, x| graph.scale(x, 0.0).unwrap();
    assert_eq!(nodes_after(by_zero), 2, "it may be NaN");
    let there_and_back = |graph: &mut Graph, x| {
        let far = graph.scale(x, 1e30).unwrap();
        graph.scale(far, 1e-30).unwrap()
    };
    assert_eq!(nodes_after(there_and_back), 3, "it may overflow on the way");
    let sign_of_zero = |graph: &mut Graph, x| {
        let positive = graph.offset(x, 0.0).unwrap();
        let one = graph.constant(Tensor::scalar(1.0)).unwrap();
        graph.div(one, positive).unwrap()
    };
    assert_eq!(nodes_after(sign_of_zero), 4, "1 / -0 is another infinity");
}
