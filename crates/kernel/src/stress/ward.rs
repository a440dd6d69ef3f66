//! What the stress operators of one quarantine share with its runner: the flag that stops them, and what they hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::LEAKED_BYTES_MAX;
use crate::error::RunError;

/// Cheap to clone; clones are one ward. What was leaked is given back with the last of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ward(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    stopped: AtomicBool,
    leaked: Mutex<Vec<Vec<u8>>>,
    leaked_bytes: AtomicU64,
}

/// Two wards are equal when they are one.
impl PartialEq for Ward {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Ward {
    /// Tells everything that runs under this ward to end.
    pub(crate) fn stop(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    /// Bytes held by leaks.
    pub(crate) fn leaked_bytes(&self) -> u64 {
        self.0.leaked_bytes.load(Ordering::Relaxed)
    }

    /// Holds on to `bytes` more, every page of them touched.
    pub(crate) fn leak(&self, bytes: u64) -> Result<(), RunError> {
        let mut leaked = self.0.leaked.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.leaked_bytes();
        let too_much = RunError::Leak { bytes: held, limit: LEAKED_BYTES_MAX };
        let grown = held.checked_add(bytes).filter(|&grown| grown <= LEAKED_BYTES_MAX);
        let (Some(grown), Ok(len)) = (grown, usize::try_from(bytes)) else {
            return Err(too_much);
        };
        let mut block = Vec::new();
        block.try_reserve_exact(len).map_err(|_| too_much)?;
        block.resize(len, 0xA5);
        leaked.push(block);
        self.0.leaked_bytes.store(grown, Ordering::Relaxed);
        Ok(())
    }
}
