//! The policy in force: read without a lock, replaced as a whole, kept on disk with its predecessor.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::weights::{Rejection, Weights};

const CURRENT: &str = "policy.safetensors";
const PREVIOUS: &str = "policy.previous.safetensors";

/// A handle on the policy in force. Clones see the same policy.
#[derive(Debug, Clone)]
pub struct LivePolicy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: ArcSwap<Weights>,
    /// What was in force before, and the order of swaps: held only while swapping.
    previous: Mutex<Option<Arc<Weights>>>,
    /// Nothing is stored without one.
    directory: Option<PathBuf>,
}

/// Why the stored policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory or the file cannot be used.
    #[error("cannot use the policy directory {path}; check that it exists and may be written")]
    Directory {
        /// The path at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds no policy for this service.
    #[error("the stored policy {path} cannot be used; remove it to start with the built-in one")]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Rejection,
    },
}

impl LivePolicy {
    /// The built-in policy, stored nowhere.
    pub fn in_memory() -> Self {
        Self::start(Weights::built_in(), None, None)
    }

    /// The stored policy, or the built-in one when none is stored.
    ///
    /// # Errors
    /// [`LoadError`] when the directory cannot be made or what it holds cannot be used: falling back
    /// silently would let a run differ from what its operator asked for.
    pub fn open(directory: &Path) -> Result<Self, LoadError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Directory { path, source }
        };
        fs::create_dir_all(directory).map_err(unusable(directory))?;
        let current = load(&directory.join(CURRENT))?;
        let previous = load(&directory.join(PREVIOUS))?;
        let current = current.unwrap_or_else(Weights::built_in);
        Ok(Self::start(current, previous, Some(directory.to_owned())))
    }

    fn start(current: Weights, previous: Option<Weights>, directory: Option<PathBuf>) -> Self {
        let current = ArcSwap::from_pointee(current);
        let previous = Mutex::new(previous.map(Arc::new));
        Self(Arc::new(Inner { current, previous, directory }))
    }

    /// The policy in force.
    pub fn current(&self) -> Arc<Weights> {
        self.0.current.load_full()
    }

    /// The policy that was in force before, which [`Self::roll_back`] returns to.
    pub fn previous(&self) -> Option<Arc<Weights>> {
        self.0.previous.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts weights in force and keeps the old ones as previous. Writes files: call it off the
    /// event loop.
    ///
    /// # Errors
    /// [`Rejection::StaleUpdate`] when the sequence does not rise, [`Rejection::SwapFailed`] when
    /// storing fails. The policy in force is then untouched.
    pub fn install(&self, weights: Weights) -> Result<(), Rejection> {
        let mut previous = self.0.previous.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        if weights.sequence <= current.sequence {
            let (new, old) = (weights.sequence, current.sequence);
            let reason = format!("sequence {new} is not above {old}, which is in force");
            return Err(Rejection::StaleUpdate { reason });
        }
        self.store(&current, &weights)?;
        *previous = Some(current);
        self.0.current.store(Arc::new(weights));
        Ok(())
    }

    /// Returns to the previous policy, once. The rejected one's sequence stays used up: the
    /// restored policy takes it over, so that the same update does not come in again.
    ///
    /// # Errors
    /// [`Rejection::SwapFailed`] when there is no previous policy or storing fails.
    pub fn roll_back(&self) -> Result<(), Rejection> {
        let mut previous = self.0.previous.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(back) = previous.as_ref() else {
            return Err(Rejection::SwapFailed { reason: "there is no previous policy".to_owned() });
        };
        let current = self.current();
        let restored = Weights { sequence: current.sequence, ..Weights::clone(back) };
        self.store(&current, &restored)?;
        *previous = None;
        self.0.current.store(Arc::new(restored));
        Ok(())
    }

    fn store(&self, current: &Weights, next: &Weights) -> Result<(), Rejection> {
        let Some(directory) = &self.0.directory else { return Ok(()) };
        let write = |name: &str, weights: &Weights| {
            replace(&directory.join(name), &weights.to_bytes())
                .map_err(|error| Rejection::SwapFailed { reason: error.to_string() })
        };
        write(PREVIOUS, current)?;
        write(CURRENT, next)
    }
}

fn load(path: &Path) -> Result<Option<Weights>, LoadError> {
    match fs::read(path) {
        Ok(bytes) => Weights::from_bytes(&bytes)
            .map(Some)
            .map_err(|source| LoadError::Policy { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Directory { path: path.to_owned(), source }),
    }
}

/// Replaces a file so that a crash leaves either the old or the new one, whole.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(sequence: u64) -> Weights {
        Weights { sequence, version: format!("v{sequence}"), ..Weights::built_in() }
    }

    #[test]
    fn what_is_installed_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let live = LivePolicy::open(directory.path()).unwrap();
        assert_eq!(live.current().version, "built-in");
        live.install(numbered(1)).unwrap();
        live.install(numbered(2)).unwrap();
        let again = LivePolicy::open(directory.path()).unwrap();
        assert_eq!(*again.current(), numbered(2));
        assert_eq!(*again.previous().unwrap(), numbered(1));
    }

    #[test]
    fn a_sequence_that_does_not_rise_changes_nothing() {
        let live = LivePolicy::in_memory();
        live.install(numbered(5)).unwrap();
        for sequence in [0, 4, 5] {
            assert_eq!(live.install(numbered(sequence)).unwrap_err().code(), "stale_update");
        }
        assert_eq!(*live.current(), numbered(5));
    }

    #[test]
    fn a_rollback_keeps_the_rejected_sequence_used_up() {
        let live = LivePolicy::in_memory();
        live.install(numbered(3)).unwrap();
        live.roll_back().unwrap();
        assert_eq!(live.current().version, "built-in");
        assert_eq!(live.install(numbered(3)).unwrap_err().code(), "stale_update");
        assert_eq!(live.roll_back().unwrap_err().code(), "swap_failed");
    }

    #[test]
    fn a_store_that_fails_leaves_the_policy_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let live = LivePolicy::open(directory.path()).unwrap();
        fs::remove_dir_all(directory.path()).unwrap();
        assert_eq!(live.install(numbered(1)).unwrap_err().code(), "swap_failed");
        assert_eq!(live.current().version, "built-in");
    }

    #[test]
    fn a_damaged_stored_policy_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(CURRENT), b"rubbish").unwrap();
        let error = LivePolicy::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains(CURRENT), "{error}");
    }
}
