//! The graph IR: nodes in order of evaluation, named outputs, updates of state.
//!
//! A graph is in *training form*: dropout drops, batch norm uses the batch's statistics, and [`Graph::updates`]
//! say which parameters are written back after a step. [`Graph::inference`] gives the other form.
//! Shapes are inferred when a node is added and when a graph is read, so a graph that exists is sound.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::error::{GraphError, Unfit};
use crate::op::Op;
use crate::shape::infer;
use crate::tensor::{Params, Tensor};

/// Most nodes in one graph. A deep network with its gradient has some ten thousand.
pub const NODES_MAX: usize = 100_000;

/// Name of the scalar input that seeds dropout. Give it the step number.
pub const STEP_INPUT: &str = "step";

/// A node of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub(crate) usize);

impl NodeId {
    /// Position in [`Graph::nodes`].
    pub const fn index(self) -> usize {
        self.0
    }
}

/// An operator, the nodes it takes and the shape of its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub(crate) op: Op,
    pub(crate) operands: Vec<NodeId>,
    pub(crate) shape: Vec<usize>,
}

impl Node {
    /// The operator.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// The operands, in the operator's order.
    pub fn operands(&self) -> &[NodeId] {
        &self.operands
    }

    /// Shape of the result.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// A named value of the graph: one of its outputs, or a new value for a parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Name of the output, or of the parameter to update.
    pub name: String,
    /// The node that computes it.
    pub node: NodeId,
}

/// A computation over named inputs and parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawGraph", into = "RawGraph")]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<Named>,
    pub(crate) updates: Vec<Named>,
    inputs: BTreeMap<String, NodeId>,
    parameters: BTreeMap<String, NodeId>,
    streams: u32,
}

/// The graph as it is written: shapes are left out, they follow.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGraph {
    nodes: Vec<RawNode>,
    outputs: Vec<Named>,
    updates: Vec<Named>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    op: Op,
    operands: Vec<NodeId>,
}

impl TryFrom<RawGraph> for Graph {
    type Error = GraphError;

    fn try_from(raw: RawGraph) -> Result<Self, GraphError> {
        let mut graph = Self::new();
        for node in raw.nodes {
            graph.push(node.op, &node.operands)?;
        }
        for output in raw.outputs {
            graph.output(&output.name, output.node)?;
        }
        for update in raw.updates {
            graph.update(&update.name, update.node)?;
        }
        Ok(graph)
    }
}

impl From<Graph> for RawGraph {
    fn from(graph: Graph) -> Self {
        let nodes = graph.nodes.into_iter();
        Self {
            nodes: nodes.map(|node| RawNode { op: node.op, operands: node.operands }).collect(),
            outputs: graph.outputs,
            updates: graph.updates,
        }
    }
}

impl Graph {
    /// A graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// All nodes, each after its operands.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Shape of a node's result.
    ///
    /// # Panics
    /// When the node belongs to another, larger graph.
    pub fn shape(&self, node: NodeId) -> &[usize] {
        &self.nodes[node.0].shape
    }

    /// The outputs in the order in which they were added.
    pub fn outputs(&self) -> &[Named] {
        &self.outputs
    }

    /// The node of an output.
    ///
    /// # Errors
    /// [`GraphError::UnknownName`] when there is no such output.
    pub fn output_node(&self, name: &str) -> Result<NodeId, GraphError> {
        let found = self.outputs.iter().find(|output| output.name == name);
        found.map(|output| output.node).ok_or_else(|| GraphError::UnknownName {
            kind: "output",
            name: name.to_owned(),
            known: self.outputs.iter().map(|output| output.name.clone()).collect(),
        })
    }

    /// Parameters to be overwritten after each step, with the nodes of their new values.
    pub fn updates(&self) -> &[Named] {
        &self.updates
    }

    /// Inputs by name, with the shape each expects.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|(name, &node)| (name.as_str(), self.shape(node)))
    }

    /// Parameters by name, with their shapes; trainable or not.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.parameters.iter().map(|(name, &node)| (name.as_str(), self.shape(node)))
    }

    /// Names of the parameters an optimiser may change, in name order.
    pub fn trainable(&self) -> impl Iterator<Item = &str> {
        let trainable =
            |node: NodeId| matches!(self.nodes[node.0].op, Op::Parameter { trainable: true, .. });
        self.parameters
            .iter()
            .filter(move |(_, node)| trainable(**node))
            .map(|(name, _)| name.as_str())
    }

    /// The name of a stress operator of this graph, if it holds one: it then runs in quarantine only.
    pub fn stress(&self) -> Option<&'static str> {
        self.nodes.iter().find_map(|node| match node.op {
            Op::Stress(stress) => Some(stress.name()),
            _ => None,
        })
    }

    /// Number of scalars in all parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The node of an input.
    pub fn input_node(&self, name: &str) -> Option<NodeId> {
        self.inputs.get(name).copied()
    }

    /// The node of a parameter.
    pub fn parameter_node(&self, name: &str) -> Option<NodeId> {
        self.parameters.get(name).copied()
    }

    /// Adds an operator; the one way by which nodes come to be.
    ///
    /// # Errors
    /// Any [`GraphError`] when the operands do not fit, a name is taken or a limit is passed.
    pub fn push(&mut self, op: Op, operands: &[NodeId]) -> Result<NodeId, GraphError> {
        if self.nodes.len() >= NODES_MAX {
            return Err(GraphError::TooManyNodes { limit: NODES_MAX });
        }
        for &operand in operands {
            self.check_node(operand)?;
        }
        let shapes: Vec<&[usize]> = operands.iter().map(|&operand| self.shape(operand)).collect();
        let id = NodeId(self.nodes.len());
        let shape = infer(&op, &shapes).map_err(|error| match error {
            GraphError::Shape { operator, shapes, expected } => {
                GraphError::Unfit(Box::new(Unfit {
                    operator,
                    node: id.0,
                    operands: operands.iter().map(|operand| operand.0).collect(),
                    shapes,
                    expected,
                }))
            }
            other => other,
        })?;
        self.register(&op, id)?;
        self.nodes.push(Node { op, operands: operands.to_vec(), shape });
        Ok(id)
    }

    fn register(&mut self, op: &Op, id: NodeId) -> Result<(), GraphError> {
        match op {
            Op::Input { name, .. } => claim(&mut self.inputs, "input", name, id)?,
            Op::Parameter { name, .. } => claim(&mut self.parameters, "parameter", name, id)?,
            Op::Dropout { stream, .. } => self.streams = self.streams.max(stream.saturating_add(1)),
            _ => {}
        }
        Ok(())
    }

    /// The number that tells the next dropout from those there are.
    pub(crate) fn next_stream(&self) -> u32 {
        self.streams
    }

    fn check_node(&self, node: NodeId) -> Result<(), GraphError> {
        if node.0 < self.nodes.len() {
            return Ok(());
        }
        Err(GraphError::UnknownNode { node: node.0, count: self.nodes.len() })
    }

    /// Makes a node an output called `name`.
    ///
    /// # Errors
    /// [`GraphError::Name`] when the name is empty or taken, [`GraphError::UnknownNode`].
    pub fn output(&mut self, name: &str, node: NodeId) -> Result<(), GraphError> {
        self.check_node(node)?;
        if name.is_empty() || self.outputs.iter().any(|output| output.name == name) {
            return Err(GraphError::Name { kind: "output", name: name.to_owned() });
        }
        self.outputs.push(Named { name: name.to_owned(), node });
        Ok(())
    }

    /// Overwrites the parameter `name` with `node` after each training step.
    ///
    /// # Errors
    /// [`GraphError::UnknownName`], [`GraphError::UnknownNode`], [`GraphError::Name`] when it is updated already, or
    /// [`GraphError::Shape`] when the shapes differ.
    pub fn update(&mut self, name: &str, node: NodeId) -> Result<(), GraphError> {
        self.check_node(node)?;
        let Some(parameter) = self.parameter_node(name) else {
            return Err(GraphError::UnknownName {
                kind: "parameter",
                name: name.to_owned(),
                known: self.parameters.keys().cloned().collect(),
            });
        };
        if self.shape(parameter) != self.shape(node) {
            return Err(GraphError::Shape {
                operator: "update",
                shapes: vec![self.shape(parameter).to_vec(), self.shape(node).to_vec()],
                expected: "the parameter's shape".to_owned(),
            });
        }
        if self.updates.iter().any(|update| update.name == name) {
            return Err(GraphError::Name { kind: "update", name: name.to_owned() });
        }
        self.updates.push(Named { name: name.to_owned(), node });
        Ok(())
    }

    /// Starting values of every parameter by its [`crate::Init`] rule. The same seed gives the same values on every
    /// machine, and a parameter's values depend on no other parameter.
    pub fn init_params(&self, seed: u64) -> Params {
        let mut params = Params::new();
        for node in &self.nodes {
            if let Op::Parameter { name, shape, init, .. } = &node.op {
                let tensor = Tensor::new(shape.clone(), init.values(name, shape, seed))
                    .expect("an Init rule gives as many values as the checked shape has elements");
                params.insert(name.clone(), tensor);
            }
        }
        params
    }

    /// The same graph with another batch size: the leading dimension of every batched input.
    ///
    /// # Errors
    /// [`GraphError::BatchNotLeading`] when a dimension other than the leading one would change, or the error of an
    /// operator that does not take the new size.
    pub fn with_batch(&self, batch: usize) -> Result<Self, GraphError> {
        let mut graph = self.rebuild(|op| match op {
            Op::Input { name, shape, batched: true } => {
                let mut shape = shape.clone();
                shape[0] = batch;
                Op::Input { name: name.clone(), shape, batched: true }
            }
            other => other.clone(),
        })?;
        for (was, now) in self.nodes.iter().zip(&graph.nodes) {
            let kept = was.shape.len() == now.shape.len()
                && was.shape.iter().zip(&now.shape).skip(1).all(|(a, b)| a == b);
            if !kept {
                return Err(GraphError::BatchNotLeading {
                    operator: was.op.name(),
                    was: was.shape.clone(),
                    now: now.shape.clone(),
                });
            }
        }
        graph.outputs.clone_from(&self.outputs);
        graph.updates.clone_from(&self.updates);
        Ok(graph)
    }

    /// The graph for use after training: no dropout, [`Op::Phase`] takes its second operand, nothing is updated,
    /// and what no output needs is gone (parameters and inputs too).
    ///
    /// # Errors
    /// None in practice; the result is rebuilt through the checks.
    pub fn inference(&self) -> Result<Self, GraphError> {
        let mut replaced: Vec<NodeId> = (0..self.nodes.len()).map(NodeId).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            match node.op {
                Op::Dropout { .. } => replaced[index] = replaced[node.operands[0].0],
                Op::Phase => replaced[index] = replaced[node.operands[1].0],
                _ => {}
            }
        }
        self.extract(&self.outputs, &[], |id| replaced[id.0])
    }

    /// The part of the graph that computes the given outputs, with the updates it had.
    ///
    /// # Errors
    /// [`GraphError::UnknownName`] when there is no such output.
    pub fn select(&self, outputs: &[&str]) -> Result<Self, GraphError> {
        let mut selected = Vec::with_capacity(outputs.len());
        for &name in outputs {
            selected.push(Named { name: name.to_owned(), node: self.output_node(name)? });
        }
        self.extract(&selected, &self.updates, |id| id)
    }

    /// What outputs and updates need, and nothing else.
    pub(crate) fn without_dead_nodes(&self) -> Result<Self, GraphError> {
        self.extract(&self.outputs, &self.updates, |id| id)
    }

    /// A new graph of what the given values need, with every node looked up through `resolved`.
    fn extract(
        &self,
        outputs: &[Named],
        updates: &[Named],
        resolved: impl Fn(NodeId) -> NodeId,
    ) -> Result<Self, GraphError> {
        let updated = updates.iter().filter_map(|update| self.parameter_node(&update.name));
        let roots = outputs.iter().chain(updates).map(|named| resolved(named.node));
        let needed = self.needed(roots.chain(updated), &resolved);
        let mut graph = Self::new();
        let mut map = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if !needed[index] {
                continue;
            }
            let operands: Vec<NodeId> =
                node.operands.iter().map(|&operand| map[&resolved(operand)]).collect();
            map.insert(NodeId(index), graph.push(node.op.clone(), &operands)?);
        }
        for output in outputs {
            graph.output(&output.name, map[&resolved(output.node)])?;
        }
        for update in updates {
            graph.update(&update.name, map[&resolved(update.node)])?;
        }
        Ok(graph)
    }

    /// Which nodes the given ones depend on, operands looked up through `resolved`.
    fn needed(
        &self,
        roots: impl Iterator<Item = NodeId>,
        resolved: impl Fn(NodeId) -> NodeId,
    ) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        roots.for_each(|root| needed[root.0] = true);
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                self.nodes[index]
                    .operands
                    .iter()
                    .for_each(|&operand| needed[resolved(operand).0] = true);
            }
        }
        needed
    }

    /// The same nodes with other operators, checked again. Outputs and updates are left to the caller.
    fn rebuild(&self, change: impl Fn(&Op) -> Op) -> Result<Self, GraphError> {
        let mut graph = Self::new();
        for node in &self.nodes {
            graph.push(change(&node.op), &node.operands)?;
        }
        Ok(graph)
    }

    /// Copies `other` into this graph and returns its outputs by name.
    ///
    /// `inputs` gives a node of this graph for each input of `other`; shapes are inferred anew, so the batch may
    /// differ. Parameters are named `prefix.name`, updates come along, dropouts get masks of their own, and the
    /// [`STEP_INPUT`] is shared.
    ///
    /// # Errors
    /// [`GraphError::UnknownName`] when an input is not given, and whatever an operator says about the new shapes.
    /// The graph is unchanged after an error.
    pub fn inline(
        &mut self,
        other: &Self,
        inputs: &[(&str, NodeId)],
        prefix: &str,
    ) -> Result<BTreeMap<String, NodeId>, GraphError> {
        let mut grown = self.clone();
        let outputs = grown.inline_into(other, inputs, prefix)?;
        *self = grown;
        Ok(outputs)
    }

    fn inline_into(
        &mut self,
        other: &Self,
        inputs: &[(&str, NodeId)],
        prefix: &str,
    ) -> Result<BTreeMap<String, NodeId>, GraphError> {
        let first_stream = self.streams;
        let mut map: Vec<NodeId> = Vec::with_capacity(other.nodes.len());
        for node in &other.nodes {
            let operands: Vec<NodeId> =
                node.operands.iter().map(|operand| map[operand.0]).collect();
            let id = match &node.op {
                Op::Input { name, .. } => self.inlined_input(name, inputs)?,
                Op::Parameter { name, shape, init, trainable } => {
                    let name = format!("{prefix}.{name}");
                    self.push(
                        Op::Parameter {
                            name,
                            shape: shape.clone(),
                            init: *init,
                            trainable: *trainable,
                        },
                        &[],
                    )?
                }
                Op::Dropout { rate, stream } => {
                    let stream = first_stream.saturating_add(*stream);
                    self.push(Op::Dropout { rate: *rate, stream }, &operands)?
                }
                op => self.push(op.clone(), &operands)?,
            };
            map.push(id);
        }
        for update in &other.updates {
            self.update(&format!("{prefix}.{}", update.name), map[update.node.0])?;
        }
        Ok(other.outputs.iter().map(|output| (output.name.clone(), map[output.node.0])).collect())
    }

    fn inlined_input(
        &mut self,
        name: &str,
        inputs: &[(&str, NodeId)],
    ) -> Result<NodeId, GraphError> {
        if let Some((_, node)) = inputs.iter().find(|(given, _)| *given == name) {
            self.check_node(*node)?;
            return Ok(*node);
        }
        if name == STEP_INPUT {
            return self.step_input();
        }
        Err(GraphError::UnknownName {
            kind: "input among those given",
            name: name.to_owned(),
            known: inputs.iter().map(|(given, _)| (*given).to_owned()).collect(),
        })
    }
}

fn claim(
    names: &mut BTreeMap<String, NodeId>,
    kind: &'static str,
    name: &str,
    id: NodeId,
) -> Result<(), GraphError> {
    if name.is_empty() || names.contains_key(name) {
        return Err(GraphError::Name { kind, name: name.to_owned() });
    }
    names.insert(name.to_owned(), id);
    Ok(())
}
