//! The plan compiler and executor: static shapes, one arena, nothing allocated or looked up while a step runs.
//!
//! `pattern` finds how operands broadcast, `fuse` what is done in one loop, `lower` turns a graph into steps, `memory`
//! lays their buffers out, `step` runs one, `kernels` holds the loops; `algorithm` says which loop computes a step,
//! `choice` measures that.

mod algorithm;
mod aligned;
mod choice;
mod fuse;
pub(crate) mod kernels;
mod lower;
mod memory;
mod pattern;
mod step;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{GraphError, RunError};
use crate::graph::Graph;
use crate::optimise::optimise;
use crate::outputs::{Outputs, Slot};
use crate::plan_guard::PlanGuard;
use crate::quarantine::Permit;
use crate::store::{self, Layout, ParamStore, Segments};
use crate::stress::Ward;
pub use algorithm::Algorithm;
use aligned::Aligned;
pub use choice::{Choice, Choices};
use lower::{Port, Source, Tail};
use step::Kernel;

/// A graph compiled for one batch size. Repeats are bit-identical; one thread.
#[derive(Debug)]
pub struct Plan {
    steps: Vec<Step>,
    arena: Aligned,
    scratch: Aligned,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    updates: Vec<Slot>,
    parameters: Vec<(String, Vec<usize>)>,
    binding: Option<Binding>,
    choices: Choices,
    guard: PlanGuard,
}

/// A step whose buffers have their places.
#[derive(Debug)]
struct Step {
    kernel: Kernel,
    operands: Vec<Place>,
    out: Range<usize>,
    tail: Option<Tail>,
}

#[derive(Debug, Clone)]
enum Place {
    Arena(Range<usize>),
    Parameter(usize),
}

/// Where the parameters lie in the store last used. Found again only when its layout changes.
#[derive(Debug)]
struct Binding {
    layout: Arc<Layout>,
    places: Vec<store::Place>,
}

fn scratch_len(step: &lower::Step) -> usize {
    let tail = step.tail.as_ref().map_or(0, |tail| tail.chain.scratch_len());
    step.kernel.scratch_len().max(tail)
}

impl Plan {
    /// Compiles a graph in training form (see [`Graph::inference`] for the other).
    ///
    /// # Errors
    /// [`GraphError::Quarantined`] for a graph with a stress operator; otherwise none in practice, as a graph that
    /// exists has been checked.
    pub fn compile(graph: &Graph) -> Result<Self, GraphError> {
        Self::compile_with(graph, &Choices::default())
    }

    /// [`Plan::compile`] with the loops that were chosen for this machine, where two compute the same; what the
    /// choices do not name is decided by rule, and what they name but the plan does not have is ignored.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn compile_with(graph: &Graph, choices: &Choices) -> Result<Self, GraphError> {
        match graph.stress() {
            Some(operator) => Err(GraphError::Quarantined { operator }),
            None => Self::compile_under(graph, None, choices),
        }
    }

    /// [`Plan::compile`] with the loops that are fastest here and now: each operator and shape for which there are
    /// two is measured once, for about `budget` in all. [`Plan::choices`] tells what was taken; given to
    /// [`Plan::compile_with`], it makes the same plan without a clock.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn compile_measured(graph: &Graph, budget: Duration) -> Result<Self, GraphError> {
        match graph.stress() {
            Some(operator) => Err(GraphError::Quarantined { operator }),
            None => {
                let program = lower::lower(&optimise(graph)?, None);
                Self::compile_with(graph, &Choices::measure(&program, budget))
            }
        }
    }

    /// Compiles a graph that may hold stress operators. Only the runner of a quarantine has a permit.
    ///
    /// # Errors
    /// None in practice: a graph that exists has been checked.
    pub fn compile_in_quarantine(graph: &Graph, permit: &Permit) -> Result<Self, GraphError> {
        Self::compile_under(graph, Some(permit.ward()), &Choices::default())
    }

    fn compile_under(
        graph: &Graph,
        ward: Option<&Ward>,
        choices: &Choices,
    ) -> Result<Self, GraphError> {
        let mut program = lower::lower(&optimise(graph)?, ward);
        let choices = choices.apply(&mut program);
        let memory::Layout { offsets, arena_len } = memory::lay_out(&mut program);
        let range = |buffer: usize| offsets[buffer]..offsets[buffer] + program.buffers[buffer];
        let mut arena = Aligned::zeros(arena_len);
        for (buffer, values) in &program.constants {
            arena[range(*buffer)].copy_from_slice(values);
        }
        let place = |source: &Source| match source {
            Source::Buffer(buffer) => Place::Arena(range(*buffer)),
            Source::Parameter(index) => Place::Parameter(*index),
        };
        let slot = |port: &Port| Slot {
            name: port.name.clone(),
            shape: port.shape.clone(),
            range: range(port.buffer),
        };
        let scratch_len = program.steps.iter().map(scratch_len).max().unwrap_or(0);
        Ok(Self {
            inputs: program.inputs.iter().map(slot).collect(),
            outputs: program.outputs.iter().map(slot).collect(),
            updates: program.updates.iter().map(slot).collect(),
            steps: program
                .steps
                .iter()
                .map(|step| Step {
                    kernel: step.kernel.clone(),
                    operands: step.operands.iter().map(place).collect(),
                    out: range(step.out),
                    tail: step.tail.clone(),
                })
                .collect(),
            parameters: program.parameters,
            arena,
            scratch: Aligned::zeros(scratch_len),
            binding: None,
            choices,
            guard: PlanGuard::of(graph),
        })
    }

    /// A plan whose outputs are all off by a quarter: what a fault of the compiler would look like to those who check
    /// plans. For tests of what they then do.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    #[doc(hidden)]
    pub fn compile_wrong(graph: &Graph) -> Result<Self, GraphError> {
        let mut wrong = graph.clone();
        for index in 0..wrong.outputs.len() {
            wrong.outputs[index].node = wrong.offset(wrong.outputs[index].node, 0.25)?;
        }
        Self::compile(&wrong)
    }

    /// Runs the plan once. Every input the plan reads must be given; inputs it does not read are ignored.
    ///
    /// # Errors
    /// [`RunError::Missing`] or [`RunError::Size`] for an input or parameter, [`RunError::Index`] for a label or
    /// table index out of range. The parameters are untouched in any case.
    pub fn run(
        &mut self,
        params: &ParamStore,
        inputs: &[(&str, &[f32])],
    ) -> Result<Outputs<'_>, RunError> {
        for slot in &self.inputs {
            let given = inputs.iter().find(|(name, _)| *name == slot.name);
            let Some((_, values)) = given else {
                return Err(RunError::Missing {
                    kind: "input",
                    name: slot.name.clone(),
                    shape: slot.shape.clone(),
                });
            };
            if values.len() != slot.range.len() {
                return Err(slot.wrong_size("input", values.len()));
            }
            self.arena[slot.range.clone()].copy_from_slice(values);
        }
        self.bind(params)?;
        self.execute(params.segments())?;
        Ok(Outputs::new(&self.outputs, &self.updates, &self.arena))
    }

    /// Finds the parameters, unless the store still has the layout it had the last time.
    fn bind(&mut self, params: &ParamStore) -> Result<(), RunError> {
        let layout = params.layout();
        if self.binding.as_ref().is_some_and(|binding| Arc::ptr_eq(&binding.layout, layout)) {
            return Ok(());
        }
        let mut places = Vec::with_capacity(self.parameters.len());
        for (name, shape) in &self.parameters {
            let Some(entry) = layout.get(name) else {
                return Err(RunError::Missing {
                    kind: "parameter",
                    name: name.clone(),
                    shape: shape.clone(),
                });
            };
            if entry.shape != *shape {
                let (expected, found) = (shape.clone(), entry.place.len());
                return Err(RunError::Size {
                    kind: "parameter",
                    name: name.clone(),
                    expected,
                    found,
                });
            }
            places.push(entry.place.clone());
        }
        self.binding = Some(Binding { layout: Arc::clone(layout), places });
        Ok(())
    }

    fn execute(&mut self, params: &Segments) -> Result<(), RunError> {
        let places = self.binding.as_ref().map_or(&[][..], |binding| &binding.places);
        for step in &self.steps {
            // An operand lies wholly before or behind the result; one whose place the result takes over is read as
            // the result by its chain and never asked for here.
            let (before, rest) = self.arena.split_at_mut(step.out.start);
            let (out, behind) = rest.split_at_mut(step.out.len());
            let (before, behind) = (&*before, &*behind);
            let operand = |position: usize| match &step.operands[position] {
                Place::Parameter(index) => params.get(&places[*index]),
                Place::Arena(range) if range.end <= before.len() => &before[range.clone()],
                Place::Arena(range) => {
                    &behind[range.start - step.out.end..range.end - step.out.end]
                }
            };
            let own = step.tail.as_ref().map_or(step.operands.len(), |tail| tail.operands);
            step.kernel.run(own, operand, out, &mut self.scratch)?;
            if let Some(tail) = &step.tail {
                tail.chain.run(&operand, out, &mut self.scratch);
            }
        }
        Ok(())
    }

    /// What the plan was made for: the graph as it was given, before anything was optimised away.
    pub fn guard(&self) -> &PlanGuard {
        &self.guard
    }

    /// Inputs the plan reads, with the shape of each.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.inputs.iter().map(|slot| (slot.name.as_str(), slot.shape.as_slice()))
    }

    /// Which loop computes each operator for which there are two.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }

    /// Number of loops run per step.
    pub fn step_count(&self) -> usize {
        self.steps.len()
    }

    /// Memory the plan holds, in bytes: arena and scratch.
    pub fn memory_bytes(&self) -> usize {
        (self.arena.len() + self.scratch.len()) * size_of::<f32>()
    }
}
