//! From a graph to steps: each node's loop with its buffers, as `fuse` has found it to be done.

use super::fuse::{Fusion, Operand, Reading, Role};
use super::kernels::chain::{Argument, Chain, Deed, Leaf};
use super::kernels::convolution::Geometry as Convolution;
use super::kernels::layout::{self, Axis};
use super::kernels::statistics::Groups;
use super::kernels::window::Geometry as Window;
use super::pattern::Pattern;
use super::step::{Epilogue, Kernel, Product, ProductAlgorithm};
use crate::graph::{Graph, Named, Node, NodeId};
use crate::op::{Op, Reduction, Unary};
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
    pub(super) tail: Option<Tail>,
}

/// A chain over the result of a loop, in place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tail {
    /// How many of the step's operands, the first ones, are the loop's own.
    pub(super) operands: usize,
    pub(super) chain: Chain,
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
        reading: Reading::new(graph),
        values: vec![None; graph.nodes.len()],
        program: Program::default(),
    };
    for index in 0..graph.nodes.len() {
        lowering.node(NodeId(index));
    }
    lowering.finish()
}

struct Lowering<'a> {
    graph: &'a Graph,
    ward: Option<&'a Ward>,
    reading: Reading<'a>,
    values: Vec<Option<Source>>,
    program: Program,
}

impl Lowering<'_> {
    fn node(&mut self, id: NodeId) {
        if !self.reading.is_needed(id) || self.reading.is_headed(id) {
            return;
        }
        let value = match self.reading.role(id) {
            Role::Inner => return,
            Role::Chain { head } => self.chain(id, head),
            Role::Own | Role::Product(_) => match self.source(id) {
                Some(source) => source,
                None => {
                    let (kernel, operands) = self.step(id);
                    self.emit(kernel, operands, self.len(id))
                }
            },
        };
        self.values[id.0] = Some(value);
    }

    fn len(&self, id: NodeId) -> usize {
        self.graph.shape(id).iter().product()
    }

    fn value(&self, id: NodeId) -> Source {
        let id = self.reading.resolve(id);
        self.values[id.0].expect("operands come before their node, and needed ones have a value")
    }

    fn buffer(&mut self, len: usize) -> usize {
        self.program.buffers.push(len);
        self.program.buffers.len() - 1
    }

    fn emit(&mut self, kernel: Kernel, operands: Vec<Source>, len: usize) -> Source {
        self.emit_with(kernel, operands, len, None)
    }

    fn emit_with(
        &mut self,
        kernel: Kernel,
        operands: Vec<Source>,
        len: usize,
        tail: Option<Tail>,
    ) -> Source {
        let out = self.buffer(len);
        self.program.steps.push(Step { kernel, operands, out, tail });
        Source::Buffer(out)
    }

    /// The loop of a node with what it reads.
    fn step(&self, id: NodeId) -> (Kernel, Vec<Source>) {
        if let Role::Product(fusion) = self.reading.role(id) {
            return self.product(fusion);
        }
        let values = |operands: &[Operand]| {
            operands.iter().map(|operand| self.value(operand.node)).collect()
        };
        let operands = values(self.reading.operands(id));
        let kernel = match self.reading.composite(id) {
            Some(composite) => Kernel::Composite(composite.clone()),
            None => self.kernel(&self.graph.nodes[id.0]),
        };
        (kernel, operands)
    }

    fn product(&self, fusion: Fusion) -> (Kernel, Vec<Source>) {
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
        (kernel, operands)
    }

    /// A chain of elementwise operators, behind the loop of `head` if there is one.
    fn chain(&mut self, end: NodeId, head: Option<NodeId>) -> Source {
        let (head_kernel, mut operands) = match head {
            Some(head) => {
                let (kernel, operands) = self.step(head);
                (Some(kernel), operands)
            }
            None => (None, Vec::new()),
        };
        let head_operands = operands.len();
        let mut chain = Chain::default();
        self.deed(end, head, &mut chain, &mut operands);
        let len = self.len(end);
        match head_kernel {
            Some(kernel) => {
                let tail = Tail { operands: head_operands, chain };
                self.emit_with(kernel, operands, len, Some(tail))
            }
            None => self.emit(Kernel::Chain(chain), operands, len),
        }
    }

    /// Adds the operation of an elementwise node, after those it needs.
    fn deed(
        &self,
        id: NodeId,
        head: Option<NodeId>,
        chain: &mut Chain,
        operands: &mut Vec<Source>,
    ) -> Argument {
        let node = &self.graph.nodes[id.0];
        let reading = self.reading.operands(id);
        let read = |operand: &Operand, chain: &mut Chain, operands: &mut Vec<Source>| {
            if Some(operand.node) == head {
                return add_leaf(chain, Leaf::Out);
            }
            if self.reading.is_folded(operand.node) {
                return self.deed(operand.node, head, chain, operands);
            }
            let position = position_of(operands, self.value(operand.node));
            let pattern = Pattern::new(&operand.shape, &node.shape);
            add_leaf(chain, Leaf::Operand(position, pattern))
        };
        let deed = match &node.op {
            Op::Unary(function) => Deed::Unary(*function, read(&reading[0], chain, operands)),
            Op::UnaryGradient(function) => {
                let v = read(&reading[0], chain, operands);
                Deed::UnaryGradient(*function, v, read(&reading[1], chain, operands))
            }
            Op::Binary(function) => {
                let a = read(&reading[0], chain, operands);
                Deed::Binary(*function, a, read(&reading[1], chain, operands))
            }
            Op::Dropout { rate, stream } => {
                let x = read(&reading[0], chain, operands);
                let seed = position_of(operands, self.value(reading[1].node));
                Deed::Dropout { rate: *rate, stream: *stream, x, seed }
            }
            Op::BroadcastLike(kind) => {
                let x = read(&reading[0], chain, operands);
                let share = match kind {
                    Reduction::Sum => return x,
                    Reduction::Mean => 1.0 / (self.len(id) / self.len(reading[0].node)) as f32,
                };
                Deed::Unary(Unary::Scale { factor: share }, x)
            }
            other => unreachable!("{} is not elementwise", other.name()),
        };
        chain.deeds.push(deed);
        Argument::Result(chain.deeds.len() - 1)
    }

    /// The value of a node that no loop computes.
    fn source(&mut self, id: NodeId) -> Option<Source> {
        let node = &self.graph.nodes[id.0];
        let len = self.len(id);
        match &node.op {
            Op::Input { name, .. } => {
                let buffer = self.buffer(len);
                self.program.inputs.push(Port {
                    name: name.clone(),
                    shape: node.shape.clone(),
                    buffer,
                });
                Some(Source::Buffer(buffer))
            }
            Op::Parameter { name, .. } => {
                self.program.parameters.push((name.clone(), node.shape.clone()));
                Some(Source::Parameter(self.program.parameters.len() - 1))
            }
            Op::Constant(tensor) => {
                let buffer = self.buffer(len);
                self.program.constants.push((buffer, tensor.data().to_vec()));
                Some(Source::Buffer(buffer))
            }
            _ => None,
        }
    }

    /// The loop for an operator alone.
    fn kernel(&self, node: &Node) -> Kernel {
        let op = &node.op;
        let shape = |position: usize| self.graph.shape(node.operands[position]);
        let last = |shape: &[usize]| shape[shape.len() - 1];
        match op {
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
            Op::Normalise(attributes) => Kernel::Normalise(Groups::new(attributes, &node.shape)),
            Op::NormaliseGradient(attributes) => {
                Kernel::NormaliseGradient(Groups::new(attributes, &node.shape))
            }
            Op::Dropout { rate, stream } => Kernel::Dropout { rate: *rate, stream: *stream },
            Op::Phase | Op::StopGradient | Op::Reshape(_) | Op::ReshapeLike => {
                unreachable!("aliases have no loop")
            }
            Op::Gather => Kernel::Gather { rows: shape(0)[0] },
            Op::ScatterAdd => Kernel::ScatterAdd { rows: node.shape[0] },
            Op::Permute(order) => Kernel::Permute(layout::permutation(shape(0), order)),
            Op::Concat { axis } => Kernel::Concat(Axis::new(&node.shape, *axis)),
            Op::Slice { axis, start, .. } => Kernel::Slice(Axis::new(shape(0), *axis), *start),
            Op::PadLike { axis, start } => Kernel::Pad(Axis::new(&node.shape, *axis), *start),
            Op::Reduce { kind, .. } | Op::ReduceLike(kind) => {
                Kernel::Reduce(*kind, Pattern::new(&node.shape, shape(0)))
            }
            Op::BroadcastLike(kind) => {
                Kernel::Broadcast(*kind, Pattern::new(shape(0), &node.shape))
            }
            Op::CrossEntropy => {
                let logits = shape(0);
                Kernel::CrossEntropy { classes: last(logits), len: logits.iter().product() }
            }
            Op::CrossEntropyGradient => Kernel::CrossEntropyGradient(last(&node.shape)),
            Op::Stress(stress) => {
                let ward = self.ward.expect("a stressed graph is lowered in quarantine only");
                Kernel::Stress(*stress, ward.clone())
            }
        }
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
                self.program.steps.push(Step {
                    kernel: Kernel::Copy,
                    operands: vec![source],
                    out,
                    tail: None,
                });
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

fn add_leaf(chain: &mut Chain, leaf: Leaf) -> Argument {
    let known = chain.leaves.iter().position(|known| *known == leaf);
    Argument::Leaf(known.unwrap_or_else(|| {
        chain.leaves.push(leaf);
        chain.leaves.len() - 1
    }))
}

fn position_of(operands: &mut Vec<Source>, source: Source) -> usize {
    let known = operands.iter().position(|known| *known == source);
    known.unwrap_or_else(|| {
        operands.push(source);
        operands.len() - 1
    })
}
