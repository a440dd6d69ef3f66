//! From a graph to steps: aliases found, biases and activations fused into the products before them.

use super::kernels::convolution::Geometry as Convolution;
use super::kernels::layout::{self, Axis};
use super::kernels::statistics::Groups;
use super::kernels::window::Geometry as Window;
use super::pattern::Pattern;
use super::step::{Epilogue, Kernel, Product, ProductAlgorithm};
use crate::graph::{Graph, Named, Node, NodeId};
use crate::op::{Binary, Op, Unary};
use crate::stress::Ward;

/// Where a step finds an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In a buffer of the arena.
    Buffer(usize),
    /// In the parameter store, by position in the program's list.
    Parameter(usize),
}

/// A loop with its operands and the buffer it fills.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) kernel: Kernel,
    pub(super) operands: Vec<Source>,
    pub(super) out: usize,
}

/// A value with a name from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) buffer: usize,
}

/// What a plan does, before its memory is laid out.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    /// Length of each buffer in elements.
    pub(super) buffers: Vec<usize>,
    pub(super) inputs: Vec<Port>,
    pub(super) parameters: Vec<(String, Vec<usize>)>,
    pub(super) constants: Vec<(usize, Vec<f32>)>,
    pub(super) outputs: Vec<Port>,
    pub(super) updates: Vec<Port>,
}

/// Lowers a graph in training form. One that holds a stress operator needs the ward of its quarantine.
pub(super) fn lower(graph: &Graph, ward: Option<&Ward>) -> Program {
    let mut lowering = Lowering {
        graph,
        ward,
        is_needed: needed(graph),
        tails: fusions(graph),
        values: vec![None; graph.nodes.len()],
        program: Program::default(),
    };
    for index in 0..graph.nodes.len() {
        lowering.node(NodeId(index));
    }
    lowering.finish()
}

/// Which nodes outputs and updates need for their data, shapes being known.
fn needed(graph: &Graph) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes.len()];
    graph.outputs.iter().chain(&graph.updates).for_each(|named| needed[named.node.0] = true);
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        if needed[index] {
            data_operands(node).iter().for_each(|operand| needed[operand.0] = true);
        }
    }
    needed
}

fn data_operands(node: &Node) -> &[NodeId] {
    &node.operands[..node.op.data_operands(node.operands.len())]
}

/// A product whose bias and activation are done with it.
#[derive(Debug, Clone, Copy)]
struct Fusion {
    head: NodeId,
    bias: Option<NodeId>,
    activation: Option<Unary>,
}

/// What is to be done at a node that takes part in a fusion.
#[derive(Debug, Clone, Copy)]
enum Tail {
    /// Its value is needed by the next node of the fusion only: nothing.
    Inner,
    /// All of it.
    End(Fusion),
}

/// For each node the fusion it is part of.
fn fusions(graph: &Graph) -> Vec<Option<Tail>> {
    let consumer = sole_consumers(graph);
    let mut tails = vec![None; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        if !matches!(node.op, Op::MatMul { .. } | Op::Conv2d(_)) {
            continue;
        }
        let mut fusion = Fusion { head: NodeId(index), bias: None, activation: None };
        let mut end = NodeId(index);
        if let Some(next) = consumer[end.0]
            && let Some(bias) = bias_of(graph, end, next)
        {
            tails[end.0] = Some(Tail::Inner);
            (fusion.bias, end) = (Some(bias), next);
        }
        if let Some(next) = consumer[end.0]
            && let Op::Unary(function) = graph.nodes[next.0].op
        {
            tails[end.0] = Some(Tail::Inner);
            (fusion.activation, end) = (Some(function), next);
        }
        tails[end.0] = Some(Tail::End(fusion));
    }
    tails
}

/// The one node that reads each node's data, if it is read once and is no output.
fn sole_consumers(graph: &Graph) -> Vec<Option<NodeId>> {
    let needed = needed(graph);
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().filter(|(index, _)| needed[*index]) {
        data_operands(node).iter().for_each(|operand| readers[operand.0].push(NodeId(index)));
    }
    let mut sole: Vec<Option<NodeId>> = readers
        .iter()
        .map(|readers| if let [one] = readers[..] { Some(one) } else { None })
        .collect();
    graph.outputs.iter().chain(&graph.updates).for_each(|named| sole[named.node.0] = None);
    sole
}

/// The other operand of `sum`, if it adds a bias to the product: one value per column or, for convolutions, channel.
fn bias_of(graph: &Graph, product: NodeId, sum: NodeId) -> Option<NodeId> {
    let node = &graph.nodes[sum.0];
    let (Op::Binary(Binary::Add), &[a, b]) = (&node.op, &node.operands[..]) else {
        return None;
    };
    let bias = if a == product { b } else { a };
    let shape = graph.shape(product);
    if node.shape != shape {
        return None;
    }
    let expected = match graph.nodes[product.0].op {
        Op::Conv2d(_) => Pattern::Cycle { inner: shape[2] * shape[3], count: shape[1] },
        _ => Pattern::Cycle { inner: 1, count: shape[shape.len() - 1] },
    };
    let fits = Pattern::new(graph.shape(bias), shape) == expected;
    fits.then_some(bias)
}

struct Lowering<'a> {
    graph: &'a Graph,
    ward: Option<&'a Ward>,
    is_needed: Vec<bool>,
    tails: Vec<Option<Tail>>,
    values: Vec<Option<Source>>,
    program: Program,
}

impl Lowering<'_> {
    fn node(&mut self, id: NodeId) {
        let graph = self.graph;
        let node = &graph.nodes[id.0];
        if !self.is_needed[id.0] {
            return;
        }
        let value = match self.tails[id.0] {
            Some(Tail::Inner) => return,
            Some(Tail::End(fusion)) => self.fused(fusion, node),
            None => self.plain(node),
        };
        self.values[id.0] = Some(value);
    }

    fn value(&self, id: NodeId) -> Source {
        self.values[id.0].expect("operands come before their node, and needed ones have a value")
    }

    fn buffer(&mut self, len: usize) -> usize {
        self.program.buffers.push(len);
        self.program.buffers.len() - 1
    }

    fn emit(&mut self, kernel: Kernel, operands: Vec<Source>, len: usize) -> Source {
        let out = self.buffer(len);
        self.program.steps.push(Step { kernel, operands, out });
        Source::Buffer(out)
    }

    fn fused(&mut self, fusion: Fusion, end: &Node) -> Source {
        let graph = self.graph;
        let head = &graph.nodes[fusion.head.0];
        let epilogue = Epilogue { has_bias: fusion.bias.is_some(), activation: fusion.activation };
        let (a, b) = (graph.shape(head.operands[0]), graph.shape(head.operands[1]));
        let kernel = match &head.op {
            Op::MatMul { transpose_a, transpose_b } => Kernel::Product(
                product_sizes(a, *transpose_a, b, *transpose_b, &head.shape),
                epilogue,
            ),
            Op::Conv2d(conv) => {
                Kernel::Convolution(Convolution::new(*conv, a, b, &head.shape), epilogue)
            }
            other => unreachable!("only products are fused, not {}", other.name()),
        };
        let mut operands: Vec<Source> =
            head.operands.iter().map(|&operand| self.value(operand)).collect();
        operands.extend(fusion.bias.map(|bias| self.value(bias)));
        self.emit(kernel, operands, end.shape.iter().product())
    }

    fn plain(&mut self, node: &Node) -> Source {
        let len = node.shape.iter().product();
        match &node.op {
            Op::Input { name, .. } => {
                let buffer = self.buffer(len);
                self.program.inputs.push(Port {
                    name: name.clone(),
                    shape: node.shape.clone(),
                    buffer,
                });
                Source::Buffer(buffer)
            }
            Op::Parameter { name, .. } => {
                self.program.parameters.push((name.clone(), node.shape.clone()));
                Source::Parameter(self.program.parameters.len() - 1)
            }
            Op::Constant(tensor) => {
                let buffer = self.buffer(len);
                self.program.constants.push((buffer, tensor.data().to_vec()));
                Source::Buffer(buffer)
            }
            op => {
                let operands: Vec<Source> =
                    data_operands(node).iter().map(|&operand| self.value(operand)).collect();
                match self.kernel(op, node) {
                    Some(kernel) => self.emit(kernel, operands, len),
                    None => operands[0],
                }
            }
        }
    }

    /// The loop for an operator, `None` where its result is its first operand as it lies there.
    fn kernel(&self, op: &Op, node: &Node) -> Option<Kernel> {
        let shape = |position: usize| self.graph.shape(node.operands[position]);
        let last = |shape: &[usize]| shape[shape.len() - 1];
        Some(match op {
            Op::Input { .. } | Op::Parameter { .. } | Op::Constant(_) => {
                unreachable!("sources have no loop")
            }
            Op::MatMul { .. } | Op::Conv2d(_) => {
                unreachable!("every product ends a fusion, if only its own")
            }
            Op::Unary(function) => Kernel::Unary(*function),
            Op::UnaryGradient(function) => Kernel::UnaryGradient(*function),
            Op::Binary(function) => {
                let [a, b] = [0, 1].map(|position| Pattern::new(shape(position), &node.shape));
                Kernel::Binary(*function, a, b)
            }
            Op::Conv2dInputGradient(conv) => Kernel::ConvolutionInputGradient(Convolution::new(
                *conv,
                shape(2),
                shape(1),
                shape(0),
            )),
            Op::Conv2dWeightGradient(conv) => Kernel::ConvolutionWeightGradient(Convolution::new(
                *conv,
                shape(0),
                shape(2),
                shape(1),
            )),
            Op::MaxPool(pool) => Kernel::MaxPool(Window::new(*pool, shape(0), &node.shape)),
            Op::MaxPoolPick(pool) => Kernel::MaxPoolPick(Window::new(*pool, shape(0), &node.shape)),
            Op::MaxPoolGradient(pool) => {
                Kernel::MaxPoolGradient(Window::new(*pool, shape(0), shape(1)))
            }
            Op::AvgPool(pool) => Kernel::AvgPool(Window::new(*pool, shape(0), &node.shape)),
            Op::AvgPoolGradient(pool) => {
                Kernel::AvgPoolGradient(Window::new(*pool, &node.shape, shape(0)))
            }
            Op::Softmax => Kernel::Softmax(last(&node.shape)),
            Op::LogSoftmax => Kernel::LogSoftmax(last(&node.shape)),
            Op::Normalise(attributes) => Kernel::Normalise(groups(attributes, &node.shape)),
            Op::NormaliseGradient(attributes) => {
                Kernel::NormaliseGradient(groups(attributes, &node.shape))
            }
            Op::Dropout { rate, stream } => Kernel::Dropout { rate: *rate, stream: *stream },
            Op::Phase | Op::StopGradient | Op::Reshape(_) | Op::ReshapeLike => return None,
            Op::Gather => Kernel::Gather { rows: shape(0)[0] },
            Op::ScatterAdd => Kernel::ScatterAdd { rows: node.shape[0] },
            Op::Permute(order) => {
                let places = layout::permutation(shape(0), order);
                if let [] | [(_, 1)] = places[..] {
                    return None;
                }
                Kernel::Permute(places)
            }
            Op::Concat { axis } => Kernel::Concat(Axis::new(&node.shape, *axis)),
            Op::Slice { axis, start, .. } => Kernel::Slice(Axis::new(shape(0), *axis), *start),
            Op::PadLike { axis, start } => Kernel::Pad(Axis::new(&node.shape, *axis), *start),
            Op::Reduce { kind, .. } | Op::ReduceLike(kind) => {
                match Pattern::new(&node.shape, shape(0)) {
                    Pattern::Equal => return None,
                    pattern => Kernel::Reduce(*kind, pattern),
                }
            }
            Op::BroadcastLike(kind) => match Pattern::new(shape(0), &node.shape) {
                Pattern::Equal => return None,
                pattern => Kernel::Broadcast(*kind, pattern),
            },
            Op::CrossEntropy => {
                let logits = shape(0);
                Kernel::CrossEntropy { classes: last(logits), len: logits.iter().product() }
            }
            Op::CrossEntropyGradient => Kernel::CrossEntropyGradient(last(&node.shape)),
            Op::Stress(stress) => {
                let ward = self.ward.expect("a stressed graph is lowered in quarantine only");
                Kernel::Stress(*stress, ward.clone())
            }
        })
    }

    fn finish(mut self) -> Program {
        let (outputs, updates) = (self.graph.outputs.clone(), self.graph.updates.clone());
        self.program.outputs = outputs.iter().map(|named| self.port(named)).collect();
        self.program.updates = updates.iter().map(|named| self.port(named)).collect();
        self.program
    }

    /// A buffer for a value that is read after the run; a parameter is copied.
    fn port(&mut self, named: &Named) -> Port {
        let shape = self.graph.shape(named.node).to_vec();
        let source = self.value(named.node);
        let buffer = match source {
            Source::Buffer(buffer) => buffer,
            Source::Parameter(_) => {
                let len = shape.iter().product();
                let out = self.buffer(len);
                self.program.steps.push(Step { kernel: Kernel::Copy, operands: vec![source], out });
                out
            }
        };
        Port { name: named.name.clone(), shape, buffer }
    }
}

/// A second operand of rank 2 is shared by all rows of the first, whatever its leading dimensions.
fn product_sizes(
    a: &[usize],
    transpose_a: bool,
    b: &[usize],
    transpose_b: bool,
    result: &[usize],
) -> Product {
    let columns = result[result.len() - 1];
    let inner = if transpose_a { a[a.len() - 2] } else { a[a.len() - 1] };
    let all_rows: usize = result[..result.len() - 1].iter().product();
    let (batch, rows) = if b.len() == 2 {
        (1, all_rows)
    } else {
        let rows = result[result.len() - 2];
        (all_rows / rows, rows)
    };
    Product {
        batch,
        rows,
        columns,
        inner,
        transpose_a,
        transpose_b,
        algorithm: ProductAlgorithm::Gemm,
    }
}

fn groups(attributes: &crate::op::Normalise, shape: &[usize]) -> Groups {
    let mut small = shape.to_vec();
    attributes.axes.iter().for_each(|&axis| small[axis] = 1);
    Groups {
        norm: attributes.norm,
        epsilon: attributes.epsilon,
        pattern: Pattern::new(&small, shape),
        count: small.iter().product(),
    }
}
