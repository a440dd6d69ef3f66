//! The stress operators: what goes wrong in a runtime rather than in numbers, as data, bounded by constants.
//!
//! They exist to test the gates (blueprints BP046 to BP049). Each passes its operand on and does harm beside it; each ends
//! by itself within the bounds below, and at once when its quarantine is told to stop. Nothing but a plan compiled with
//! a [`crate::quarantine::Permit`] runs them: the interpreter, ordinary plans and artifacts refuse a graph that
//! holds one.

mod harm;
mod ward;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use ward::Ward;

/// Most rounds of one run of [`Stress::Loop`].
pub const ITERATIONS_MAX: u32 = 10_000;
/// How long one round of [`Stress::Loop`] keeps a core busy, whatever the machine: a run ends within a second.
pub const ROUND: Duration = Duration::from_micros(100);
/// Largest growth of one run of [`Stress::Leak`], in mebibytes.
pub const LEAK_MEBIBYTES_MAX: f32 = 5.0;
/// Bytes that all leaks of one quarantine may hold together; they are given back when it ends.
pub const LEAKED_BYTES_MAX: u64 = 64 << 20;
/// Most threads in the ring of [`Stress::Deadlock`].
pub const THREADS_MAX: u32 = 16;
/// How long the ring of [`Stress::Deadlock`] waits before it gives up.
pub const DEADLOCK_WAIT: Duration = Duration::from_millis(200);
/// Longest pause inside an update of [`Stress::Race`], in nanoseconds.
pub const WINDOW_NS_MAX: u32 = 1000;

/// What a stress operator does besides passing its operand on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Stress {
    /// Keeps a core busy for `iterations` rounds of [`ROUND`] each.
    Loop {
        /// From 1 to [`ITERATIONS_MAX`].
        iterations: u32,
    },
    /// Holds on to this much more memory after every run, until [`LEAKED_BYTES_MAX`].
    Leak {
        /// Above 0, to [`LEAK_MEBIBYTES_MAX`].
        mebibytes: f32,
    },
    /// Each thread of a ring holds a lock and waits for its neighbour's (Coffman et al. 1971: a circular wait).
    Deadlock {
        /// From 2 to [`THREADS_MAX`].
        threads: u32,
    },
    /// Threads update one number without a lock, each pausing between its reading and its writing, so that updates
    /// are lost by chance; the operand is multiplied by that number, which is near 1 and never twice the same.
    Race {
        /// The pause, from 1 to [`WINDOW_NS_MAX`].
        window_ns: u32,
    },
}

impl Stress {
    /// The operator's name, as the manifest spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loop { .. } => "stress_loop",
            Self::Leak { .. } => "stress_leak",
            Self::Deadlock { .. } => "stress_deadlock",
            Self::Race { .. } => "stress_race",
        }
    }

    /// The attribute at fault with what would be accepted, if one is out of its bounds.
    pub(crate) fn fault(self) -> Option<(&'static str, String, &'static str)> {
        let (fits, attribute, found, expected) = match self {
            Self::Loop { iterations } => (
                (1..=ITERATIONS_MAX).contains(&iterations),
                "iterations",
                iterations.to_string(),
                "from 1 to 10000",
            ),
            Self::Leak { mebibytes } => (
                mebibytes > 0.0 && mebibytes <= LEAK_MEBIBYTES_MAX,
                "mebibytes",
                mebibytes.to_string(),
                "above 0, to 5",
            ),
            Self::Deadlock { threads } => (
                (2..=THREADS_MAX).contains(&threads),
                "threads",
                threads.to_string(),
                "from 2 to 16",
            ),
            Self::Race { window_ns } => (
                (1..=WINDOW_NS_MAX).contains(&window_ns),
                "window_ns",
                window_ns.to_string(),
                "from 1 to 1000",
            ),
        };
        (!fits).then_some((attribute, found, expected))
    }
}
