//! Time, as the training thread passes it in. Nothing in the core reads a clock.

use std::time::Duration;

/// One moment of a training run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, Unix milliseconds. Only compared with the issue time of commands.
    pub unix_ms: u64,
    /// Time since the run began; never goes back. Embargoes, time-outs and breakers use it. A run
    /// that must be reproducible passes a time that it derives from its steps.
    pub elapsed: Duration,
    /// Optimiser steps since the run began.
    pub step: u64,
    /// Epoch of the run.
    pub epoch: u32,
}
