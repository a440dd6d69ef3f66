//! What a lowering does with each node: alone, as part of another step, or not at all.
//!
//! Four things are found, in this order. *Aliases*: a node whose elements are those of its operand as they lie.
//! *Composites*: gradients written in several operators that one loop computes. *Tails*: the bias and activation that
//! a product does itself. *Chains*: elementwise operators that follow each other, or follow another loop, in one pass.

use super::kernels::layout;
use super::kernels::statistics::Groups;
use super::pattern::Pattern;
use crate::graph::{Graph, Node, NodeId};
use crate::op::{Binary, Normalise, Op, Reduction, Unary};

/// Most operations in one chain; each has a block in the first-level cache.
const CHAIN_DEEDS_MAX: usize = 12;

/// Elements from which on a lone elementwise operator takes its operand's place: below, a plain loop is faster than a
/// chain of one; above, memory that need not be fetched counts for more.
const IN_PLACE_LEN_MIN: usize = 1 << 14;

/// A value a node reads: the node that computes it, and the shape in which it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) node: NodeId,
    pub(super) shape: Vec<usize>,
}

/// A gradient that one loop computes out of its operands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Composite {
    /// Of `(result, gradient)`, over rows of this many classes.
    Softmax(usize),
    /// Of `(result, gradient)`, over rows of this many classes.
    LogSoftmax(usize),
    /// Of `(x, gradient, weight)`: [`Op::NormaliseGradient`] of rows that are scaled afterwards.
    ScaledNormalise(Groups),
    /// Of `(x, gradient)`: of the weight that scales normalised rows.
    NormaliseWeight(Groups),
}

/// A product whose bias and activation are done with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fusion {
    pub(super) head: NodeId,
    pub(super) bias: Option<NodeId>,
    pub(super) activation: Option<Unary>,
}

/// What is to be done at a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// Its own loop.
    Own,
    /// A product with bias and activation.
    Product(Fusion),
    /// Part of what a later node does: nothing.
    Inner,
    /// The end of a chain, behind the loop of `head` if there is one.
    Chain { head: Option<NodeId> },
}

/// Everything found about a graph.
pub(super) struct Reading<'a> {
    graph: &'a Graph,
    resolved: Vec<NodeId>,
    operands: Vec<Vec<Operand>>,
    composites: Vec<Option<Composite>>,
    needed: Vec<bool>,
    sole: Vec<Option<NodeId>>,
    roles: Vec<Role>,
    folded: Vec<bool>,
    headed: Vec<bool>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        let mut resolved: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
        for (index, node) in graph.nodes.iter().enumerate() {
            resolved.push(alias_of(graph, node).map_or(NodeId(index), |of| resolved[of.0]));
        }
        let operand =
            |id: NodeId| Operand { node: resolved[id.0], shape: graph.shape(id).to_vec() };
        let operands = graph
            .nodes
            .iter()
            .map(|node| data_operands(node).iter().map(|&id| operand(id)).collect())
            .collect();
        let nothing = vec![None; graph.nodes.len()];
        let mut reading = Self {
            graph,
            resolved,
            operands,
            composites: nothing,
            needed: Vec::new(),
            sole: Vec::new(),
            roles: vec![Role::Own; graph.nodes.len()],
            folded: vec![false; graph.nodes.len()],
            headed: vec![false; graph.nodes.len()],
        };
        reading.find_composites();
        reading.find_readers();
        reading.find_tails();
        reading.find_chains();
        reading
    }

    /// The node that computes a value.
    pub(super) fn resolve(&self, id: NodeId) -> NodeId {
        self.resolved[id.0]
    }

    /// What a node's loop reads.
    pub(super) fn operands(&self, id: NodeId) -> &[Operand] {
        &self.operands[id.0]
    }

    /// The loop that takes the place of the node's own.
    pub(super) fn composite(&self, id: NodeId) -> Option<&Composite> {
        self.composites[id.0].as_ref()
    }

    /// Whether outputs and updates need the node's data, and it is no alias.
    pub(super) fn is_needed(&self, id: NodeId) -> bool {
        self.needed[id.0] && self.resolved[id.0] == id
    }

    pub(super) fn role(&self, id: NodeId) -> Role {
        self.roles[id.0]
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.graph.nodes[id.0]
    }

    fn find_composites(&mut self) {
        for index in 0..self.graph.nodes.len() {
            let id = NodeId(index);
            if let Some((composite, operands)) = self.composite_at(id) {
                self.composites[index] = Some(composite);
                self.operands[index] = operands;
            }
        }
    }

    fn composite_at(&self, id: NodeId) -> Option<(Composite, Vec<Operand>)> {
        match &self.node(id).op {
            Op::Binary(Binary::Mul) => self.softmax_gradient(id),
            Op::Binary(Binary::Sub) => self.log_softmax_gradient(id),
            Op::NormaliseGradient(attributes) => self.scaled_normalise_gradient(id, attributes),
            Op::Reduce { kind: Reduction::Sum, .. } | Op::ReduceLike(Reduction::Sum) => {
                self.normalise_weight_gradient(id)
            }
            _ => None,
        }
    }

    /// Both operands of an elementwise operator, if they have the shape of its result.
    fn equal_pair(&self, id: NodeId, function: Binary) -> Option<[&Operand; 2]> {
        let node = self.node(id);
        let [a, b] = &self.operands[id.0][..] else { return None };
        let fits =
            node.op == Op::Binary(function) && a.shape == node.shape && b.shape == node.shape;
        fits.then_some([a, b])
    }

    /// The operand of a sum over the last dimension that stays with size 1.
    fn row_sum(&self, sum: &Operand) -> Option<&Operand> {
        let node = self.node(sum.node);
        let Op::Reduce { kind: Reduction::Sum, axes } = &node.op else { return None };
        let [x] = &self.operands[sum.node.0][..] else { return None };
        (axes[..] == [x.shape.len().checked_sub(1)?] && sum.shape == node.shape).then_some(x)
    }

    /// `mul(y, sub(g, row_sum(mul(g, y))))`
    fn softmax_gradient(&self, id: NodeId) -> Option<(Composite, Vec<Operand>)> {
        let [a, b] = self.equal_pair(id, Binary::Mul)?;
        [(a, b), (b, a)].into_iter().find_map(|(y, centred)| {
            let Op::Binary(Binary::Sub) = self.node(centred.node).op else { return None };
            let [g, sum] = &self.operands[centred.node.0][..] else { return None };
            let product = self.row_sum(sum)?;
            let [left, right] = self.equal_pair(product.node, Binary::Mul)?;
            let is_pair = (left == g && right == y) || (left == y && right == g);
            let fits = is_pair && product.shape == y.shape && centred.shape == y.shape;
            let classes = *y.shape.last()?;
            fits.then(|| (Composite::Softmax(classes), vec![y.clone(), g.clone()]))
        })
    }

    /// `sub(g, mul(exp(y), row_sum(g)))`
    fn log_softmax_gradient(&self, id: NodeId) -> Option<(Composite, Vec<Operand>)> {
        let [g, along] = self.equal_pair(id, Binary::Sub)?;
        let Op::Binary(Binary::Mul) = self.node(along.node).op else { return None };
        let [probability, sum] = &self.operands[along.node.0][..] else { return None };
        let Op::Unary(Unary::Exp) = self.node(probability.node).op else { return None };
        let [y] = &self.operands[probability.node.0][..] else { return None };
        let fits = self.row_sum(sum)? == g && y.shape == g.shape && probability.shape == g.shape;
        let classes = *y.shape.last()?;
        fits.then(|| (Composite::LogSoftmax(classes), vec![y.clone(), g.clone()]))
    }

    /// `normalise_gradient(x, mul(g, weight))` over rows
    fn scaled_normalise_gradient(
        &self,
        id: NodeId,
        attributes: &Normalise,
    ) -> Option<(Composite, Vec<Operand>)> {
        let [x, scaled] = &self.operands[id.0][..] else { return None };
        let groups = Groups::new(attributes, &x.shape);
        let width = groups.row(x.shape.iter().product())?;
        let Op::Binary(Binary::Mul) = self.node(scaled.node).op else { return None };
        let [a, b] = &self.operands[scaled.node.0][..] else { return None };
        let by_row = Pattern::Cycle { inner: 1, count: width };
        [(a, b), (b, a)].into_iter().find_map(|(g, weight)| {
            let fits =
                g.shape == scaled.shape && Pattern::new(&weight.shape, &scaled.shape) == by_row;
            let operands = || vec![x.clone(), g.clone(), weight.clone()];
            fits.then(|| (Composite::ScaledNormalise(groups.clone()), operands()))
        })
    }

    /// `sum over rows of mul(g, normalise(x))`
    fn normalise_weight_gradient(&self, id: NodeId) -> Option<(Composite, Vec<Operand>)> {
        let [product] = &self.operands[id.0][..] else { return None };
        let [a, b] = self.equal_pair(product.node, Binary::Mul)?;
        [(a, b), (b, a)].into_iter().find_map(|(g, normalised)| {
            let Op::Normalise(attributes) = &self.node(normalised.node).op else { return None };
            let [x] = &self.operands[normalised.node.0][..] else { return None };
            let groups = Groups::new(attributes, &x.shape);
            let width = groups.row(x.shape.iter().product())?;
            let pattern = Pattern::new(&self.node(id).shape, &product.shape);
            let fits = pattern == Pattern::Cycle { inner: 1, count: width };
            let operands = || vec![x.clone(), g.clone()];
            fits.then(|| (Composite::NormaliseWeight(groups), operands()))
        })
    }

    fn find_readers(&mut self) {
        let count = self.graph.nodes.len();
        let named = || self.graph.outputs.iter().chain(&self.graph.updates);
        let mut needed = vec![false; count];
        named().for_each(|named| needed[self.resolved[named.node.0].0] = true);
        let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); count];
        for index in (0..count).rev() {
            if needed[index] {
                for operand in &self.operands[index] {
                    needed[operand.node.0] = true;
                    readers[operand.node.0].push(NodeId(index));
                }
            }
        }
        let sole = |readers: &Vec<NodeId>| if let [one] = readers[..] { Some(one) } else { None };
        self.sole = readers.iter().map(sole).collect();
        for named in self.graph.outputs.iter().chain(&self.graph.updates) {
            self.sole[self.resolved[named.node.0].0] = None;
        }
        self.needed = needed;
    }

    /// For each product the bias and activation it does itself.
    fn find_tails(&mut self) {
        for index in 0..self.graph.nodes.len() {
            let head = NodeId(index);
            let is_product = matches!(self.node(head).op, Op::MatMul { .. } | Op::Conv2d(_));
            if !is_product || !self.needed[index] {
                continue;
            }
            let mut fusion = Fusion { head, bias: None, activation: None };
            let mut end = head;
            if let Some(next) = self.sole[end.0]
                && let Some(bias) = self.bias_of(end, next)
            {
                self.roles[end.0] = Role::Inner;
                (fusion.bias, end) = (Some(bias), next);
            }
            if let Some(next) = self.sole[end.0]
                && let Op::Unary(function) = self.node(next).op
            {
                self.roles[end.0] = Role::Inner;
                (fusion.activation, end) = (Some(function), next);
            }
            self.roles[end.0] = Role::Product(fusion);
        }
    }

    /// The other operand of `sum`, if it adds a bias to the product: one value per column or, for convolutions,
    /// channel.
    fn bias_of(&self, product: NodeId, sum: NodeId) -> Option<NodeId> {
        let node = self.node(sum);
        let (Op::Binary(Binary::Add), [a, b]) = (&node.op, &self.operands[sum.0][..]) else {
            return None;
        };
        let (own, bias) = if a.node == product { (a, b) } else { (b, a) };
        let shape = &self.node(product).shape;
        if node.shape != own.shape || own.shape != *shape {
            return None;
        }
        let expected = match self.node(product).op {
            Op::Conv2d(_) => Pattern::Cycle { inner: shape[2] * shape[3], count: shape[1] },
            _ => Pattern::Cycle { inner: 1, count: shape[shape.len() - 1] },
        };
        (Pattern::new(&bias.shape, shape) == expected).then_some(bias.node)
    }

    fn len(&self, id: NodeId) -> usize {
        self.node(id).shape.iter().product()
    }

    /// Whether a node may be part of a chain.
    fn is_elementwise(&self, id: NodeId) -> bool {
        let is_plain = matches!(self.roles[id.0], Role::Own) && self.composites[id.0].is_none();
        is_plain
            && matches!(
                self.node(id).op,
                Op::Unary(_)
                    | Op::UnaryGradient(_)
                    | Op::Binary(_)
                    | Op::Dropout { .. }
                    | Op::BroadcastLike(_)
            )
    }

    /// The one reader of a node, if it reads it element by element and is elementwise itself.
    fn chained_reader(&self, id: NodeId) -> Option<NodeId> {
        let reader = self.sole[id.0].filter(|&reader| self.is_elementwise(reader))?;
        let is_whole = self.operands[reader.0]
            .iter()
            .enumerate()
            .find(|(_, operand)| operand.node == id)
            .is_some_and(|(position, operand)| match self.node(reader).op {
                Op::Dropout { .. } => position == 0,
                Op::BroadcastLike(_) => false,
                _ => operand.shape == self.node(reader).shape,
            });
        (is_whole && self.len(id) == self.len(reader)).then_some(reader)
    }

    fn find_chains(&mut self) {
        let count = self.graph.nodes.len();
        // The end of the chain each elementwise node belongs to, found from the back.
        let mut ends: Vec<NodeId> = (0..count).map(NodeId).collect();
        let mut sizes = vec![1_usize; count];
        let mut folded = vec![false; count];
        for index in (0..count).rev() {
            let id = NodeId(index);
            if !self.is_needed(id) || !self.is_elementwise(id) {
                continue;
            }
            if let Some(reader) = self.chained_reader(id) {
                let end = ends[reader.0];
                if sizes[end.0] < CHAIN_DEEDS_MAX {
                    ends[index] = end;
                    sizes[end.0] += 1;
                    folded[index] = true;
                }
            }
        }
        let mut heads: Vec<Option<NodeId>> = vec![None; count];
        for index in 0..count {
            let id = NodeId(index);
            let is_source = matches!(
                self.node(id).op,
                Op::Input { .. } | Op::Parameter { .. } | Op::Constant(_) | Op::Stress(_)
            );
            let is_loop = matches!(self.roles[index], Role::Own | Role::Product(_));
            if is_source || !is_loop || !self.is_needed(id) || self.is_elementwise(id) {
                continue;
            }
            if let Some(reader) = self.chained_reader(id)
                && heads[ends[reader.0].0].is_none()
            {
                heads[ends[reader.0].0] = Some(id);
            }
        }
        for index in 0..count {
            if folded[index] {
                self.roles[index] = Role::Inner;
            } else if sizes[index] > 1 || heads[index].is_some() || self.uses_up(NodeId(index)) {
                self.roles[index] = Role::Chain { head: heads[index] };
            }
            if let Some(head) = heads[index] {
                self.headed[head.0] = true;
            }
        }
        self.folded = folded;
    }

    /// Whether a single elementwise node is the last to read a large operand, whose place it can take as a chain.
    fn uses_up(&self, id: NodeId) -> bool {
        let is_candidate = self.is_needed(id)
            && self.is_elementwise(id)
            && !matches!(self.node(id).op, Op::BroadcastLike(_))
            && self.len(id) >= IN_PLACE_LEN_MIN;
        is_candidate
            && self.operands[id.0].iter().any(|operand| {
                let is_fixed =
                    matches!(self.node(operand.node).op, Op::Parameter { .. } | Op::Constant(_));
                self.sole[operand.node.0] == Some(id)
                    && operand.shape == self.node(id).shape
                    && !is_fixed
            })
    }

    /// Whether a node is computed within the chain that reads it, rather than read from memory.
    pub(super) fn is_folded(&self, id: NodeId) -> bool {
        self.folded[id.0]
    }

    /// Whether a node's loop is run as the head of a chain.
    pub(super) fn is_headed(&self, id: NodeId) -> bool {
        self.headed[id.0]
    }
}

fn data_operands(node: &Node) -> &[NodeId] {
    &node.operands[..node.op.data_operands(node.operands.len())]
}

/// The operand whose elements are the node's own as they lie.
fn alias_of(graph: &Graph, node: &Node) -> Option<NodeId> {
    let shape = |position: usize| graph.shape(node.operands[position]);
    let is_alias = match &node.op {
        Op::Phase | Op::StopGradient | Op::Reshape(_) | Op::ReshapeLike => true,
        Op::Permute(order) => matches!(layout::permutation(shape(0), order)[..], [] | [(_, 1)]),
        Op::Reduce { .. } | Op::ReduceLike(_) => {
            Pattern::new(&node.shape, shape(0)) == Pattern::Equal
        }
        Op::BroadcastLike(_) => Pattern::new(shape(0), &node.shape) == Pattern::Equal,
        _ => false,
    };
    is_alias.then(|| node.operands[0])
}
