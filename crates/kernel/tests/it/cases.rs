//! One small graph per operator and attribute worth telling apart, shared by the tests of gradients and plans.

use std::collections::BTreeSet;

use kernel::op::{Binary, Conv, Extent, Norm, Normalise, Op, Pool, Reduction, Unary};
use kernel::{Graph, Init, Tensor};
use serde::de::DeserializeOwned;

/// What values an operand may take, and whether a gradient is expected for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Domain {
    /// Either sign, away from 0 and from other places where a function has a corner.
    Real,
    /// Well above 0, below 1.
    Share,
    /// Whole numbers below the limit; no gradient.
    Index(usize),
    /// Gives its shape only, or passes no gradient: the gradient must be zero.
    Detached,
}

/// An operator on operands of given shapes.
pub(crate) struct Case {
    pub(crate) op: Op,
    pub(crate) operands: Vec<(Vec<usize>, Domain)>,
}

impl Case {
    fn new(op: Op, operands: &[(&[usize], Domain)]) -> Self {
        let operands = operands.iter().map(|&(shape, domain)| (shape.to_vec(), domain)).collect();
        Self { op, operands }
    }

    /// The operator on parameters `p0`, `p1` and so on, with outputs `result` and `loss` (a weighted sum).
    pub(crate) fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        let operands: Vec<_> = (0..self.operands.len())
            .map(|position| {
                graph.parameter(&name(position), &self.operands[position].0, Init::ZEROS).unwrap()
            })
            .collect();
        let result = graph.push(self.op.clone(), &operands).unwrap();
        graph.output("result", result).unwrap();
        let shape = graph.shape(result).to_vec();
        let weights = values(99, shape.iter().product(), Domain::Real);
        let weights = graph.constant(Tensor::new(shape, weights).unwrap()).unwrap();
        let product = graph.mul(result, weights).unwrap();
        let loss = graph.sum_all(product).unwrap();
        graph.output("loss", loss).unwrap();
        graph
    }

    /// Values of one operand.
    pub(crate) fn values(&self, position: usize) -> Vec<f32> {
        let (shape, domain) = &self.operands[position];
        values(position, shape.iter().product(), *domain)
    }

    pub(crate) fn describe(&self) -> String {
        let shapes: Vec<&Vec<usize>> = self.operands.iter().map(|(shape, _)| shape).collect();
        format!("{:?} on {shapes:?}", self.op)
    }
}

/// Name of the parameter that holds an operand.
pub(crate) fn name(position: usize) -> String {
    format!("p{position}")
}

/// Distinct values for distinct elements, so that no maximum is shared.
fn values(salt: usize, count: usize, domain: Domain) -> Vec<f32> {
    let fraction =
        |index: usize| ((index * 7 + salt * 3 + 5) as f64 * 0.618_033_988_75).fract() as f32;
    let real = |index: usize| {
        let value = 0.07 + 1.3 * fraction(index);
        if (index + salt).is_multiple_of(2) { value } else { -value }
    };
    let value = |index: usize| match domain {
        Domain::Real | Domain::Detached => real(index),
        Domain::Share => 0.2 + 0.6 * fraction(index),
        Domain::Index(limit) => ((index * 5 + salt) % limit) as f32,
    };
    (0..count).map(value).collect()
}

const UNARY: [Unary; 19] = [
    Unary::Neg,
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Square,
    Unary::Abs,
    Unary::Relu,
    Unary::Gelu,
    Unary::Silu,
    Unary::Sigmoid,
    Unary::Tanh,
    Unary::Softplus,
    Unary::Erf,
    Unary::Step,
    Unary::Sign,
    Unary::Clamp { low: -0.5, high: 0.9 },
    Unary::Within { low: -0.5, high: 0.9 },
    Unary::Scale { factor: -1.75 },
    Unary::Offset { by: 0.375 },
];

/// Every operator, with the attributes that take different ways through the code.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = sources();
    cases.extend(elementwise());
    cases.extend(products());
    cases.extend(windows());
    cases.extend(statistics());
    cases.extend(layout());
    cases
}

use Domain::{Detached, Index, Real, Share};

fn sources() -> Vec<Case> {
    let shape = vec![2, 3];
    let input = Op::Input { name: "x".to_owned(), shape: shape.clone(), batched: true };
    let parameter =
        Op::Parameter { name: "w".to_owned(), shape, init: Init::Identity, trainable: true };
    let constant = Op::Constant(Tensor::new([2], vec![0.5, -2.0]).unwrap());
    [input, parameter, constant].into_iter().map(|op| Case::new(op, &[])).collect()
}

fn elementwise() -> Vec<Case> {
    let mut cases = Vec::new();
    for function in UNARY {
        let domain = if matches!(function, Unary::Log | Unary::Sqrt) { Share } else { Real };
        cases.push(Case::new(Op::Unary(function), &[(&[3, 5], domain)]));
        let by = if function.gradient_by_output() { Share } else { domain };
        cases.push(Case::new(Op::UnaryGradient(function), &[(&[3, 5], by), (&[3, 5], Real)]));
    }
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[2, 3], &[2, 3]),
        (&[2, 3], &[3]),
        (&[2, 1, 4], &[3, 1]),
        (&[], &[2, 2]),
        (&[2, 3, 2], &[3, 1]),
        (&[4, 1], &[]),
    ];
    for function in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div] {
        for (a, b) in shapes {
            cases.push(Case::new(Op::Binary(function), &[(a, Real), (b, Real)]));
        }
    }
    let dropout = Op::Dropout { rate: 0.4, stream: 3 };
    cases.push(Case::new(dropout, &[(&[5, 7], Real), (&[], Index(9))]));
    cases.push(Case::new(Op::Phase, &[(&[2, 2], Real), (&[2, 2], Detached)]));
    cases.push(Case::new(Op::StopGradient, &[(&[2, 2], Detached)]));
    cases
}

fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let op = Op::MatMul { transpose_a, transpose_b };
        let a = if transpose_a { [3, 4] } else { [4, 3] };
        let b = if transpose_b { [5, 3] } else { [3, 5] };
        cases.push(Case::new(op.clone(), &[(&a, Real), (&b, Real)]));
        let stacked = |shape: [usize; 2]| [2, shape[0], shape[1]];
        cases.push(Case::new(op.clone(), &[(&stacked(a), Real), (&stacked(b), Real)]));
        if !transpose_a {
            cases.push(Case::new(op, &[(&stacked(a), Real), (&b, Real)]));
        }
    }
    let plain = Conv::default();
    let strided = Conv { stride: [2, 1], padding: [1, 2], dilation: [1, 2], groups: 2 };
    let depthwise = Conv { padding: [1, 1], groups: 4, ..plain };
    let convolutions = [
        (plain, [2, 3, 4, 5], [2, 3, 2, 3], [2, 2, 3, 3]),
        (strided, [2, 4, 5, 4], [6, 2, 3, 2], [2, 6, 3, 6]),
        (depthwise, [1, 4, 3, 3], [4, 1, 3, 3], [1, 4, 3, 3]),
        (plain, [2, 3, 2, 2], [4, 3, 1, 1], [2, 4, 2, 2]),
    ];
    for (conv, x, weight, result) in convolutions {
        cases.push(Case::new(Op::Conv2d(conv), &[(&x, Real), (&weight, Real)]));
        cases.push(Case::new(
            Op::Conv2dInputGradient(conv),
            &[(&result, Real), (&weight, Real), (&x, Detached)],
        ));
        cases.push(Case::new(
            Op::Conv2dWeightGradient(conv),
            &[(&x, Real), (&result, Real), (&weight, Detached)],
        ));
    }
    cases
}

fn windows() -> Vec<Case> {
    let pools = [
        (Pool { kernel: [2, 2], stride: [2, 2], padding: [0, 0] }, [2, 2, 4, 4], [2, 2, 2, 2]),
        (Pool { kernel: [3, 2], stride: [1, 2], padding: [1, 1] }, [1, 2, 4, 5], [1, 2, 4, 3]),
    ];
    let mut cases = Vec::new();
    for (pool, x, result) in pools {
        cases.push(Case::new(Op::MaxPool(pool), &[(&x, Real)]));
        cases.push(Case::new(Op::MaxPoolGradient(pool), &[(&x, Real), (&result, Real)]));
        cases.push(Case::new(Op::MaxPoolPick(pool), &[(&x, Real), (&x, Real)]));
        cases.push(Case::new(Op::AvgPool(pool), &[(&x, Real)]));
        cases.push(Case::new(Op::AvgPoolGradient(pool), &[(&result, Real), (&x, Detached)]));
    }
    cases
}

fn statistics() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in [Op::Softmax, Op::LogSoftmax] {
        cases.push(Case::new(op.clone(), &[(&[3, 4], Real)]));
        cases.push(Case::new(op, &[(&[5], Real)]));
    }
    for norm in [Norm::Standard, Norm::RootMeanSquare] {
        for axes in [vec![1], vec![0, 2], vec![0, 1, 2]] {
            let attributes = Normalise { norm, axes, epsilon: 1e-3 };
            let shape: &[usize] = &[3, 4, 2];
            cases.push(Case::new(Op::Normalise(attributes.clone()), &[(shape, Real)]));
            cases.push(Case::new(
                Op::NormaliseGradient(attributes),
                &[(shape, Real), (shape, Real)],
            ));
        }
    }
    for kind in [Reduction::Sum, Reduction::Mean] {
        for axes in [vec![0], vec![1], vec![0, 2], vec![]] {
            cases.push(Case::new(Op::Reduce { kind, axes }, &[(&[3, 4, 2], Real)]));
        }
        for small in [&[4, 1][..], &[][..], &[3, 1, 2][..], &[3, 4, 2][..]] {
            cases.push(Case::new(Op::ReduceLike(kind), &[(&[3, 4, 2], Real), (small, Detached)]));
            cases
                .push(Case::new(Op::BroadcastLike(kind), &[(small, Real), (&[3, 4, 2], Detached)]));
        }
    }
    for (logits, labels) in [(&[4, 3][..], &[4][..]), (&[2, 3, 4][..], &[2, 3][..])] {
        let label = Index(logits[logits.len() - 1]);
        cases.push(Case::new(Op::CrossEntropy, &[(logits, Real), (labels, label)]));
        cases.push(Case::new(
            Op::CrossEntropyGradient,
            &[(logits, Real), (labels, label), (&[], Real)],
        ));
    }
    cases
}

fn layout() -> Vec<Case> {
    let mut cases = vec![
        Case::new(Op::Gather, &[(&[5, 3], Real), (&[2, 4], Index(5))]),
        Case::new(Op::ScatterAdd, &[(&[2, 4], Index(5)), (&[2, 4, 3], Real), (&[5, 3], Detached)]),
        Case::new(Op::Reshape(vec![Extent::Rest, Extent::Size(3)]), &[(&[3, 2, 2], Real)]),
        Case::new(Op::ReshapeLike, &[(&[3, 4], Real), (&[2, 6], Detached)]),
        Case::new(Op::Permute(vec![2, 0, 1]), &[(&[2, 3, 4], Real)]),
        Case::new(Op::Permute(vec![0, 2, 1, 3]), &[(&[2, 3, 2, 2], Real)]),
        Case::new(Op::PadLike { axis: 1, start: 1 }, &[(&[2, 2], Real), (&[2, 5], Detached)]),
    ];
    for axis in 0..3 {
        let mut part = [2, 3, 2];
        part[axis] = 1;
        cases.push(Case::new(
            Op::Concat { axis },
            &[(&[2, 3, 2], Real), (&part, Real), (&[2, 3, 2], Real)],
        ));
        cases.push(Case::new(Op::Slice { axis, start: 1, end: 2 }, &[(&[2, 3, 2], Real)]));
    }
    cases
}

/// Names of all variants of an enum, out of serde's complaint about an unknown one.
fn variants<T: DeserializeOwned>() -> BTreeSet<String> {
    let Err(error) = serde_json::from_str::<T>("\"no such variant\"") else {
        panic!("a variant of that name exists")
    };
    let text = error.to_string();
    let (_, list) = text.split_once("expected one of").unwrap();
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn variant<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value).unwrap() {
        serde_json::Value::String(name) => name,
        serde_json::Value::Object(map) => map.keys().next().unwrap().clone(),
        other => panic!("an enum is written as {other}"),
    }
}

#[test]
fn every_operator_is_listed() {
    let cases = all();
    let listed: BTreeSet<String> = cases.iter().map(|case| variant(&case.op)).collect();
    // What only a quarantine runs has tests of its own.
    let mut expected = variants::<Op>();
    assert!(expected.remove("stress"));
    assert_eq!(listed, expected);
    let functions: BTreeSet<String> = UNARY.iter().map(variant).collect();
    assert_eq!(functions, variants::<Unary>());
    let binary = cases.iter().filter_map(|case| match &case.op {
        Op::Binary(function) => Some(variant(function)),
        _ => None,
    });
    assert_eq!(binary.collect::<BTreeSet<_>>(), variants::<Binary>());
}
