//! The policy in force, shared between who decides and who updates. Readers never wait: they take
//! the current policy as one immutable value, and the next one is swapped in as a whole.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use kernel::Digest;
use serde::{Deserialize, Serialize};

use crate::weights::Weights;

/// Which policy this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Label that stands in commands and reports (`policy_version`).
    pub version: String,
    /// Id its sender gave it; `built_in` for the built-in one.
    pub policy_id: String,
    /// Its place in the order of policies; 0 for the built-in one.
    pub sequence: u64,
    /// Digest of the payload it came from; `None` for the built-in one.
    pub digest: Option<Digest>,
}

/// One policy, immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Which it is.
    pub identity: Identity,
    /// Its numbers.
    pub weights: Weights,
}

/// The policy in force and the one before it. Clone it freely: all clones are the same policy.
#[derive(Debug, Clone)]
pub struct LivePolicy(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Loaded>,
    /// Taken by writers only.
    previous: Mutex<Option<Arc<Loaded>>>,
}

impl LivePolicy {
    /// Puts a policy in force, with none before it.
    pub fn new(first: Loaded) -> Self {
        Self::with_previous(first, None)
    }

    pub(crate) fn with_previous(current: Loaded, previous: Option<Loaded>) -> Self {
        let previous = Mutex::new(previous.map(Arc::new));
        Self(Arc::new(Shared { current: ArcSwap::from_pointee(current), previous }))
    }

    /// The built-in policy, for a trainer that takes no updates.
    pub fn built_in(growth: &crate::config::Growth) -> Self {
        Self::new(Loaded::built_in(growth))
    }

    /// The policy in force. Never waits.
    pub fn load(&self) -> Arc<Loaded> {
        self.0.current.load_full()
    }

    /// Puts a policy in force and keeps the one before it.
    pub(crate) fn swap(&self, next: Loaded) {
        let mut previous = self.0.previous.lock().unwrap_or_else(PoisonError::into_inner);
        *previous = Some(self.0.current.swap(Arc::new(next)));
    }

    /// Puts the policy before the one in force back, which becomes the one before it.
    pub(crate) fn swap_back(&self) -> Option<Identity> {
        let mut previous = self.0.previous.lock().unwrap_or_else(PoisonError::into_inner);
        let back = previous.take()?;
        let identity = back.identity.clone();
        *previous = Some(self.0.current.swap(back));
        Some(identity)
    }

    /// Replaces the label of the policy in force; its numbers and the policy before it stay.
    pub(crate) fn relabel(&self, version: String, policy_id: String) {
        let mut next = Loaded::clone(&self.load());
        (next.identity.version, next.identity.policy_id) = (version, policy_id);
        self.0.current.store(Arc::new(next));
    }

    /// The policy before the one in force.
    pub fn previous(&self) -> Option<Arc<Loaded>> {
        self.0.previous.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Loaded {
    /// The built-in policy.
    pub fn built_in(growth: &crate::config::Growth) -> Self {
        let identity = Identity {
            version: crate::weights::ARCHITECTURE.to_owned(),
            policy_id: "built_in".to_owned(),
            sequence: 0,
            digest: None,
        };
        Self { identity, weights: Weights::built_in(growth) }
    }
}
