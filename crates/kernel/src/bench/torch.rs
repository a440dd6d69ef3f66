//! The workloads beside PyTorch eager in one run: slices of ours and of it take turns.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::BenchError;
use super::workload::{Prepared, Workload};

/// The program that runs the same workloads in PyTorch.
const SCRIPT: &str = include_str!("torch_engine.py");
/// How long an answer may take beyond the slice itself; importing PyTorch takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Answers that may wait to be read: one is asked for at a time.
const ANSWERS_MAX: usize = 1;

/// Steps of one workload, ours and PyTorch's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beside {
    /// The workload's short name.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Times of our steps.
    pub engine: Times,
    /// Times of PyTorch's, if it was there.
    pub torch: Option<Times>,
    /// PyTorch's processor time per step over ours; where that is not known, its median time over ours.
    pub ratio: Option<f64>,
    /// The loops our plan chose, by measurement.
    pub choices: crate::plan::Choices,
}

/// What a number of steps took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// The shortest.
    pub least: f64,
    /// The tenth part was no longer.
    pub decile: f64,
    /// The half was no longer.
    pub median: f64,
    /// Processor time per step, on average: what other processes take from the machine is not in it.
    pub processor: Option<f64>,
    /// Number of steps.
    pub steps: usize,
}

/// Nanoseconds of every step so far and of the processor's time for all of them.
#[derive(Debug, Default, Deserialize)]
struct Slices {
    times: Vec<u64>,
    processor: Option<u64>,
}

impl Slices {
    fn add(&mut self, slice: Self) {
        let is_first = self.times.is_empty();
        self.times.extend(slice.times);
        self.processor = match (self.processor, slice.processor) {
            (None, time) if is_first => time,
            (sum, time) => sum.zip(time).map(|(sum, time)| sum + time),
        };
    }
}

impl Times {
    /// There is at least one step.
    fn new(Slices { times: mut nanoseconds, processor }: Slices) -> Self {
        nanoseconds.sort_unstable();
        let steps = nanoseconds.len();
        let at = |index: usize| nanoseconds.get(index).map_or(f64::NAN, |&time| time as f64 / 1e3);
        Self {
            least: at(0),
            decile: at(steps / 10),
            median: at(steps / 2),
            processor: processor.map(|time| time as f64 / 1e3 / steps.max(1) as f64),
            steps,
        }
    }

    fn ratio(&self, other: &Self) -> f64 {
        match self.processor.zip(other.processor) {
            Some((ours, theirs)) => theirs / ours,
            None => other.median / self.median,
        }
    }
}

/// Nanoseconds this thread has been run for, where the system tells.
fn processor_time() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Runs every workload for `rounds` slices, PyTorch's in turn with ours where a Python interpreter with PyTorch is
/// given. Each runs on one thread.
///
/// # Errors
/// [`BenchError::Torch`] when the interpreter does not start, has no PyTorch, fails or does not answer in time.
pub fn beside(
    python: Option<&Path>,
    rounds: usize,
    slice: Duration,
) -> Result<Vec<Beside>, BenchError> {
    let mut torch = python.map(Torch::start).transpose()?;
    let mut rows = Vec::new();
    for workload in Workload::all()? {
        let mut prepared = workload.prepare()?;
        let (mut ours, mut theirs) = (Slices::default(), Slices::default());
        for _ in 0..rounds.max(1) {
            ours.add(run(&mut prepared, slice)?);
            if let Some(torch) = &mut torch {
                theirs.add(torch.run(workload.name, slice)?);
            }
        }
        let engine = Times::new(ours);
        let torch = torch.is_some().then(|| Times::new(theirs));
        rows.push(Beside {
            name: workload.name,
            title: workload.title,
            engine,
            torch,
            ratio: torch.map(|torch| engine.ratio(&torch)),
            choices: prepared.plan().choices().clone(),
        });
    }
    Ok(rows)
}

/// As many steps as fit into a slice, one at least.
fn run(prepared: &mut Prepared<'_>, slice: Duration) -> Result<Slices, BenchError> {
    let before = processor_time();
    let mut times = Vec::new();
    let end = Instant::now() + slice;
    loop {
        let start = Instant::now();
        prepared.step()?;
        let now = Instant::now();
        times.push(u64::try_from((now - start).as_nanos()).unwrap_or(u64::MAX));
        if now >= end {
            break;
        }
    }
    let processor = processor_time().zip(before).map(|(after, before)| after - before);
    Ok(Slices { times, processor })
}

/// The Python process. It is ended when this is dropped.
struct Torch {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<std::io::Result<String>>,
}

impl Torch {
    fn start(python: &Path) -> Result<Self, BenchError> {
        let failed = |source: std::io::Error| {
            BenchError::Torch(format!("{} does not start: {source}", python.display()))
        };
        let mut child = Command::new(python)
            .args(["-u", "-c", SCRIPT])
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(requests), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::Torch("the process has no pipes".to_owned()));
        };
        let (send, answers) = sync_channel(ANSWERS_MAX);
        // Ends with the process, whose output it reads.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, requests, answers })
    }

    /// As [`run`], by PyTorch.
    fn run(&mut self, name: &str, slice: Duration) -> Result<Slices, BenchError> {
        writeln!(self.requests, "{name} {}", slice.as_secs_f64())
            .and_then(|()| self.requests.flush())
            .map_err(|source| BenchError::Torch(format!("it takes no request: {source}")))?;
        let line = match self.answers.recv_timeout(slice + PATIENCE) {
            Ok(Ok(line)) => line,
            Ok(Err(source)) => {
                return Err(BenchError::Torch(format!("unreadable answer: {source}")));
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(BenchError::Torch(format!(
                    "no answer within {} s",
                    PATIENCE.as_secs()
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(BenchError::Torch(
                    "it ended early; its own message is above. Does this Python have PyTorch?"
                        .to_owned(),
                ));
            }
        };
        serde_json::from_str(&line)
            .map_err(|source| BenchError::Torch(format!("unreadable answer {line:?}: {source}")))
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
