//! What may change while a bus works: the secrets, and the limits of admission. Whoever reloads the
//! settings holds the sending ends; a bus only looks at what is in force, each time it needs it.

use std::sync::Arc;
use std::time::Duration;

use leyline::sign::Keyring;
use tokio::sync::watch;

use crate::config::Config;

/// The limits of admission, as [`Config`] names them. Check them there before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `OONA_QUEUE_DEPTH_MAX`: the backlog that counts as full.
    pub depth_max: u64,
    /// `OONA_BACKPRESSURE_THRESHOLD`: the backlog from which LOW is refused.
    pub backpressure_threshold: u64,
    /// `OONA_EMERGENCY_THRESHOLD`: the backlog from which urgent messages are rerouted.
    pub emergency_threshold: u64,
    /// `OONA_RECOVERY_DEPTH`: the backlog below which conservative mode may end.
    pub recovery_depth: u64,
    /// `OONA_RECOVERY_WINDOW_MS`: how long it must have been below that.
    pub recovery_window: Duration,
    /// `OONA_EMERGENCY_MAX_PER_MIN`: emergency messages a minute of one origin.
    pub emergency_per_min: u32,
}

impl Config {
    /// The limits with which a bus of these settings begins.
    pub fn limits(&self) -> Limits {
        Limits {
            depth_max: self.depth_max,
            backpressure_threshold: self.backpressure_threshold,
            emergency_threshold: self.emergency_threshold,
            recovery_depth: self.recovery_depth,
            recovery_window: self.recovery_window,
            emergency_per_min: self.emergency_per_min,
        }
    }
}

/// The receiving ends of what may change. Without their senders everything stays as it is.
#[derive(Debug, Clone)]
pub struct Live {
    /// The secrets in force.
    pub keyring: watch::Receiver<Arc<Keyring>>,
    /// The limits in force.
    pub limits: watch::Receiver<Limits>,
}

impl Live {
    /// What never changes.
    pub fn fixed(keyring: Keyring, limits: Limits) -> Self {
        Self { keyring: watch::channel(Arc::new(keyring)).1, limits: watch::channel(limits).1 }
    }

    /// The secrets in force. Whoever needs them twice for one message asks once.
    pub(crate) fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.borrow())
    }

    /// The limits in force.
    pub(crate) fn limits(&self) -> Limits {
        *self.limits.borrow()
    }
}
