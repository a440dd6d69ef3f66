//! A line of the boot table.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use oona::Heartbeat;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::core::Criticality;

/// What ends a worker that failed; its chain of causes is kept and logged once.
pub type WorkerError = Box<dyn Error + Send + Sync>;
/// A worker's task.
pub type WorkerFuture = Pin<Box<dyn Future<Output = Result<(), WorkerError>> + Send>>;
/// Builds a worker anew for every start. Called on the supervisor's own task: it only puts handles
/// together, and whatever may fail or take time belongs into the future.
pub type Build = Box<dyn FnMut(Context) -> WorkerFuture + Send>;

/// What the supervisor gives a worker at each start.
#[derive(Debug, Clone)]
pub struct Context {
    /// Ends the worker.
    pub stop: CancellationToken,
    /// Its sign of life.
    pub heartbeat: Heartbeat,
    /// Counts the restarts of what it depends on.
    pub dependency_restarts: watch::Receiver<u64>,
}

/// One worker of the boot table.
pub struct Row {
    /// Name, `crate.duty`.
    pub name: &'static str,
    /// What its giving up means.
    pub criticality: Criticality,
    /// Names of workers that stand above it in the table.
    pub depends_on: &'static [&'static str],
    /// Silent for longer, it counts as hung.
    pub heartbeat_budget: Duration,
    /// Groups stop in descending order; what is told to stop last has the lowest.
    pub stop_group: u8,
    /// What is lost while it does not run, as a short sentence: `kernels are not served`.
    pub function: &'static str,
    /// Makes the worker.
    pub build: Build,
}

impl Row {
    /// Says what is lost while the worker does not run.
    pub fn losing(self, function: &'static str) -> Self {
        Self { function, ..self }
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes a [`Build`] of a closure that returns a worker's `run` future, whatever its error type.
pub fn build<F, R, E>(mut make: F) -> Build
where
    F: FnMut(Context) -> R + Send + 'static,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<WorkerError>,
{
    Box::new(move |context| {
        let run = make(context);
        Box::pin(async move { run.await.map_err(Into::into) })
    })
}

/// An error with its causes, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).join(": ")
}

/// An error's text, then that of its cause, and so on. A cause that the text before it ends with
/// is not repeated.
pub fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    // SQLite quotes damaged bytes as they are; nothing may carry them on.
    let sound = |text: String| String::from_utf8_lossy(text.as_bytes()).into_owned();
    let mut texts = vec![sound(error.to_string())];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = sound(cause.to_string());
        if texts.last().is_none_or(|before| !before.ends_with(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    texts
}
