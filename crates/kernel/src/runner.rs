//! One way to run a graph: by its plan or, where that cannot be had or is not to be trusted, by the interpreter.
//!
//! Both take the same inputs and parameters and give the same [`Outputs`]. The interpreter is some hundred times
//! slower; it serves so that a fault of the plan compiler costs speed and never a result.

use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::graph::Graph;
use crate::interpret::{self, Array, Bindings};
use crate::outputs::{Outputs, Slot};
use crate::plan::Plan;
use crate::plan_guard::PlanGuard;
use crate::store::ParamStore;

/// What runs a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Execution {
    /// Its plan.
    Plan,
    /// The interpreter.
    Interpreter {
        /// Why not the plan.
        reason: Fallback,
    },
}

impl Execution {
    /// `plan` or `interpreter`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Interpreter { .. } => "interpreter",
        }
    }

    /// Why the interpreter runs, if it does.
    pub fn reason(&self) -> Option<&Fallback> {
        match self {
            Self::Plan => None,
            Self::Interpreter { reason } => Some(reason),
        }
    }
}

/// Why the interpreter runs a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fallback {
    /// The plan compiler refused the graph.
    #[error("no plan can be made of the graph: {error}")]
    NoPlan {
        /// What it said.
        error: String,
    },
    /// A value of the plan is further from the interpreter's than rounding explains.
    #[error("the plan's {value} differs by {difference:e}; {tolerance:e} is accepted")]
    Value {
        /// Output, gradient or update.
        value: String,
        /// By how much, in the measure of [`crate::check::TOLERANCE`].
        difference: f32,
        /// What would have been accepted.
        tolerance: f32,
    },
    /// The loop of one operator is further from the interpreter than its tolerance.
    #[error("the plan's {operator} differs by {difference:e}; {tolerance:e} is accepted")]
    Operator {
        /// Operator, in the spelling of the manifest.
        operator: String,
        /// By how much.
        difference: f32,
        /// What would have been accepted.
        tolerance: f32,
    },
    /// The plan gave something that is no number where the interpreter gave numbers, or nothing at all.
    #[error("the plan's {value} is missing or not finite where the interpreter's is")]
    NotFinite {
        /// Output, gradient or update.
        value: String,
    },
    /// The plan failed where the interpreter did not.
    #[error("the plan cannot be run: {error}")]
    Run {
        /// What it said.
        error: String,
    },
    /// The plan was made for something else.
    #[error("{mismatch}")]
    Guard {
        /// What it was made for and what was found.
        mismatch: String,
    },
    /// Asked for by whoever made the runner: another program's judgement, or an operator's.
    #[error("{reason}")]
    Asked {
        /// In their words.
        reason: String,
    },
}

/// A graph ready to run. Repeats are bit-identical; one thread.
#[derive(Debug)]
pub struct Runner {
    engine: Engine,
    execution: Execution,
}

#[derive(Debug)]
enum Engine {
    Plan(Box<Plan>),
    Interpreter(Box<Interpreter>),
}

impl Runner {
    /// A runner by plan, or by the interpreter where no plan can be made. The graph is in training form
    /// (see [`Graph::inference`] for the other).
    pub fn new(graph: &Graph) -> Self {
        match Plan::compile(graph) {
            Ok(plan) => Self::planned(plan),
            Err(error) => Self::interpreted(graph, Fallback::NoPlan { error: error.to_string() }),
        }
    }

    /// A runner that does what a check has decided (see [`crate::check::Report::execution`]).
    pub fn with(graph: &Graph, execution: &Execution) -> Self {
        match execution {
            Execution::Plan => Self::new(graph),
            Execution::Interpreter { reason } => Self::interpreted(graph, reason.clone()),
        }
    }

    /// A runner by a plan there is already.
    pub fn planned(plan: Plan) -> Self {
        Self { engine: Engine::Plan(Box::new(plan)), execution: Execution::Plan }
    }

    /// A runner by a plan there is already, if that is valid for this graph, or else by the interpreter.
    pub fn guarded(plan: Plan, graph: &Graph) -> Self {
        match plan.guard().check(&PlanGuard::of(graph)) {
            Ok(()) => Self::planned(plan),
            Err(mismatch) => {
                Self::interpreted(graph, Fallback::Guard { mismatch: mismatch.to_string() })
            }
        }
    }

    /// A runner by the interpreter.
    pub fn interpreted(graph: &Graph, reason: Fallback) -> Self {
        Self {
            engine: Engine::Interpreter(Box::new(Interpreter::new(graph))),
            execution: Execution::Interpreter { reason },
        }
    }

    /// What runs the graph, and why.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// The plan, where that is what runs.
    pub fn plan(&self) -> Option<&Plan> {
        match &self.engine {
            Engine::Plan(plan) => Some(plan),
            Engine::Interpreter(_) => None,
        }
    }

    /// Runs the graph once. Every input it reads must be given; inputs it does not read are ignored.
    ///
    /// # Errors
    /// [`RunError::Missing`] or [`RunError::Size`] for an input or parameter, [`RunError::Index`] for a label or
    /// table index out of range. The parameters are untouched in any case.
    pub fn run(
        &mut self,
        params: &ParamStore,
        inputs: &[(&str, &[f32])],
    ) -> Result<Outputs<'_>, RunError> {
        match &mut self.engine {
            Engine::Plan(plan) => plan.run(params, inputs),
            Engine::Interpreter(interpreter) => interpreter.run(params, inputs),
        }
    }
}

/// The interpreter in single precision, with a place for what it gave.
#[derive(Debug)]
struct Interpreter {
    graph: Graph,
    outputs: Vec<Slot>,
    updates: Vec<Slot>,
    values: Vec<f32>,
}

impl Interpreter {
    fn new(graph: &Graph) -> Self {
        let mut end = 0;
        let mut slot = |name: &str, shape: &[usize]| {
            let start = end;
            end += shape.iter().product::<usize>();
            Slot { name: name.to_owned(), shape: shape.to_vec(), range: start..end }
        };
        let mut slots = |named: &[crate::Named]| -> Vec<Slot> {
            named.iter().map(|named| slot(&named.name, graph.shape(named.node))).collect()
        };
        let (outputs, updates) = (slots(graph.outputs()), slots(graph.updates()));
        Self { graph: graph.clone(), outputs, updates, values: vec![0.0; end] }
    }

    fn run(
        &mut self,
        params: &ParamStore,
        inputs: &[(&str, &[f32])],
    ) -> Result<Outputs<'_>, RunError> {
        let mut bindings = Bindings::<f32>::default();
        for (name, shape) in self.graph.parameters() {
            // What is missing or of another size is the interpreter's to refuse.
            if let Some(values) = params.shaped(name, shape) {
                bindings.parameters.insert(name.to_owned(), values.to_vec());
            }
        }
        for &(name, values) in inputs {
            bindings.inputs.insert(name.to_owned(), values.to_vec());
        }
        let results = interpret::run_bound(&self.graph, &bindings)?;
        let mut write = |slots: &[Slot], from: &std::collections::BTreeMap<String, Array<f32>>| {
            for slot in slots {
                if let Some(array) = from.get(&slot.name) {
                    self.values[slot.range.clone()].copy_from_slice(&array.data);
                }
            }
        };
        write(&self.outputs, &results.outputs);
        write(&self.updates, &results.updates);
        Ok(Outputs::new(&self.outputs, &self.updates, &self.values))
    }
}
