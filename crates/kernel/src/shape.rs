//! Shape inference: the one place that decides whether operands fit an operator, and what comes out.

use crate::error::GraphError;
use crate::op::{Conv, Extent, Normalise, Op, Pool, Unary};

/// Most elements in one tensor: 2^31, 8 GiB of `f32`. Guards arithmetic on sizes read from files.
pub const ELEMENTS_MAX: usize = 1 << 31;
/// Most dimensions of a tensor. Attention needs 4; the rest is room.
pub const RANK_MAX: usize = 8;

type Shapes<'a> = [&'a [usize]];

/// Number of elements of a legal shape.
pub(crate) fn element_count(operator: &'static str, shape: &[usize]) -> Result<usize, GraphError> {
    if shape.contains(&0) {
        return Err(GraphError::Attribute {
            operator,
            attribute: "shape",
            found: format!("{shape:?}"),
            expected: "no dimension of size 0",
        });
    }
    let too_large = || GraphError::TooLarge { operator, shape: shape.to_vec() };
    if shape.len() > RANK_MAX {
        return Err(too_large());
    }
    shape
        .iter()
        .try_fold(1_usize, |count, &size| count.checked_mul(size))
        .filter(|&count| count <= ELEMENTS_MAX)
        .ok_or_else(too_large)
}

/// The shape of the result of `op` on operands of the given shapes.
pub(crate) fn infer(op: &Op, shapes: &Shapes<'_>) -> Result<Vec<usize>, GraphError> {
    check_arity(op, shapes.len())?;
    let shape = infer_unchecked(op, shapes)?;
    element_count(op.name(), &shape)?;
    Ok(shape)
}

fn check_arity(op: &Op, found: usize) -> Result<(), GraphError> {
    let (fits, expected) = match op {
        Op::Input { .. } | Op::Parameter { .. } | Op::Constant(_) => (found == 0, "no"),
        Op::Unary(_)
        | Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::Softmax
        | Op::LogSoftmax
        | Op::Normalise(_)
        | Op::Reshape(_)
        | Op::Permute(_)
        | Op::Slice { .. }
        | Op::Reduce { .. }
        | Op::StopGradient
        | Op::Stress(_) => (found == 1, "1"),
        Op::UnaryGradient(_)
        | Op::Binary(_)
        | Op::MatMul { .. }
        | Op::Conv2d(_)
        | Op::MaxPoolGradient(_)
        | Op::MaxPoolPick(_)
        | Op::AvgPoolGradient(_)
        | Op::NormaliseGradient(_)
        | Op::Dropout { .. }
        | Op::Phase
        | Op::Gather
        | Op::ReshapeLike
        | Op::PadLike { .. }
        | Op::ReduceLike(_)
        | Op::BroadcastLike(_)
        | Op::CrossEntropy => (found == 2, "2"),
        Op::Conv2dInputGradient(_)
        | Op::Conv2dWeightGradient(_)
        | Op::ScatterAdd
        | Op::CrossEntropyGradient => (found == 3, "3"),
        Op::Concat { .. } => (found > 0, "at least 1"),
    };
    if fits {
        return Ok(());
    }
    Err(GraphError::Arity { operator: op.name(), expected, found })
}

/// Relies on the number of operands having been checked.
fn infer_unchecked(op: &Op, shapes: &Shapes<'_>) -> Result<Vec<usize>, GraphError> {
    let mismatch = |expected: String| mismatch(op, shapes, expected);
    let require = |fits: bool, expected: &str| {
        if fits { Ok(()) } else { Err(mismatch(expected.to_owned())) }
    };
    match op {
        Op::Input { shape, batched, .. } => {
            require(!batched || !shape.is_empty(), "a leading dimension for the batch")?;
            Ok(shape.clone())
        }
        Op::Parameter { shape, init, .. } => {
            check_attribute(op, "init", init, init.is_sound(), "finite numbers and fans above 0")?;
            Ok(shape.clone())
        }
        Op::Constant(tensor) => {
            check_attribute(op, "data", "not finite", tensor.is_finite(), "finite numbers")?;
            Ok(tensor.shape().to_vec())
        }
        Op::Unary(function) => {
            check_unary(op, *function)?;
            Ok(shapes[0].to_vec())
        }
        Op::UnaryGradient(function) => {
            check_unary(op, *function)?;
            require(shapes[0] == shapes[1], "two equal shapes")?;
            Ok(shapes[0].to_vec())
        }
        Op::Binary(_) => broadcast(shapes[0], shapes[1]).ok_or_else(|| {
            mismatch(
                "equal or broadcastable shapes (each dimension equal or 1, aligned at the end)"
                    .to_owned(),
            )
        }),
        Op::MatMul { transpose_a, transpose_b } => {
            mat_mul(shapes[0], *transpose_a, shapes[1], *transpose_b).map_err(mismatch)
        }
        Op::Conv2d(conv) => {
            conv_result(op, conv, shapes[0], shapes[1]).map_err(|error| error.or(op, shapes))
        }
        Op::Conv2dInputGradient(conv) => {
            let result = conv_result(op, conv, shapes[2], shapes[1])
                .map_err(|error| error.or(op, shapes))?;
            require(result == shapes[0], "a gradient of the convolution's result shape")?;
            Ok(shapes[2].to_vec())
        }
        Op::Conv2dWeightGradient(conv) => {
            let result = conv_result(op, conv, shapes[0], shapes[2])
                .map_err(|error| error.or(op, shapes))?;
            require(result == shapes[1], "a gradient of the convolution's result shape")?;
            Ok(shapes[2].to_vec())
        }
        Op::MaxPool(pool) | Op::AvgPool(pool) => {
            pool_result(op, pool, shapes[0]).map_err(|error| error.or(op, shapes))
        }
        Op::MaxPoolGradient(pool) => {
            let result = pool_result(op, pool, shapes[0]).map_err(|error| error.or(op, shapes))?;
            require(result == shapes[1], "a gradient of the pool's result shape")?;
            Ok(shapes[0].to_vec())
        }
        Op::MaxPoolPick(pool) => {
            require(shapes[0] == shapes[1], "two equal shapes")?;
            pool_result(op, pool, shapes[0]).map_err(|error| error.or(op, shapes))
        }
        Op::AvgPoolGradient(pool) => {
            let result = pool_result(op, pool, shapes[1]).map_err(|error| error.or(op, shapes))?;
            require(result == shapes[0], "a gradient of the pool's result shape")?;
            Ok(shapes[1].to_vec())
        }
        Op::Softmax | Op::LogSoftmax => {
            require(!shapes[0].is_empty(), "at least one dimension")?;
            Ok(shapes[0].to_vec())
        }
        Op::Normalise(attributes) => {
            check_normalise(op, attributes, shapes[0])?;
            Ok(shapes[0].to_vec())
        }
        Op::NormaliseGradient(attributes) => {
            check_normalise(op, attributes, shapes[0])?;
            require(shapes[0] == shapes[1], "two equal shapes")?;
            Ok(shapes[0].to_vec())
        }
        Op::Dropout { rate, .. } => {
            check_attribute(op, "rate", rate, (0.0..1.0).contains(rate), "from 0 to below 1")?;
            require(shapes[1].is_empty(), "a scalar seed as second operand")?;
            Ok(shapes[0].to_vec())
        }
        Op::Phase => {
            require(shapes[0] == shapes[1], "two equal shapes")?;
            Ok(shapes[0].to_vec())
        }
        Op::Gather => {
            require(shapes[0].len() == 2, "a table of shape [rows, width] and indices")?;
            Ok([shapes[1], &shapes[0][1..]].concat())
        }
        Op::ScatterAdd => {
            let fits = shapes[2].len() == 2 && [shapes[0], &shapes[2][1..]].concat() == shapes[1];
            require(
                fits,
                "indices, a gradient of shape [indices.., width] and a table of shape [rows, width]",
            )?;
            Ok(shapes[2].to_vec())
        }
        Op::Reshape(extents) => reshape(extents, shapes[0]).map_err(mismatch),
        Op::ReshapeLike => {
            let count = |shape: &[usize]| shape.iter().product::<usize>();
            require(count(shapes[0]) == count(shapes[1]), "equally many elements")?;
            Ok(shapes[1].to_vec())
        }
        Op::Permute(order) => {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            let fits = sorted.into_iter().eq(0..shapes[0].len());
            check_attribute(op, "order", order, fits, "each dimension of the operand once")?;
            Ok(order.iter().map(|&axis| shapes[0][axis]).collect())
        }
        Op::Concat { axis } => concat(*axis, shapes).ok_or_else(|| {
            mismatch(format!("shapes that have a dimension {axis} and agree in all others"))
        }),
        Op::Slice { axis, start, end } => {
            let size = shapes[0].get(*axis).copied().unwrap_or(0);
            require(
                start < end && *end <= size,
                &format!("more than {axis} dimensions and {start} < {end} <= size"),
            )?;
            let mut shape = shapes[0].to_vec();
            shape[*axis] = end - start;
            Ok(shape)
        }
        Op::PadLike { axis, start } => {
            let fits = shapes[0].len() == shapes[1].len()
                && (0..shapes[0].len()).all(|dimension| {
                    let (inner, outer) = (shapes[0][dimension], shapes[1][dimension]);
                    if dimension == *axis {
                        start.checked_add(inner).is_some_and(|end| end <= outer)
                    } else {
                        inner == outer
                    }
                })
                && *axis < shapes[0].len();
            require(fits, "a shape that fits into the second at the given place")?;
            Ok(shapes[1].to_vec())
        }
        Op::Reduce { axes, .. } => {
            check_axes(op, axes, shapes[0])?;
            let mut shape = shapes[0].to_vec();
            axes.iter().for_each(|&axis| shape[axis] = 1);
            Ok(shape)
        }
        Op::ReduceLike(_) => {
            let fits = broadcast(shapes[0], shapes[1]).as_deref() == Some(shapes[0]);
            require(fits, "a second shape that broadcasts to the first")?;
            Ok(shapes[1].to_vec())
        }
        Op::BroadcastLike(_) => {
            let fits = broadcast(shapes[0], shapes[1]).as_deref() == Some(shapes[1]);
            require(fits, "a first shape that broadcasts to the second")?;
            Ok(shapes[1].to_vec())
        }
        Op::CrossEntropy => {
            require(is_labelled(shapes[0], shapes[1]), "logits [.., classes] and labels [..]")?;
            Ok(Vec::new())
        }
        Op::CrossEntropyGradient => {
            let fits = is_labelled(shapes[0], shapes[1]) && shapes[2].is_empty();
            require(fits, "logits [.., classes], labels [..] and a scalar")?;
            Ok(shapes[0].to_vec())
        }
        Op::StopGradient => Ok(shapes[0].to_vec()),
        Op::Stress(stress) => match stress.fault() {
            Some((attribute, found, expected)) => {
                Err(GraphError::Attribute { operator: op.name(), attribute, found, expected })
            }
            None => Ok(shapes[0].to_vec()),
        },
    }
}

fn mismatch(op: &Op, shapes: &Shapes<'_>, expected: String) -> GraphError {
    GraphError::Shape {
        operator: op.name(),
        shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        expected,
    }
}

fn is_labelled(logits: &[usize], labels: &[usize]) -> bool {
    logits.split_last().is_some_and(|(_, rows)| rows == labels)
}

fn check_attribute(
    op: &Op,
    attribute: &'static str,
    found: impl std::fmt::Debug,
    fits: bool,
    expected: &'static str,
) -> Result<(), GraphError> {
    if fits {
        return Ok(());
    }
    Err(GraphError::Attribute {
        operator: op.name(),
        attribute,
        found: format!("{found:?}"),
        expected,
    })
}

fn check_unary(op: &Op, function: Unary) -> Result<(), GraphError> {
    match function {
        Unary::Clamp { low, high } | Unary::Within { low, high } => {
            let fits = low.is_finite() && high.is_finite() && low <= high;
            check_attribute(op, "low and high", (low, high), fits, "finite, low not above high")
        }
        Unary::Scale { factor: value } | Unary::Offset { by: value } => {
            check_attribute(op, "value", value, value.is_finite(), "a finite number")
        }
        Unary::Neg
        | Unary::Exp
        | Unary::Log
        | Unary::Sqrt
        | Unary::Square
        | Unary::Abs
        | Unary::Relu
        | Unary::Gelu
        | Unary::Silu
        | Unary::Sigmoid
        | Unary::Tanh
        | Unary::Softplus
        | Unary::Erf
        | Unary::Step
        | Unary::Sign => Ok(()),
    }
}

fn check_axes(op: &Op, axes: &[usize], shape: &[usize]) -> Result<(), GraphError> {
    let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
    let fits = ascending && axes.last().is_none_or(|&last| last < shape.len());
    check_attribute(op, "axes", (axes, shape), fits, "ascending dimensions of the operand")
}

fn check_normalise(op: &Op, attributes: &Normalise, shape: &[usize]) -> Result<(), GraphError> {
    let epsilon = attributes.epsilon;
    check_attribute(
        op,
        "epsilon",
        epsilon,
        epsilon.is_finite() && epsilon > 0.0,
        "a finite number above 0",
    )?;
    check_axes(op, &attributes.axes, shape)
}

/// The shape both broadcast to, dimensions aligned at the end.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], from_end: usize| {
        shape.len().checked_sub(from_end).map_or(1, |index| shape[index])
    };
    (1..=rank)
        .rev()
        .map(|from_end| match (size(a, from_end), size(b, from_end)) {
            (left, right) if left == right => Some(left),
            (1, other) | (other, 1) => Some(other),
            _ => None,
        })
        .collect()
}

/// Rows and columns of the last two dimensions after an optional transpose.
fn matrix(shape: &[usize], transpose: bool) -> Option<(usize, usize)> {
    match shape {
        [.., rows, columns] if transpose => Some((*columns, *rows)),
        [.., rows, columns] => Some((*rows, *columns)),
        _ => None,
    }
}

fn mat_mul(
    a: &[usize],
    transpose_a: bool,
    b: &[usize],
    transpose_b: bool,
) -> Result<Vec<usize>, String> {
    let needs_matrices = || "two operands of at least two dimensions".to_owned();
    let (rows, inner) = matrix(a, transpose_a).ok_or_else(needs_matrices)?;
    let (inner_b, columns) = matrix(b, transpose_b).ok_or_else(needs_matrices)?;
    if inner != inner_b {
        return Err(format!("a second operand with inner dimension {inner}, found {inner_b}"));
    }
    let lead = &a[..a.len() - 2];
    let shared = b.len() == 2 && (!transpose_a || a.len() == 2);
    if !shared && *lead != b[..b.len() - 2] {
        return Err(format!(
            "a second operand with leading dimensions {lead:?} (or an untransposed first and a second of rank 2)"
        ));
    }
    Ok([lead, &[rows, columns]].concat())
}

/// An error raised where the list of all operands is not at hand.
enum WindowError {
    Graph(GraphError),
    Expected(String),
}

impl From<GraphError> for WindowError {
    fn from(error: GraphError) -> Self {
        Self::Graph(error)
    }
}

impl WindowError {
    fn or(self, op: &Op, shapes: &Shapes<'_>) -> GraphError {
        match self {
            Self::Graph(error) => error,
            Self::Expected(expected) => mismatch(op, shapes, expected),
        }
    }
}

fn conv_result(
    op: &Op,
    conv: &Conv,
    x: &[usize],
    weight: &[usize],
) -> Result<Vec<usize>, WindowError> {
    let positive =
        conv.groups > 0 && conv.stride.iter().chain(&conv.dilation).all(|&value| value > 0);
    check_attribute(op, "attributes", conv, positive, "stride, dilation and groups above 0")?;
    let (&[n, channels, height, width], &[out, per_group, kernel_h, kernel_w]) = (x, weight) else {
        return Err(WindowError::Expected(
            "x [n, c, h, w] and weight [o, c / groups, kh, kw]".to_owned(),
        ));
    };
    let groups = conv.groups;
    if !channels.is_multiple_of(groups)
        || !out.is_multiple_of(groups)
        || channels / groups != per_group
    {
        return Err(WindowError::Expected(format!(
            "{groups} groups that divide {channels} channels and {out} results, with weight [{out}, {}, kh, kw]",
            channels / groups
        )));
    }
    let size = |side: usize, length: usize, kernel: usize| {
        window_count(
            length,
            kernel,
            conv.stride[side],
            conv.padding[side],
            conv.dilation[side],
        )
        .ok_or_else(|| {
            WindowError::Expected(format!(
                "a padded side of at least the kernel's reach; {length} is too short for {kernel}"
            ))
        })
    };
    Ok(vec![n, out, size(0, height, kernel_h)?, size(1, width, kernel_w)?])
}

fn pool_result(op: &Op, pool: &Pool, x: &[usize]) -> Result<Vec<usize>, WindowError> {
    let positive = pool.kernel.iter().chain(&pool.stride).all(|&value| value > 0);
    check_attribute(op, "attributes", pool, positive, "kernel and stride above 0")?;
    let half = (0..2).all(|side| pool.padding[side] <= pool.kernel[side] / 2);
    check_attribute(op, "padding", pool.padding, half, "at most half the kernel")?;
    let &[n, channels, height, width] = x else {
        return Err(WindowError::Expected("x [n, c, h, w]".to_owned()));
    };
    let size = |side: usize, length: usize| {
        window_count(length, pool.kernel[side], pool.stride[side], pool.padding[side], 1)
            .ok_or_else(|| {
                WindowError::Expected(format!(
                    "a padded side of at least {}; {length} is too short",
                    pool.kernel[side]
                ))
            })
    };
    Ok(vec![n, channels, size(0, height)?, size(1, width)?])
}

/// How many windows fit into one side, `None` when not even one does or a number overflows.
fn window_count(
    length: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
) -> Option<usize> {
    let padded = padding.checked_mul(2)?.checked_add(length)?;
    let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
    Some(padded.checked_sub(reach)? / stride + 1)
}

fn reshape(extents: &[Extent], from: &[usize]) -> Result<Vec<usize>, String> {
    let count: usize = from.iter().product();
    let known = extents
        .iter()
        .try_fold(1_usize, |product, extent| match extent {
            Extent::Size(size) => product.checked_mul(*size),
            Extent::Rest => Some(product),
        })
        .filter(|&known| known > 0)
        .ok_or_else(|| format!("sizes above 0 whose product is {count}"))?;
    let rests = extents.iter().filter(|&&extent| extent == Extent::Rest).count();
    let fits = match rests {
        0 => known == count,
        1 => count.is_multiple_of(known),
        _ => false,
    };
    if !fits {
        return Err(format!(
            "{count} elements and at most one open dimension, asked for {extents:?}"
        ));
    }
    let resolve = |extent: &Extent| match extent {
        Extent::Size(size) => *size,
        Extent::Rest => count / known,
    };
    Ok(extents.iter().map(resolve).collect())
}

fn concat(axis: usize, shapes: &Shapes<'_>) -> Option<Vec<usize>> {
    let mut result = shapes.first()?.to_vec();
    if axis >= result.len() {
        return None;
    }
    for shape in &shapes[1..] {
        let agrees = shape.len() == result.len()
            && (0..shape.len())
                .all(|dimension| dimension == axis || shape[dimension] == result[dimension]);
        if !agrees {
            return None;
        }
        result[axis] = result[axis].checked_add(shape[axis])?;
    }
    Some(result)
}
