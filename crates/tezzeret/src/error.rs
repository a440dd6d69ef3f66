//! What can go wrong, and whether another attempt may end otherwise.

use std::time::Duration;

use karn::BuildError;
use kernel::{GraphError, RunError};
use urza::{LibraryError, StoreError};

use crate::backlog::Retryable;
use crate::config::ConfigFault;
use crate::metrics::Fault;
use crate::queue::QueueError;

/// Why the forge did not run.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// Settings out of their ranges, all of them.
    #[error("the forge's settings have {} fault(s): {}", .0.len(), list(.0))]
    Config(Vec<ConfigFault>),
    /// The directory of the durable queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Another forge of this process sits at the same desk.
    #[error("another forge runs at this desk; stop it first")]
    DeskTaken,
}

fn list(faults: &[ConfigFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why an attempt at a job failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("{0}")]
    Compile(#[source] CompileError),
    #[error("not done within {0:?}")]
    TimedOut(Duration),
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("{0} times in a row the process ended while compiling it")]
    Interrupted(u32),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AttemptError {
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Compile(CompileError::Build(_)) => Fault::Build,
            Self::Compile(_) => Fault::Compile,
            Self::TimedOut(_) => Fault::Timeout,
            Self::Panicked(_) => Fault::Panic,
            Self::Interrupted(_) => Fault::Interrupted,
            Self::Library(_) | Self::Store(_) => Fault::Library,
        }
    }

    /// Whether another attempt may end otherwise. What the library could not do says nothing about the job.
    pub(crate) fn retryable(&self) -> Retryable {
        match self.fault() {
            Fault::Build | Fault::Interrupted => Retryable::No,
            Fault::Timeout | Fault::Panic | Fault::Compile => Retryable::Yes,
            Fault::Library => match self {
                Self::Store(StoreError::Size { .. } | StoreError::TierUnspecified) => Retryable::No,
                _ => Retryable::Always,
            },
        }
    }

    /// Whether the forge is to blame: an order for what cannot be built must not open the breaker.
    pub(crate) fn is_forge_fault(&self) -> bool {
        self.retryable() != Retryable::No
    }

    /// The error and what caused it, on one line.
    pub(crate) fn full_text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let line = error.to_string();
            // A transparent error says the same as its source.
            if !text.ends_with(&line) {
                text = format!("{text}: {line}");
            }
            cause = error.source();
        }
        text
    }
}

/// Why a job could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The blueprint has no graph for this job.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A rewrite of the graph was refused; a fault of this program.
    #[error("the graph could not be rewritten")]
    Graph(#[from] GraphError),
    /// A check run was refused; a fault of this program.
    #[error("the graph could not be run")]
    Run(#[from] RunError),
    /// The weights could not be laid out; a fault of this program.
    #[error("the weights could not be laid out")]
    Weights(#[from] kernel::StoreError),
    /// A value is infinite or no number.
    #[error("{value:?} is not finite on ordinary numbers")]
    NotFinite {
        /// The output, gradient or update.
        value: String,
    },
    /// The artifact could not be written; a fault of this program, or a site too large.
    #[error("the artifact could not be written")]
    Artifact(#[from] kernel::artifact::ArtifactError),
    /// A stored kernel gives something else on this machine than where it was made.
    #[error(
        "the stored kernel does not give what its manifest says; test this machine's memory, or the one's that made it"
    )]
    Probe,
    /// It was told to stop.
    #[error("stopped before it was done")]
    Cancelled,
}
