//! Choices between loops: measured on this machine, kept beside an artifact, handed back at a later start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use super::aligned::Aligned;
use super::lower::Program;
use super::step::Kernel;

/// How much faster, in percent, another loop must be to be preferred over the one the rule takes: less is noise.
const GAIN_MIN: u32 = 5;
/// Most runs of one loop that a measurement takes.
const RUNS_MAX: u32 = 200;

/// The loop taken for one operator of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The operator: `product`, `convolution`, `convolution_input_gradient` or `convolution_weight_gradient`.
    pub operator: String,
    /// Its sizes and attributes, as the engine spells them.
    pub shape: String,
    /// The loop.
    pub algorithm: Algorithm,
    /// Least time one run of it took on the machine that measured, if it was measured.
    pub nanoseconds: Option<u64>,
}

/// Choices by operator and shape. A plan made with the same choices gives the same bits on one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Choice>", into = "Vec<Choice>")]
pub struct Choices(BTreeMap<(String, String), Choice>);

impl Choices {
    /// The choice for an operator of a shape.
    pub fn get(&self, operator: &str, shape: &str) -> Option<&Choice> {
        self.0.get(&(operator.to_owned(), shape.to_owned()))
    }

    /// Every choice, ordered by operator and shape.
    pub fn iter(&self) -> impl Iterator<Item = &Choice> {
        self.0.values()
    }

    /// Number of choices.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none: the plan has no operator that two loops compute.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert(&mut self, choice: Choice) {
        self.0.insert((choice.operator.clone(), choice.shape.clone()), choice);
    }

    /// Adds what these do not have from others, to hand one set to many plans.
    pub fn merge(&mut self, others: &Self) {
        for choice in others.iter() {
            if self.get(&choice.operator, &choice.shape).is_none() {
                self.insert(choice.clone());
            }
        }
    }

    /// Gives every step the loop chosen for it, or that of the rule, and returns what was taken.
    pub(super) fn apply(&self, program: &mut Program) -> Self {
        let mut taken = Self::default();
        for step in &mut program.steps {
            let Some(rule) = step.kernel.algorithm_by_rule() else { continue };
            step.kernel.set_algorithm(rule);
            let Some((operator, shape)) = step.kernel.choice_key() else { continue };
            let known = self.get(operator, &shape);
            let known = known.filter(|known| step.kernel.algorithms().contains(&known.algorithm));
            if let Some(known) = known {
                step.kernel.set_algorithm(known.algorithm);
            }
            taken.insert(Choice {
                operator: operator.to_owned(),
                shape,
                algorithm: known.map_or(rule, |known| known.algorithm),
                nanoseconds: known.and_then(|known| known.nanoseconds),
            });
        }
        taken
    }

    /// Measures the loops of every step that has a choice, each operator and shape once, until the budget is used up.
    /// What is left then stays with the rule and is not among the result.
    pub(super) fn measure(program: &Program, budget: Duration) -> Self {
        let start = Instant::now();
        let mut open: BTreeMap<(&'static str, String), Kernel> = BTreeMap::new();
        for step in &program.steps {
            if let Some(key) = step.kernel.choice_key() {
                open.entry(key).or_insert_with(|| step.kernel.clone());
            }
        }
        let mut choices = Self::default();
        let count = open.len() as u32;
        for (index, ((operator, shape), kernel)) in open.into_iter().enumerate() {
            let left = budget.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            let share = left / (count - index as u32);
            if let Some((algorithm, time)) = fastest(&kernel, share) {
                let nanoseconds = u64::try_from(time.as_nanos()).ok();
                choices.insert(Choice {
                    operator: operator.to_owned(),
                    shape,
                    algorithm,
                    nanoseconds,
                });
            }
        }
        choices
    }
}

impl From<Vec<Choice>> for Choices {
    /// Of two for the same operator and shape the later is kept.
    fn from(list: Vec<Choice>) -> Self {
        let mut choices = Self::default();
        list.into_iter().for_each(|choice| choices.insert(choice));
        choices
    }
}

impl From<Choices> for Vec<Choice> {
    fn from(choices: Choices) -> Self {
        choices.0.into_values().collect()
    }
}

/// The fastest loop for a step with its least time. The loops take turns, so that what else the machine does meets
/// all of them; each runs twice at least, whatever the budget.
fn fastest(kernel: &Kernel, budget: Duration) -> Option<(Algorithm, Duration)> {
    let rule = kernel.algorithm_by_rule()?;
    let (lengths, out_len) = kernel.lengths()?;
    let operands: Vec<Aligned> = lengths.into_iter().map(filled).collect();
    let mut out = Aligned::zeros(out_len);
    let mut loops: Vec<(Algorithm, Kernel, Duration)> = Vec::new();
    for &algorithm in kernel.algorithms() {
        let mut kernel = kernel.clone();
        kernel.set_algorithm(algorithm);
        loops.push((algorithm, kernel, Duration::MAX));
    }
    let scratch_len = loops.iter().map(|(_, kernel, _)| kernel.scratch_len()).max().unwrap_or(0);
    let mut scratch = Aligned::zeros(scratch_len);
    let begin = Instant::now();
    for run in 0..RUNS_MAX {
        for (_, kernel, least) in &mut loops {
            let start = Instant::now();
            kernel.run(operands.len(), |at| &operands[at], &mut out, &mut scratch).ok()?;
            *least = (*least).min(start.elapsed());
        }
        if run > 0 && begin.elapsed() >= budget {
            break;
        }
    }
    let of_rule = loops.iter().find(|(algorithm, ..)| *algorithm == rule)?.2;
    let best = loops.iter().min_by_key(|(.., least)| *least)?;
    let gains = best.2 < of_rule * (100 - GAIN_MIN) / 100;
    Some(if gains { (best.0, best.2) } else { (rule, of_rule) })
}

/// Values of either sign that repeat nowhere near: nothing about a product's time depends on them.
fn filled(len: usize) -> Aligned {
    let mut buffer = Aligned::zeros(len);
    for (index, value) in buffer.iter_mut().enumerate() {
        *value = (index * 7919 % 1013) as f32 / 506.0 - 1.0;
    }
    buffer
}
