//! What a kernel is put through: it is trained for some steps between an activation and a fixed linear readout, each run
//! is repeated, and everything that comes out is looked at.
//!
//! The readout has to learn nothing and stays as it is, so whatever changes is the kernel's doing. The target is that of
//! `x + tanh(x) / 2` under the same readout, which a kernel can learn and the identity does not meet.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::finding::{Finding, Measure, Report};
use super::{Budget, Permit, QuarantineError, Subject, lock, milliseconds};
use crate::cost::Cost;
use crate::error::{GraphError, RunError};
use crate::gradient::{differentiate, gradient_name};
use crate::graph::{Graph, STEP_INPUT};
use crate::init::Init;
use crate::optimiser::{Adam, Optimiser, OptimiserError};
use crate::outputs::Outputs;
use crate::plan::Plan;
use crate::store::{ParamStore, StoreError};
use crate::stress::Ward;
use crate::tensor::Tensor;

/// The activation that goes in.
const INPUT: &str = "trial.input";
/// Zeros added to what comes out, so that the gradient there can be asked for.
const SHIFT: &str = "trial.shift";
/// What the readout should say of each sample.
const TARGET: &str = "trial.target";
const OUTPUT: &str = "trial.output";
const LOSS: &str = "trial.loss";
/// Prefix and group of the kernel's parameters.
const KERNEL: &str = "kernel";

/// Batches that are trained on in turn, and scored together before and after.
const BATCHES: u64 = 4;
/// Runs of one plan after which its time is judged.
const RUNS_JUDGED: u32 = 3;
/// Loss below which a rise is rounding.
const HARM_MIN: f64 = 1e-3;
/// Seed of everything drawn here.
const SEED: u64 = 0x5152_4e54;

/// One batch of the trial.
struct Batch {
    input: Vec<f32>,
    target: Vec<f32>,
}

/// A plan with its times.
struct Timed {
    plan: Plan,
    fastest: Duration,
    runs: u32,
}

struct Trial<'a> {
    budget: &'a Budget,
    ward: &'a Ward,
    notes: &'a Mutex<Report>,
    ran: &'a dyn Fn(),
    run_time: Duration,
    training: Timed,
    evaluation: Timed,
    store: ParamStore,
    optimiser: Optimiser,
    batches: Vec<Batch>,
    zeros: Vec<f32>,
    /// Bytes held after the first run.
    held_first: Option<u64>,
}

/// The trial ended before its last step: something was found, or it was told to stop. What was found is in the notes.
struct Ended;

/// Puts a kernel through its trial. Findings and measures go into `notes` as they come.
pub(super) fn go(
    budget: &Budget,
    permit: &Permit,
    subject: &Subject,
    notes: &Mutex<Report>,
    ran: &dyn Fn(),
) -> Result<(), QuarantineError> {
    let mut trial = match Trial::prepare(budget, permit, subject, notes, ran)? {
        Ok(trial) => trial,
        Err(finding) => {
            lock(notes).find(finding);
            return Ok(());
        }
    };
    // Ended or not: what there is to say stands in the notes.
    match trial.whole() {
        Ok(()) | Err(Ended) => Ok(()),
    }
}

impl<'a> Trial<'a> {
    fn prepare(
        budget: &'a Budget,
        permit: &'a Permit,
        subject: &Subject,
        notes: &'a Mutex<Report>,
        ran: &'a dyn Fn(),
    ) -> Result<Result<Self, Finding>, QuarantineError> {
        let (name, shape) = sole_input(&subject.graph)?;
        let composed = compose(subject, &name, &shape);
        let graph =
            composed.map_err(|error| QuarantineError::Unfit { reason: error.to_string() })?;
        let prepared = Self::compile(&graph, permit, subject);
        let (training, evaluation, store) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(Finding::Failed { error })),
        };
        let mut optimiser = Optimiser::adam(Adam::default());
        if let Err(error) = optimiser.add_group(KERNEL, budget.rate) {
            return Ok(Err(Finding::Failed { error: error.to_string() }));
        }
        let bytes = (training.plan.memory_bytes() + evaluation.plan.memory_bytes()) as u64;
        lock(notes).arena_bytes = bytes;
        if bytes > budget.memory_bytes_max {
            let budget_bytes = budget.memory_bytes_max;
            return Ok(Err(Finding::TooLarge { bytes, budget_bytes }));
        }
        Ok(Ok(Self {
            budget,
            ward: permit.ward(),
            notes,
            ran,
            run_time: budget.run_time_of(&Cost::of(&subject.graph)),
            training,
            evaluation,
            store,
            optimiser,
            batches: (0..BATCHES).map(|number| batch(&shape, number)).collect(),
            zeros: vec![0.0; shape.iter().product()],
            held_first: None,
        }))
    }

    fn compile(
        graph: &Graph,
        permit: &Permit,
        subject: &Subject,
    ) -> Result<(Timed, Timed, ParamStore), String> {
        let text = |error: GraphError| error.to_string();
        let names: Vec<String> = graph.trainable().map(str::to_owned).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).chain([INPUT, SHIFT]).collect();
        let training = differentiate(graph, LOSS, &names).map_err(text)?;
        let evaluation = graph.select(&[LOSS]).and_then(|graph| graph.inference()).map_err(text)?;
        let plan = |graph| Plan::compile_in_quarantine(graph, permit).map_err(text);
        let params = subject.params.prefixed(KERNEL);
        let store = ParamStore::with_group(KERNEL, &params);
        let store = store.map_err(|error: StoreError| error.to_string())?;
        Ok((Timed::new(plan(&training)?), Timed::new(plan(&evaluation)?), store))
    }

    fn whole(&mut self) -> Result<(), Ended> {
        let before = self.score(0)?;
        lock(self.notes).loss_before = Some(before);
        let mut halfway = before;
        for step in 0..self.budget.steps {
            if step == self.budget.steps / 2 {
                halfway = self.score(step)?;
            }
            self.step(step)?;
        }
        self.judge_vanishing()?;
        let after = self.score(self.budget.steps)?;
        lock(self.notes).loss_after = Some(after);
        // A sound kernel may overshoot for a while; what climbs steadily is climbing on purpose.
        let allowed = before * (1.0 + self.budget.harm_max) + HARM_MIN;
        if halfway > allowed && after > allowed {
            return self.found(Finding::Harmful { before, after });
        }
        Ok(())
    }

    /// Mean loss over all batches in the form for use.
    fn score(&mut self, step: u32) -> Result<f64, Ended> {
        let mut sum = 0.0;
        for number in 0..self.batches.len() {
            let first = self.evaluate(number, step)?;
            let again = self.evaluate(number, step)?;
            if !first.is_finite() {
                return self.found(Finding::NotFinite { value: "loss".to_owned(), step });
            }
            if first.to_bits() != again.to_bits() {
                let difference = f64::from((first - again).abs());
                let value = "loss".to_owned();
                return self.found(Finding::NotRepeatable { value, difference });
            }
            sum += f64::from(first);
        }
        Ok(sum / self.batches.len() as f64)
    }

    fn evaluate(&mut self, number: usize, step: u32) -> Result<f32, Ended> {
        let step_input = [step as f32];
        let inputs = inputs(&self.batches[number], &self.zeros, &step_input);
        let began = Instant::now();
        let outcome = self.evaluation.plan.run(&self.store, &inputs);
        let outcome = outcome.map(|outputs| outputs.scalar(LOSS).unwrap_or(f32::NAN));
        self.evaluation.took(began.elapsed());
        let times = (self.evaluation.fastest, self.evaluation.runs);
        self.after_run(outcome, times)
    }

    /// One training step: the run, its repetition, a look at both, the optimiser.
    fn step(&mut self, step: u32) -> Result<(), Ended> {
        let first = self.train(step)?;
        let again = self.train(step)?;
        if let Some(value) = first.not_finite() {
            self.note(&first, again.took);
            return self.found(Finding::NotFinite { value: value.to_owned(), step });
        }
        if let Some((value, difference)) = first.difference(&again) {
            let value = value.to_owned();
            return self.found(Finding::NotRepeatable { value, difference });
        }
        self.note(&first, again.took);
        self.judge_size(&first)?;
        let scale = if first.own_norm > 1.0 { (1.0 / first.own_norm) as f32 } else { 1.0 };
        let gradients = first.values.iter().filter_map(|(name, values)| {
            let name = crate::gradient::gradient_target(name)?;
            Some((name, values.as_slice()))
        });
        let moved: Result<(), OptimiserError> =
            self.optimiser.step_with(&mut self.store, gradients, scale);
        if let Err(error) = moved {
            return self.found(Finding::Failed { error: error.to_string() });
        }
        for (name, values) in &first.updates {
            if let Err(error) = self.store.set(name, values) {
                return self.found(Finding::Failed { error: error.to_string() });
            }
        }
        Ok(())
    }

    fn train(&mut self, step: u32) -> Result<Run, Ended> {
        let number = step as usize % self.batches.len();
        let step_input = [step as f32];
        let inputs = inputs(&self.batches[number], &self.zeros, &step_input);
        let began = Instant::now();
        let outcome = self.training.plan.run(&self.store, &inputs);
        let took = began.elapsed();
        let outcome = outcome.map(|outputs| Run::of(&outputs, &self.batches[number].input, took));
        self.training.took(took);
        let times = (self.training.fastest, self.training.runs);
        self.after_run(outcome, times)
    }

    /// What is looked at after every run, whatever it was for.
    fn after_run<T>(
        &mut self,
        outcome: Result<T, RunError>,
        (fastest, runs): (Duration, u32),
    ) -> Result<T, Ended> {
        let held = self.ward.leaked_bytes();
        let grown = held.saturating_sub(*self.held_first.get_or_insert(held));
        let all_runs = {
            let mut notes = lock(self.notes);
            notes.runs += 1;
            notes.grown_bytes = grown;
            let known = notes.fastest_run_ms.unwrap_or(f64::INFINITY);
            notes.fastest_run_ms = Some(known.min(milliseconds(fastest)));
            notes.runs
        };
        (self.ran)();
        let value = match outcome {
            Ok(value) => value,
            Err(RunError::Deadlock { threads, waited_ms }) => {
                return self.found(Finding::Deadlocked { threads, waited_ms });
            }
            Err(RunError::Leak { bytes, limit }) => {
                let (grown_bytes, budget_bytes) = (bytes, limit);
                return self.found(Finding::MemoryGrew {
                    grown_bytes,
                    budget_bytes,
                    runs: all_runs,
                });
            }
            Err(RunError::Stopped) => return Err(Ended),
            Err(error) => return self.found(Finding::Failed { error: error.to_string() }),
        };
        if grown > self.budget.growth_bytes_max {
            let budget_bytes = self.budget.growth_bytes_max;
            let finding = Finding::MemoryGrew { grown_bytes: grown, budget_bytes, runs: all_runs };
            return self.found(finding);
        }
        if runs >= RUNS_JUDGED && fastest > self.run_time {
            let (fastest_ms, budget_ms) = (milliseconds(fastest), milliseconds(self.run_time));
            return self.found(Finding::TooSlow { fastest_ms, budget_ms, runs });
        }
        if lock(self.notes).is_closed() || self.ward.is_stopped() {
            return Err(Ended);
        }
        Ok(value)
    }

    fn note(&self, run: &Run, again: Duration) {
        lock(self.notes).measures.push(Measure {
            loss: run.loss,
            gradient_norm: run.own_norm,
            amplification: run.amplification(),
            input_rms: run.input_rms,
            output_rms: run.output_rms,
            run_ms: milliseconds(run.took.min(again)),
        });
    }

    fn judge_size(&self, run: &Run) -> Result<(), Ended> {
        let mut notes = lock(self.notes);
        let (amplification, ceiling) = (run.amplification(), self.budget.amplification_max);
        if amplification > ceiling {
            notes.find(Finding::GradientExploded { amplification, ceiling });
        }
        let (ratio, ceiling) = (run.output_rms / run.input_rms, self.budget.output_ratio_max);
        if ratio > ceiling {
            notes.find(Finding::OutputDrifted { ratio, ceiling });
        }
        if notes.is_sound() { Ok(()) } else { Err(Ended) }
    }

    fn judge_vanishing(&self) -> Result<(), Ended> {
        let best = lock(self.notes).amplification().map(|(_, high)| high);
        let floor = self.budget.amplification_min;
        match best {
            Some(amplification) if amplification < floor => {
                self.found(Finding::GradientVanished { amplification, floor })
            }
            _ => Ok(()),
        }
    }

    fn found<T>(&self, finding: Finding) -> Result<T, Ended> {
        lock(self.notes).find(finding);
        Err(Ended)
    }
}

impl Timed {
    fn new(plan: Plan) -> Self {
        Self { plan, fastest: Duration::MAX, runs: 0 }
    }

    fn took(&mut self, time: Duration) {
        self.fastest = self.fastest.min(time);
        self.runs += 1;
    }
}

/// What one training run gave, copied out of the plan.
struct Run {
    values: Vec<(String, Vec<f32>)>,
    updates: Vec<(String, Vec<f32>)>,
    loss: f64,
    own_norm: f64,
    norm_in: f64,
    norm_out: f64,
    input_rms: f64,
    output_rms: f64,
    took: Duration,
}

impl Run {
    fn of(outputs: &Outputs<'_>, input: &[f32], took: Duration) -> Self {
        let copied = |(name, values): (&str, &[f32])| (name.to_owned(), values.to_vec());
        let values: Vec<_> = outputs.iter().map(copied).collect();
        let updates = outputs.updates().map(copied).collect();
        let gradient = |name: &str| outputs.get(&gradient_name(name)).map_or(f64::NAN, norm);
        let own = outputs.gradients().filter(|(name, _)| ![INPUT, SHIFT].contains(name));
        let own_norm = own.map(|(_, values)| norm(values).powi(2)).sum::<f64>().sqrt();
        let output = outputs.get(OUTPUT).unwrap_or_default();
        Self {
            values,
            updates,
            loss: f64::from(outputs.scalar(LOSS).unwrap_or(f32::NAN)),
            own_norm,
            norm_in: gradient(INPUT),
            norm_out: gradient(SHIFT),
            input_rms: root_mean_square(input),
            output_rms: root_mean_square(output),
            took,
        }
    }

    fn amplification(&self) -> f64 {
        self.norm_in / self.norm_out
    }

    fn all(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.values.iter().chain(&self.updates).map(|(name, values)| (&**name, &**values))
    }

    /// The first value that is not finite, the output and the loss before what follows from them.
    fn not_finite(&self) -> Option<&str> {
        let is_bad = |values: &[f32]| !values.iter().all(|value| value.is_finite());
        self.all().find(|(_, values)| is_bad(values)).map(|(name, _)| plain(name))
    }

    /// The first value that another run of the same does not give to the bit.
    fn difference(&self, again: &Self) -> Option<(&str, f64)> {
        let pairs = self.all().zip(again.all());
        pairs
            .filter(|((_, a), (_, b))| {
                !a.iter().map(|value| value.to_bits()).eq(b.iter().map(|value| value.to_bits()))
            })
            .map(|((name, a), (_, b))| {
                let apart = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
                (plain(name), apart.fold(0.0, f64::max))
            })
            .next()
    }
}

/// A value's name without what this trial put before it.
fn plain(name: &str) -> &str {
    name.strip_prefix("trial.").unwrap_or(name)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

fn root_mean_square(values: &[f32]) -> f64 {
    norm(values) / (values.len().max(1) as f64).sqrt()
}

fn inputs<'a>(
    batch: &'a Batch,
    zeros: &'a [f32],
    step: &'a [f32],
) -> [(&'static str, &'a [f32]); 4] {
    [(INPUT, &batch.input), (SHIFT, zeros), (TARGET, &batch.target), (STEP_INPUT, step)]
}

/// Name and shape of the one input that is not the engine's own.
fn sole_input(graph: &Graph) -> Result<(String, Vec<usize>), QuarantineError> {
    let unfit = |reason: &str| QuarantineError::Unfit { reason: reason.to_owned() };
    let mut inputs = graph.inputs().filter(|(name, _)| *name != STEP_INPUT);
    match (inputs.next(), inputs.next()) {
        (Some((name, shape)), None) if shape.len() > 1 => Ok((name.to_owned(), shape.to_vec())),
        (Some(_), None) => Err(unfit("its input has no features behind the batch")),
        _ => Err(unfit("it takes another number of inputs than one")),
    }
}

/// The kernel between the activation and the readout, with the loss.
fn compose(subject: &Subject, name: &str, shape: &[usize]) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let x = graph.input(INPUT, shape)?;
    let shift = graph.input(SHIFT, shape)?;
    let target = graph.input(TARGET, &shape[..1])?;
    let outputs = graph.inline(&subject.graph, &[(name, x)], KERNEL)?;
    let mut outputs = outputs.into_values();
    let (Some(output), None) = (outputs.next(), outputs.next()) else {
        return Err(GraphError::UnknownName {
            kind: "single output",
            name: OUTPUT.to_owned(),
            known: subject.graph.outputs().iter().map(|output| output.name.clone()).collect(),
        });
    };
    let shifted = graph.add(output, shift)?;
    if graph.shape(output) != shape {
        return Err(GraphError::Shape {
            operator: "quarantine",
            shapes: vec![graph.shape(output).to_vec()],
            expected: format!("an output of the input's shape {shape:?}"),
        });
    }
    let flat = graph.flatten(shifted)?;
    let readout = graph.constant(Tensor::new([features(shape)], readout(shape))?)?;
    let weighted = graph.mul(flat, readout)?;
    let prediction = graph.sum(weighted, &[1])?;
    let loss = graph.mse(prediction, target)?;
    graph.output(OUTPUT, output)?;
    graph.output(LOSS, loss)?;
    Ok(graph)
}

fn features(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

/// Weights of one size and either sign, of length 1 together.
fn readout(shape: &[usize]) -> Vec<f32> {
    let count = features(shape);
    let signs = Init::Uniform { low: -1.0, high: 1.0 }.values("readout", &[count], SEED);
    let size = 1.0 / (count as f32).sqrt();
    signs.into_iter().map(|sign| size.copysign(sign)).collect()
}

/// Activations of unit variance and what the readout should say of them.
fn batch(shape: &[usize], number: u64) -> Batch {
    let rule = Init::Normal { mean: 0.0, deviation: 1.0 };
    let input = rule.values("input", shape, SEED + number);
    let readout = readout(shape);
    let rows = input.chunks_exact(readout.len());
    let wanted = |row: &[f32]| {
        let terms = row.iter().zip(&readout).map(|(&x, &weight)| weight * (x + 0.5 * x.tanh()));
        terms.sum()
    };
    let target = rows.map(wanted).collect();
    Batch { input, target }
}
