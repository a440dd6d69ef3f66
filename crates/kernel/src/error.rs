//! Why a graph, a run or a plan was refused.

/// A node whose operands do not fit its operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node}, {operator} of nodes {operands:?}: input shapes {shapes:?} do not fit; expected {expected}"
)]
pub struct Unfit {
    /// Operator, in the spelling of the manifest.
    pub operator: &'static str,
    /// Index the node would have had.
    pub node: usize,
    /// Indices of its operands.
    pub operands: Vec<usize>,
    /// Their shapes.
    pub shapes: Vec<Vec<usize>>,
    /// What would have been accepted.
    pub expected: String,
}

/// Why a graph could not be built, read or changed. Nothing is half done after an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// The operands do not fit the operator.
    #[error("{operator}: input shapes {shapes:?} do not fit; expected {expected}")]
    Shape {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
        /// Shapes of the operands as given.
        shapes: Vec<Vec<usize>>,
        /// What would have been accepted.
        expected: String,
    },
    /// The operands of a node that was to be added do not fit its operator.
    #[error("{0}")]
    Unfit(Box<Unfit>),
    /// An attribute of the operator is out of its range.
    #[error("{operator}: {attribute} is {found}; expected {expected}")]
    Attribute {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
        /// Attribute at fault.
        attribute: &'static str,
        /// Its value.
        found: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// The operator has another number of operands.
    #[error("{operator} takes {expected} operands, found {found}")]
    Arity {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
        /// Number of operands it takes.
        expected: &'static str,
        /// Number of operands given.
        found: usize,
    },
    /// A tensor would have more than [`crate::ELEMENTS_MAX`] elements or more than [`crate::RANK_MAX`] dimensions.
    #[error(
        "{operator}: a tensor of shape {shape:?} is too large; split it or make the model smaller"
    )]
    TooLarge {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
        /// The shape that is too large.
        shape: Vec<usize>,
    },
    /// The graph would have more than [`crate::NODES_MAX`] nodes.
    #[error("a graph holds at most {limit} nodes")]
    TooManyNodes {
        /// The limit.
        limit: usize,
    },
    /// A node refers to one that does not come before it.
    #[error("node {node} does not exist in this graph of {count} nodes")]
    UnknownNode {
        /// Index asked for.
        node: usize,
        /// Number of nodes in the graph.
        count: usize,
    },
    /// A name is taken already, or empty.
    #[error("{kind} name {name:?} is empty or already taken in this graph; choose another")]
    Name {
        /// Input, parameter or output.
        kind: &'static str,
        /// The name at fault.
        name: String,
    },
    /// There is nothing of that name.
    #[error("no {kind} named {name:?}; the graph has {known:?}")]
    UnknownName {
        /// Input, parameter or output.
        kind: &'static str,
        /// Name asked for.
        name: String,
        /// Names that exist.
        known: Vec<String>,
    },
    /// Only a scalar can be differentiated.
    #[error(
        "output {name:?} has shape {shape:?}; only a scalar (shape []) has a gradient: reduce it first"
    )]
    NotScalar {
        /// Output asked for.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A change of batch size changed something other than the leading dimension.
    #[error(
        "{operator}: with the new batch the shape {was:?} became {now:?}; only the leading dimension may change: keep the batch first"
    )]
    BatchNotLeading {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
        /// Shape before.
        was: Vec<usize>,
        /// Shape after.
        now: Vec<usize>,
    },
    /// The graph holds a stress operator and was to be used outside quarantine.
    #[error(
        "{operator} is a stress operator: it runs in quarantine only and is compiled nowhere else"
    )]
    Quarantined {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
    },
}

/// Why a graph or plan could not be run on the given data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// An input or parameter the graph needs was not given.
    #[error("{kind} {name:?} of shape {shape:?} was not given")]
    Missing {
        /// Input or parameter.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Shape the graph expects.
        shape: Vec<usize>,
    },
    /// An input or parameter has another size than the graph was built for.
    #[error("{kind} {name:?}: expected shape {expected:?}, found {found} values")]
    Size {
        /// Input or parameter.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Shape the graph expects.
        expected: Vec<usize>,
        /// Number of values given.
        found: usize,
    },
    /// A given input is not one of the graph's.
    #[error("the graph has no input {name:?}; remove it or rebuild the graph")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// An index into a table or of a class is not a whole number in range.
    #[error("{operator}: index {found} is not a whole number from 0 to below {limit}")]
    Index {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
        /// Value found.
        found: String,
        /// Exclusive upper limit.
        limit: usize,
    },
    /// A scope around the run is over, see [`crate::stop`].
    #[error("stopped before its next operator")]
    Cancelled,
    /// The graph holds a stress operator; only a plan compiled in quarantine runs it.
    #[error("{operator} is a stress operator: it runs in quarantine only")]
    Quarantined {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
    },
    /// Threads waited for each other until the bound.
    #[error("{threads} threads waited for each other for {waited_ms} ms and gave up")]
    Deadlock {
        /// Threads in the ring.
        threads: u32,
        /// How long they waited, in milliseconds.
        waited_ms: u64,
    },
    /// A run wanted to hold on to more memory than all runs of a quarantine may.
    #[error("runs hold on to {bytes} bytes and want more; at most {limit} are given")]
    Leak {
        /// Bytes held.
        bytes: u64,
        /// Most bytes that may be held.
        limit: u64,
    },
    /// The system did not start the threads of a stress operator. Try again when it has less to do.
    #[error("{wanted} threads could not be started")]
    Threads {
        /// Number of threads wanted.
        wanted: u32,
    },
    /// The quarantine was told to stop.
    #[error("the quarantine was told to stop")]
    Stopped,
}
