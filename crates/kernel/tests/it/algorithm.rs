//! Every loop that can compute an operator gives what the interpreter gives, and choices make plans.

use std::time::Duration;

use kernel::op::{Conv, Op};
use kernel::{
    Algorithm, Choice, Choices, Graph, Init, NodeId, ParamStore, Plan, differentiate_trainable,
    interpret,
};

/// Rounding in another order, over sums of up to some hundred products; relative to the output's largest value.
const TOLERANCE: f64 = 2e-5;

/// A graph of one operator on parameters, with the gradients of a loss that weighs every element differently.
fn with_gradients(
    shapes: [&[usize]; 3],
    operator: impl Fn(&mut Graph, NodeId, NodeId, NodeId) -> NodeId,
) -> Graph {
    let mut graph = Graph::new();
    let rule = Init::Uniform { low: -1.0, high: 1.0 };
    let mut parameter = |name: &str, shape: &[usize]| graph.parameter(name, shape, rule).unwrap();
    let operands =
        [parameter("a", shapes[0]), parameter("b", shapes[1]), parameter("bias", shapes[2])];
    let [a, b, bias] = operands;
    let result = operator(&mut graph, a, b, bias);
    let result = graph.relu(result).unwrap();
    graph.output("result", result).unwrap();
    let squares = graph.square(result).unwrap();
    let loss = graph.mean_all(squares).unwrap();
    graph.output("loss", loss).unwrap();
    differentiate_trainable(&graph, "loss").unwrap()
}

fn run(plan: &mut Plan, store: &ParamStore) -> Vec<(String, Vec<f32>)> {
    let outputs = plan.run(store, &[]).unwrap();
    outputs.iter().map(|(name, values)| (name.to_owned(), values.to_vec())).collect()
}

/// Runs the graph with each loop in turn, for all operators at once, against the interpreter.
fn check(graph: &Graph, describe: &str) {
    let params = graph.init_params(7);
    let store = ParamStore::with_group("all", &params).unwrap();
    let exact = interpret::run::<f64>(graph, &params, &[]).unwrap();
    let by_rule = Plan::compile(graph).unwrap().choices().clone();
    assert!(!by_rule.is_empty(), "{describe}: two loops compute a product or a convolution");
    for wanted in [Algorithm::Gemm, Algorithm::Tiles, Algorithm::Unfolded, Algorithm::Direct] {
        let forced: Vec<Choice> =
            by_rule.iter().map(|choice| Choice { algorithm: wanted, ..choice.clone() }).collect();
        let forced = Choices::from(forced);
        let mut plan = Plan::compile_with(graph, &forced).unwrap();
        for choice in plan.choices().iter() {
            let is_product = choice.operator == "product";
            let fits = is_product == matches!(wanted, Algorithm::Gemm | Algorithm::Tiles);
            assert!(choice.algorithm == wanted || !fits, "{describe}: {choice:?}");
        }
        let first = run(&mut plan, &store);
        assert_eq!(first, run(&mut plan, &store), "{describe}: a repeat gives the same bits");
        let mut again = Plan::compile_with(graph, plan.choices()).unwrap();
        assert_eq!(
            first,
            run(&mut again, &store),
            "{describe}: the same choices give the same bits"
        );
        for (name, found) in &first {
            let expected = &exact.outputs[name].data;
            let scale = expected.iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
            for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= TOLERANCE * scale,
                    "{describe} by {wanted:?}: {name}[{index}] is {found}, the interpreter says {expected}"
                );
            }
        }
    }
}

#[test]
fn convolutions_by_every_loop() {
    let plain = Conv::default();
    let cases: [(Conv, [usize; 4], [usize; 4]); 12] = [
        (Conv { padding: [1, 1], ..plain }, [3, 16, 16, 16], [16, 16, 3, 3]),
        (Conv { padding: [1, 1], ..plain }, [2, 3, 7, 5], [5, 3, 3, 3]),
        (plain, [2, 5, 9, 21], [3, 5, 3, 2]),
        (plain, [3, 4, 6, 7], [9, 4, 1, 1]),
        (Conv { padding: [2, 0], ..plain }, [1, 17, 5, 18], [2, 17, 5, 1]),
        (Conv { padding: [3, 3], ..plain }, [2, 2, 4, 4], [3, 2, 2, 2]),
        (Conv { stride: [2, 1], padding: [1, 1], ..plain }, [2, 4, 9, 17], [6, 4, 3, 3]),
        (Conv { stride: [2, 2], padding: [1, 1], ..plain }, [2, 4, 9, 8], [6, 4, 3, 3]),
        (Conv { dilation: [2, 3], padding: [2, 3], ..plain }, [2, 3, 8, 11], [4, 3, 3, 3]),
        (Conv { groups: 3, padding: [1, 1], ..plain }, [2, 6, 6, 33], [9, 2, 3, 3]),
        (Conv { groups: 8, padding: [1, 1], ..plain }, [2, 8, 5, 16], [8, 1, 3, 3]),
        (
            Conv { stride: [1, 2], padding: [2, 1], dilation: [2, 1], groups: 2 },
            [2, 4, 7, 10],
            [6, 2, 3, 2],
        ),
    ];
    for (conv, x, weight) in cases {
        let bias = [weight[0], 1, 1];
        let graph = with_gradients([&x, &weight, &bias], |graph, x, weight, bias| {
            let y = graph.push(Op::Conv2d(conv), &[x, weight]).unwrap();
            graph.add(y, bias).unwrap()
        });
        check(&graph, &format!("{conv:?} of {x:?} by {weight:?}"));
    }
}

#[test]
fn products_by_every_loop() {
    let sizes = [(1, 1, 1), (5, 3, 2), (64, 10, 33), (7, 70, 16), (13, 129, 5), (33, 65, 47)];
    for (m, n, k) in sizes {
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let a = if transpose_a { [k, m] } else { [m, k] };
            let b = if transpose_b { [n, k] } else { [k, n] };
            let op = Op::MatMul { transpose_a, transpose_b };
            let graph = with_gradients([&a, &b, &[n]], |graph, a, b, bias| {
                let y = graph.push(op.clone(), &[a, b]).unwrap();
                graph.add(y, bias).unwrap()
            });
            check(&graph, &format!("{op:?} {a:?} by {b:?}"));
            let (a, b) = ([3, a[0], a[1]], [3, b[0], b[1]]);
            let graph = with_gradients([&a, &b, &[n]], |graph, a, b, bias| {
                let y = graph.push(op.clone(), &[a, b]).unwrap();
                graph.add(y, bias).unwrap()
            });
            check(&graph, &format!("{op:?} {a:?} by {b:?}"));
        }
    }
}

#[test]
fn measured_choices_make_the_same_plan_again() {
    let conv = Conv { padding: [1, 1], ..Conv::default() };
    let graph =
        with_gradients([&[2, 4, 8, 8], &[4, 4, 3, 3], &[4, 1, 1]], |graph, x, weight, bias| {
            let y = graph.push(Op::Conv2d(conv), &[x, weight]).unwrap();
            graph.add(y, bias).unwrap()
        });
    let store = ParamStore::with_group("all", &graph.init_params(7)).unwrap();
    let mut plan = Plan::compile_measured(&graph, Duration::from_secs(60)).unwrap();
    assert!(
        plan.choices().iter().all(|choice| choice.nanoseconds.is_some()),
        "{:?}",
        plan.choices()
    );
    let text = serde_json::to_string(plan.choices()).unwrap();
    let kept: Choices = serde_json::from_str(&text).unwrap();
    let mut again = Plan::compile_with(&graph, &kept).unwrap();
    assert_eq!(again.choices(), plan.choices(), "times are kept with the choices");
    assert_eq!(run(&mut plan, &store), run(&mut again, &store));
    let unmeasured = Plan::compile_measured(&graph, Duration::ZERO).unwrap();
    let by_rule = Plan::compile(&graph).unwrap();
    assert_eq!(unmeasured.choices(), by_rule.choices(), "without time the rule decides");
}
