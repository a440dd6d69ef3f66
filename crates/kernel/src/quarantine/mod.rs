//! Quarantine: a kernel that nobody trusts is run beside everything, on a thread of its own and within budgets, and
//! what it does wrong is found and named.
//!
//! Reading order: [`Budget`] (what is allowed), [`Finding`] and [`Report`] (what came of it), [`run`]; `trial` is what the
//! kernel is put through. Nothing leaves a quarantine but its report.

mod budget;
mod finding;
mod permit;
mod trial;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use budget::Budget;
pub use finding::{Finding, Measure, Report};
pub use permit::Permit;

use crate::graph::Graph;
use crate::stress::Ward;
use crate::tensor::Params;

/// Beats that may wait for the caller, who takes each at once.
const BEATS_MAX: usize = 64;
/// How long the caller waits for a thread that was told to stop.
const GRACE: Duration = Duration::from_secs(1);

/// What is put into quarantine: one input apart from the step, one output of the same shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// The computation, in training form.
    pub graph: Graph,
    /// Its weights.
    pub params: Params,
}

impl Subject {
    /// A graph with weights that start as its rules say.
    pub fn fresh(graph: Graph, seed: u64) -> Self {
        Self { params: graph.init_params(seed), graph }
    }
}

/// Why a quarantine did not take place. Says nothing about the kernel.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// There is nothing to run: whoever builds the subject refused.
    #[error("the kernel for the quarantine was not built")]
    Build {
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The kernel is none that a slot could take.
    #[error("the kernel cannot be put into a trial: {reason}")]
    Unfit {
        /// What a slot needs.
        reason: String,
    },
    /// The system did not start a thread. Try again when it has less to do.
    #[error("the thread of the quarantine was not started")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
}

/// What the quarantine's thread tells the caller.
enum Beat {
    /// One more run is done.
    Ran,
    /// The trial is over.
    Over(Result<(), QuarantineError>),
}

/// Builds a kernel and puts it through its trial on a thread of its own. Blocking, for `budget.total_time` and a grace of
/// a second at most: a trial past its time is abandoned, its thread told to stop.
///
/// # Errors
/// [`QuarantineError`] when there was no trial. What the kernel did wrong stands in the report.
pub fn run(
    budget: &Budget,
    build: impl FnOnce(&Permit) -> Result<Subject, Box<dyn Error + Send + Sync>> + Send + 'static,
) -> Result<Report, QuarantineError> {
    let began = Instant::now();
    let ward = Ward::default();
    let notes = Arc::new(Mutex::new(Report::default()));
    let (beats, heard) = sync_channel(BEATS_MAX);
    let (theirs, permit, allowed) = (Arc::clone(&notes), Permit::new(ward.clone()), budget.clone());
    thread::Builder::new()
        .name("quarantine".to_owned())
        .spawn(move || confined(&allowed, &permit, build, &theirs, &beats))
        .map_err(|source| QuarantineError::Thread { source })?;
    let outcome = watch(budget, began, &heard);
    let ended = match outcome {
        Watched::Over(result) => result.map(|()| true)?,
        Watched::Late { running } => {
            ward.stop();
            let mut notes = lock(&notes);
            notes.close(Finding::TimedOut { after_ms: milliseconds(running) });
            drop(notes);
            is_over_within(GRACE, &heard)
        }
    };
    let mut report = lock(&notes).clone();
    report.is_left_running = !ended;
    report.took_ms = milliseconds(began.elapsed());
    Ok(report)
}

/// What the caller saw.
enum Watched {
    Over(Result<(), QuarantineError>),
    Late { running: Duration },
}

fn watch(budget: &Budget, began: Instant, heard: &Receiver<Beat>) -> Watched {
    let mut last = began;
    loop {
        let left = budget.total_time.saturating_sub(began.elapsed());
        let left = left.min(budget.run_time_max.saturating_sub(last.elapsed()));
        match heard.recv_timeout(left) {
            Ok(Beat::Over(result)) => return Watched::Over(result),
            Ok(Beat::Ran) => last = Instant::now(),
            Err(RecvTimeoutError::Timeout) => {
                return Watched::Late { running: last.elapsed() };
            }
            // The thread always says that it is over, even when it panicked.
            Err(RecvTimeoutError::Disconnected) => return Watched::Over(Ok(())),
        }
        if began.elapsed() >= budget.total_time {
            return Watched::Late { running: began.elapsed() };
        }
    }
}

fn is_over_within(grace: Duration, heard: &Receiver<Beat>) -> bool {
    let told = Instant::now();
    loop {
        match heard.recv_timeout(grace.saturating_sub(told.elapsed())) {
            Ok(Beat::Ran) => {}
            Ok(Beat::Over(_)) | Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// The quarantine's thread.
fn confined(
    budget: &Budget,
    permit: &Permit,
    build: impl FnOnce(&Permit) -> Result<Subject, Box<dyn Error + Send + Sync>>,
    notes: &Mutex<Report>,
    beats: &SyncSender<Beat>,
) {
    // A caller who has gone does not listen any more; the ward has been told to stop then.
    let ran = || drop(beats.try_send(Beat::Ran));
    let whole = || {
        let subject = build(permit).map_err(|source| QuarantineError::Build { source })?;
        trial::go(budget, permit, &subject, notes, &ran)
    };
    let result = catch_unwind(AssertUnwindSafe(whole)).unwrap_or_else(|_| {
        // The panic's hook has reported it.
        lock(notes).close(Finding::Panicked);
        Ok(())
    });
    drop(beats.send(Beat::Over(result)));
}

fn lock(notes: &Mutex<Report>) -> MutexGuard<'_, Report> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
