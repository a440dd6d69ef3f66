//! A pass of a network, ready to run, and what it is valid for: looked at before every run, so that a pass that was made
//! for something else is never run for what the network is now.

use std::collections::BTreeSet;

use kernel::{
    Fallback, Graph, GraphError, Outputs, ParamStore, Plan, PlanGuard, PlanMismatch, Purpose,
    RunError, Runner,
};

use crate::host::{FEATURES, LABELS, is_of};

/// What a pass is wanted for now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Training or evaluation.
    pub(crate) purpose: Purpose,
    /// Rows that go through at once.
    pub(crate) rows: usize,
    /// Prefixes of the parameters that it must give gradients for, and for no others.
    pub(crate) trained: &'a [&'a str],
}

/// What has become of a network's passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassCounts {
    /// Composed and made ready, whatever runs them.
    pub composed: u64,
    /// Of these, run by the interpreter.
    pub interpreted: u64,
    /// Found to be made for something else when they were to be run again, and made anew.
    pub stale: u64,
}

/// A pass with what runs it.
#[derive(Debug)]
pub(crate) struct Pass {
    runner: Runner,
    /// What it was made for, by plan or not: the interpreter too is bound to the shapes of its graph.
    guard: PlanGuard,
    /// Which of the guard's parameters an optimiser may move at all: running statistics are none of them.
    movable: Vec<usize>,
}

impl Pass {
    /// What runs a graph: its plan, if one can be made and is valid for it, or else the interpreter; the interpreter
    /// where somebody has `forbidden` the plan.
    ///
    /// # Errors
    /// [`GraphError::Quarantined`], which neither of them runs here.
    pub(crate) fn of(graph: &Graph, forbidden: Option<&Fallback>) -> Result<Self, GraphError> {
        if let Some(operator) = graph.stress() {
            return Err(GraphError::Quarantined { operator });
        }
        let runner = match forbidden {
            // Said when the kernel was attached.
            Some(reason) => Runner::interpreted(graph, reason.clone()),
            None => planned(graph),
        };
        let guard = PlanGuard::of(graph);
        let trainable: BTreeSet<&str> = graph.trainable().collect();
        let parameters = guard.parameters.iter().enumerate();
        let movable = parameters.filter(|(_, value)| trainable.contains(value.name.as_str()));
        let movable = movable.map(|(place, _)| place).collect();
        Ok(Self { runner, guard, movable })
    }

    /// Whether the pass was made for what is wanted. Allocates nothing unless it was not.
    ///
    /// # Errors
    /// [`PlanMismatch`] names the first thing that differs.
    pub(crate) fn check(&self, wanted: Wanted<'_>) -> Result<(), PlanMismatch> {
        if self.guard.purpose != wanted.purpose {
            let text = |purpose: Purpose| format!("{purpose:?}").to_lowercase();
            return Err(PlanMismatch {
                subject: "purpose".to_owned(),
                expected: text(self.guard.purpose),
                found: text(wanted.purpose),
            });
        }
        let batched = |name: &str| name == FEATURES || name == LABELS;
        for input in self.guard.inputs.iter().filter(|input| batched(&input.name)) {
            let rows = input.shape.first().copied().unwrap_or_default();
            if rows != wanted.rows {
                let text = |rows: usize| format!("{rows} rows");
                return Err(PlanMismatch {
                    subject: format!("input {:?} with", input.name),
                    expected: text(rows),
                    found: text(wanted.rows),
                });
            }
        }
        for value in self.movable.iter().map(|place| &self.guard.parameters[*place]) {
            let is_trained = wanted.trained.iter().any(|prefix| is_of(&value.name, prefix));
            if is_trained == value.frozen {
                let text = |frozen| if frozen { "frozen" } else { "trained" }.to_owned();
                return Err(PlanMismatch {
                    subject: format!("parameter {:?}", value.name),
                    expected: text(value.frozen),
                    found: text(!is_trained),
                });
            }
        }
        Ok(())
    }

    /// Whether the interpreter runs it.
    pub(crate) fn is_interpreted(&self) -> bool {
        self.runner.plan().is_none()
    }

    /// Runs it once.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub(crate) fn run(
        &mut self,
        params: &ParamStore,
        inputs: &[(&str, &[f32])],
    ) -> Result<Outputs<'_>, RunError> {
        self.runner.run(params, inputs)
    }
}

/// A graph by its plan, if one can be made and is valid for it, or else by the interpreter.
fn planned(graph: &Graph) -> Runner {
    let runner = match Plan::compile(graph) {
        Ok(plan) => Runner::guarded(plan, graph),
        Err(error) => Runner::interpreted(graph, Fallback::NoPlan { error: error.to_string() }),
    };
    if let Some(reason) = runner.execution().reason() {
        tracing::warn!(%reason, "a pass runs by the interpreter");
    }
    runner
}

impl PassCounts {
    pub(crate) fn made(&mut self, pass: &Pass) {
        self.composed += 1;
        self.interpreted += u64::from(pass.is_interpreted());
    }
}
