//! Compiling one job: graph, check, weights, guard, bytes, latencies. Plain and blocking; the same job gives the same
//! bytes on every machine and under every strategy.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kernel::artifact::{ArtifactError, Kernel, Manifest, write_bytes};
use kernel::check::{Check, CheckError, Report, TOLERANCE, tolerance};
use kernel::{
    Digest, Execution, Fallback, Graph, GraphError, Params, Plan, RunError, stop, to_canonical_json,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use urza::{EXECUTION, Extras, Prewarm, Record};

use crate::config::Config;
use crate::error::CompileError;
use crate::job::{ENGINE, Job};
use crate::prewarm;
use crate::strategy::{Budget, Step, Strategy};

/// Extra of a record that says what runs the kernel, and why: [`Execution`] as JSON.
/// Extra of a record that holds the differences of the check.
const DIFFERENCE: &str = "difference";
/// Extra of a record that says what the attempt was given, and what it left out.
const BUDGET: &str = "budget";
/// Extra of a record with its blueprint's safety sheet.
const SAFETY: &str = "safety";

/// Most time given to choosing among algorithms by measuring them.
const CHOICE_MAX: Duration = Duration::from_millis(100);

/// A compiled job.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The whole artifact file.
    pub bytes: Vec<u8>,
    /// Digest of the guard spec.
    pub guard_digest: Digest,
    /// The guard spec as JSON.
    pub guard_spec: String,
    /// The guard spec for people.
    pub guard_summary: String,
    /// What is to run the kernel: its plan or, where that is not the graph, the interpreter.
    pub execution: Execution,
    /// Largest difference between plan and graph that the check found, in the measure of [`crate::TOLERANCE`].
    pub difference: f32,
    /// The same for each kind of operator alone, with the tolerance of its kind.
    pub operators: BTreeMap<&'static str, OperatorCheck>,
    /// What there was no time for, first given up first.
    pub left_out: Vec<Step>,
    /// Time from the job to its bytes, check included.
    pub took: Duration,
    /// Latencies on this machine; none where there was no time to take them.
    pub prewarm: Prewarm,
    /// The algorithms that the engine chose on this machine, as it spells them.
    pub algorithms: Value,
}

/// How far one kind of operator was from the interpreter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OperatorCheck {
    /// How many, of different attributes or shapes, were run.
    pub count: usize,
    /// At worst, in the measure of [`crate::TOLERANCE`].
    pub difference: f32,
    /// What is accepted.
    pub tolerance: f32,
}

impl Compiled {
    /// The strategy as it is recorded: `eager` where the interpreter runs the kernel.
    pub(crate) fn recorded_strategy(&self, strategy: Strategy) -> &'static str {
        match self.execution {
            Execution::Plan => strategy.name(),
            Execution::Interpreter { .. } => Strategy::EAGER,
        }
    }

    /// What is recorded beside the artifact.
    pub(crate) fn extras(&self, job: &Job, budget: Budget) -> Extras {
        let sheet = karn::safety_sheet(job.blueprint());
        let operators: BTreeMap<_, _> = self
            .operators
            .iter()
            .map(|(name, one)| {
                let OperatorCheck { count, difference, tolerance } = one;
                let about =
                    json!({ "count": count, "difference": difference, "tolerance": tolerance });
                (*name, about)
            })
            .collect();
        let left_out: Vec<_> = self.left_out.iter().map(|step| step.name()).collect();
        let execution = serde_json::to_value(&self.execution)
            .unwrap_or_else(|_| json!({ "by": self.execution.name() }));
        Extras::from([
            (EXECUTION.to_owned(), execution),
            (DIFFERENCE.to_owned(), json!({ "value": self.difference, "operators": operators })),
            (
                BUDGET.to_owned(),
                json!({
                    "strategy": budget.strategy().name(),
                    "limit_s": budget.limit().as_secs_f64(),
                    "left_out": left_out,
                }),
            ),
            (
                SAFETY.to_owned(),
                json!({
                    "risk": sheet.risk,
                    "hazard": sheet.hazard.as_str_name(),
                    "handling": sheet.handling.as_str_name(),
                    "resource": sheet.resource.as_str_name(),
                    "provenance": sheet.provenance.as_str_name(),
                }),
            ),
        ])
    }
}

/// What runs a stored kernel. A record that does not say was made when only plans were kept.
pub(crate) fn execution(record: &Record) -> Execution {
    let said = record.extras.get(EXECUTION).cloned();
    said.and_then(|value| serde_json::from_value(value).ok()).unwrap_or(Execution::Plan)
}

/// How plans are made: [`Plan::compile`], but in tests.
pub(crate) type Planner = fn(&Graph) -> Result<Plan, GraphError>;

/// Compiles a job. Blocks; looks at `cancel` before every operator that it interprets, every probe and every timed run.
///
/// # Errors
/// [`CompileError`]; nothing has been written anywhere.
pub fn compile(
    job: &Job,
    strategy: Strategy,
    config: &Config,
    cancel: &CancellationToken,
) -> Result<Compiled, CompileError> {
    compile_by(job, strategy, config, cancel, Plan::compile)
}

pub(crate) fn compile_by(
    job: &Job,
    strategy: Strategy,
    config: &Config,
    cancel: &CancellationToken,
    planner: Planner,
) -> Result<Compiled, CompileError> {
    let budget = config.budget(strategy);
    let work = Work { budget, started: Instant::now(), planner, cancel, left_out: Vec::new() };
    stoppable(cancel, || work.compile(job, config))
}

/// Times a stored kernel on this machine, for as long as the budget of the attempt lasts.
pub(crate) fn remeasure(
    path: &Path,
    digest: &Digest,
    execution: &Execution,
    samples: usize,
    budget: Budget,
    cancel: &CancellationToken,
) -> Result<Prewarm, CompileError> {
    let started = Instant::now();
    stoppable(cancel, || {
        let kernel = Kernel::open(path, digest)?;
        // Once for each artifact that another machine made: what it gives there it must give here.
        if !kernel.verify_probe()? {
            return Err(CompileError::Probe);
        }
        let goes_on = || budget.allows(Step::Prewarm, started.elapsed());
        let (graph, params) = (kernel.graph(), kernel.params());
        prewarm::measure(graph, params, execution, samples, &goes_on, cancel)
    })
}

/// Runs work that ends at its next operator once it is cancelled.
fn stoppable<T>(
    cancel: &CancellationToken,
    work: impl FnOnce() -> Result<T, CompileError>,
) -> Result<T, CompileError> {
    let token = cancel.clone();
    let outcome = stop::scope(move || token.is_cancelled(), work);
    // Whatever it failed with then, that was why.
    outcome.map_err(|error| if cancel.is_cancelled() { CompileError::Cancelled } else { error })
}

/// One attempt.
struct Work<'a> {
    budget: Budget,
    started: Instant,
    planner: Planner,
    cancel: &'a CancellationToken,
    left_out: Vec<Step>,
}

impl Work<'_> {
    fn compile(mut self, job: &Job, config: &Config) -> Result<Compiled, CompileError> {
        self.proceed()?;
        let graph = karn::build(job.blueprint(), job.parameters(), job.site())?;
        let params = graph.init_params(job.weight_seed());
        let checked = self.check(&graph, &params)?;
        self.proceed()?;
        oona::chaos::point(oona::chaos::Point::KernelCompiling);
        let manifest = manifest(job, graph, &params)?;
        self.proceed()?;
        let (bytes, _) = write_bytes(&manifest, &params)?;
        let took = self.started.elapsed();
        let algorithms = self.choose(&manifest.graph, &checked.execution)?;
        let prewarm = self.prewarm(&manifest.graph, &params, &checked.execution, config)?;
        self.left_out.sort_unstable();
        Ok(Compiled {
            bytes,
            guard_digest: manifest.guard_digest,
            guard_spec: to_canonical_json(&manifest.guard).map_err(unwritable)?,
            guard_summary: manifest.guard.summary(),
            execution: checked.execution,
            difference: checked.difference,
            operators: checked.operators,
            left_out: self.left_out,
            took,
            prewarm,
            algorithms,
        })
    }

    /// Which algorithms are quickest here, for the record beside the artifact; null where nothing was measured.
    fn choose(&mut self, graph: &Graph, execution: &Execution) -> Result<Value, CompileError> {
        if *execution != Execution::Plan {
            return Ok(Value::Null);
        }
        if !self.budget.allows(Step::Choice, self.started.elapsed()) {
            self.left_out.push(Step::Choice);
            return Ok(Value::Null);
        }
        let time = CHOICE_MAX.min(self.budget.limit() / 20);
        let plan = Plan::compile_measured(graph, time)?;
        self.proceed()?;
        serde_json::to_value(plan.choices()).map_err(unwritable)
    }

    fn proceed(&self) -> Result<(), CompileError> {
        if self.cancel.is_cancelled() { Err(CompileError::Cancelled) } else { Ok(()) }
    }

    /// Compares plan and graph, as often as there is time for.
    fn check(&mut self, graph: &Graph, params: &Params) -> Result<Checked, CompileError> {
        let mut checked = Checked::new();
        for probe in 0..self.budget.probes() {
            self.proceed()?;
            let step = if probe == 0 { Step::Check } else { Step::FurtherProbes };
            match self.probe(graph, params, probe, step)? {
                Some(report) => checked.add(report),
                None if probe == 0 => {
                    self.left_out.extend([Step::FurtherProbes, Step::Check]);
                    let reason = "there was no time to check the plan".to_owned();
                    checked.execution =
                        Execution::Interpreter { reason: Fallback::Asked { reason } };
                    return Ok(checked);
                }
                None => {
                    self.left_out.push(Step::FurtherProbes);
                    return Ok(checked);
                }
            }
            if checked.execution != Execution::Plan {
                return Ok(checked);
            }
        }
        if self.budget.probes() < Budget::new(Strategy::Standard, self.budget.limit()).probes() {
            self.left_out.push(Step::FurtherProbes);
        }
        Ok(checked)
    }

    /// One comparison; none where the budget does not allow it, or broke it off.
    fn probe(
        &self,
        graph: &Graph,
        params: &Params,
        probe: u64,
        step: Step,
    ) -> Result<Option<Report>, CompileError> {
        let (budget, started) = (self.budget, self.started);
        if !budget.allows(step, started.elapsed()) {
            return Ok(None);
        }
        let check = Check {
            probe,
            compile: self.planner,
            ..Check::new(graph, params, karn::INPUT, karn::OUTPUT)
        };
        let outcome = stop::scope(move || !budget.allows(step, started.elapsed()), || check.run());
        self.proceed()?;
        let is_late = !budget.allows(step, started.elapsed());
        match outcome {
            Err(CheckError::Run(RunError::Cancelled)) => Ok(None),
            // Broken off among its operators: what it says then is not of the plan.
            Ok(Report { fault: Some(Fallback::Run { .. }), .. }) if is_late => Ok(None),
            Ok(report) => Ok(Some(report)),
            Err(error) => Err(error.into()),
        }
    }

    fn prewarm(
        &mut self,
        graph: &Graph,
        params: &Params,
        execution: &Execution,
        config: &Config,
    ) -> Result<Prewarm, CompileError> {
        let (budget, started) = (self.budget, self.started);
        let goes_on = || budget.allows(Step::Prewarm, started.elapsed());
        let samples = config.prewarm_samples;
        let found = prewarm::measure(graph, params, execution, samples, &goes_on, self.cancel)?;
        if found.samples_ms.len() >= crate::PREWARM_SAMPLES_MIN {
            return Ok(found);
        }
        // Too few to be offered by: without a machine's name they are taken anew before that.
        self.left_out.push(Step::Prewarm);
        Ok(Prewarm::default())
    }
}

/// What all probes together have found.
struct Checked {
    execution: Execution,
    difference: f32,
    operators: BTreeMap<&'static str, OperatorCheck>,
}

impl Checked {
    fn new() -> Self {
        Self { execution: Execution::Plan, difference: 0.0, operators: BTreeMap::new() }
    }

    fn add(&mut self, report: Report) {
        self.difference = self.difference.max(report.difference());
        self.execution = report.execution();
        for one in report.operators {
            let known = self.operators.entry(one.operator).or_insert(OperatorCheck {
                count: one.count,
                difference: 0.0,
                tolerance: one.tolerance,
            });
            known.difference = known.difference.max(one.difference);
        }
    }
}

fn manifest(job: &Job, graph: Graph, params: &Params) -> Result<Manifest, CompileError> {
    let parameters =
        job.parameters().iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let site = serde_json::to_value(job.site()).map_err(unwritable)?;
    let blueprint = job.blueprint().id().as_str();
    // Of the graph, not of a check that may have been left out: the bytes are the same under every strategy.
    let limit = |node: &kernel::Node| (node.op().name().to_owned(), tolerance(node.op()).limit);
    let tolerances = graph.nodes().iter().map(limit).collect();
    let manifest = Manifest::new(blueprint, parameters, site, graph, params, TOLERANCE)?;
    Ok(manifest.with_tolerances(tolerances).made_by(ENGINE, job.key().digest()))
}

/// Guard and site are plain numbers and names, which JSON always holds; said once for both.
fn unwritable(source: serde_json::Error) -> CompileError {
    CompileError::Artifact(ArtifactError::Manifest { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> Job {
        Job::of(karn::find(&id.into()).unwrap(), &Config::default())
    }

    fn run(strategy: Strategy, config: &Config, planner: Planner) -> Compiled {
        compile_by(&job("BP009"), strategy, config, &CancellationToken::new(), planner).unwrap()
    }

    fn refused(_: &Graph) -> Result<Plan, GraphError> {
        Err(GraphError::TooManyNodes { limit: 1 })
    }

    #[test]
    fn a_plan_that_is_not_the_graph_is_replaced_by_the_interpreter() {
        let config = Config::default();
        let sound = run(Strategy::Standard, &config, Plan::compile);
        assert_eq!(sound.execution, Execution::Plan);
        assert!(sound.operators.len() > 3 && sound.left_out.is_empty(), "{sound:?}");
        let chosen: kernel::Choices = serde_json::from_value(sound.algorithms.clone()).unwrap();
        assert!(chosen.iter().count() > 0, "products have a choice: {:?}", sound.algorithms);
        for planner in [Plan::compile_wrong as Planner, refused] {
            let found = run(Strategy::Standard, &config, planner);
            assert!(matches!(found.execution, Execution::Interpreter { .. }));
            assert_eq!(found.recorded_strategy(Strategy::Standard), "eager");
            assert_eq!(found.bytes, sound.bytes, "the artifact is the same");
            assert_eq!(found.prewarm.samples_ms.len(), crate::PREWARM_SAMPLES_MIN);
            let extras = found.extras(&job("BP009"), config.budget(Strategy::Standard));
            assert_eq!(extras[EXECUTION]["by"], "interpreter");
            assert!(extras[EXECUTION]["reason"].is_object(), "{extras:?}");
        }
    }

    #[test]
    fn what_the_check_found_is_recorded_for_each_operator() {
        let config = Config::default();
        let compiled = run(Strategy::Standard, &config, Plan::compile);
        let extras = compiled.extras(&job("BP009"), config.budget(Strategy::Standard));
        assert_eq!(extras[EXECUTION], json!({ "by": "plan" }));
        let operators = extras[DIFFERENCE]["operators"].as_object().unwrap();
        for (name, one) in operators {
            let (found, most) = (one["difference"].as_f64(), one["tolerance"].as_f64());
            assert!(found.unwrap() <= most.unwrap(), "{name}: {one}");
        }
        assert_eq!(extras[BUDGET]["strategy"], "standard");
        assert!(extras[SAFETY]["risk"].is_number());
    }

    #[test]
    fn an_emergency_without_time_to_check_has_the_interpreter_run_it() {
        // No time at all: every step is late.
        let none = Config { deadline: Duration::ZERO, ..Config::default() };
        let found = run(Strategy::Emergency, &none, Plan::compile);
        assert_eq!(found.left_out, [Step::FurtherProbes, Step::Prewarm, Step::Check]);
        let Execution::Interpreter { reason: Fallback::Asked { reason } } = &found.execution else {
            panic!("{:?}", found.execution)
        };
        assert!(reason.contains("no time"), "{reason}");
        assert_eq!(found.prewarm, Prewarm::default());
        let sound = run(Strategy::Standard, &Config::default(), Plan::compile);
        assert_eq!(found.bytes, sound.bytes);

        let short = run(Strategy::Conservative, &none, Plan::compile);
        assert_eq!(short.execution, Execution::Plan, "only an emergency goes without a check");
        assert_eq!(short.left_out, [Step::FurtherProbes, Step::Choice, Step::Prewarm]);
        let usual = run(Strategy::Emergency, &Config::default(), Plan::compile);
        assert_eq!(usual.execution, Execution::Plan);
        assert_eq!(usual.left_out, [Step::FurtherProbes, Step::Choice]);
        assert_eq!(usual.algorithms, Value::Null);
    }

    #[test]
    fn a_cancelled_job_ends_before_its_next_operator() {
        let cancel = CancellationToken::new();
        let seen = std::rc::Rc::new(std::cell::Cell::new(0));
        let (counted, token) = (seen.clone(), cancel.clone());
        // Asked before every operator: at the twentieth the job is cancelled.
        let count = move || {
            counted.set(counted.get() + 1);
            if counted.get() == 20 {
                token.cancel();
            }
            false
        };
        let config = Config::default();
        let outcome =
            stop::scope(count, || compile(&job("BP009"), Strategy::Standard, &config, &cancel));
        assert!(matches!(outcome, Err(CompileError::Cancelled)), "{outcome:?}");
        assert!(seen.get() <= 21, "it went on for {} operators", seen.get() - 20);
    }
}
