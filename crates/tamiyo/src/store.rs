//! The handle on the policies of this process: the one in force, the one before, those on disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leyline::wire::PolicyUpdate;

use crate::admission::{Admitted, issued_at_ms};
use crate::archive::{Archive, Floor, Opened};
use crate::config::Config;
use crate::error::{ArchiveError, Quarantined};
use crate::live::{Identity, LivePolicy};

/// Policies in force and on disk. Cheap to clone; all clones are the same store. Who decides needs
/// only [`live`](Self::live), which never waits for the disk.
#[derive(Debug, Clone)]
pub struct PolicyStore {
    live: LivePolicy,
    archive: Arc<Mutex<Archive>>,
}

impl PolicyStore {
    /// Opens the directory and puts the policy in force that was kept there; the built-in one when
    /// there is none. What is damaged is moved aside and returned, for the caller to report.
    /// Blocking.
    ///
    /// # Errors
    /// [`ArchiveError::Io`] when the directory cannot be used.
    pub fn open(config: &Config) -> Result<(Self, Vec<Quarantined>), ArchiveError> {
        let Opened { archive, live, damaged } = Archive::open(config)?;
        Ok((Self { live, archive: Arc::new(Mutex::new(archive)) }, damaged))
    }

    /// The policy in force.
    pub fn live(&self) -> &LivePolicy {
        &self.live
    }

    /// Puts the policy before the one in force back, also on disk. The one rolled back from cannot
    /// come back by an update; one with a higher sequence can. Blocking.
    ///
    /// # Errors
    /// [`ArchiveError::NothingEarlier`] when there is none; [`ArchiveError::Io`] when it could not
    /// be kept, and then nothing has changed.
    pub fn rollback(&self) -> Result<Identity, ArchiveError> {
        self.lock().rollback(&self.live)
    }

    pub(crate) fn floor(&self) -> Floor {
        self.lock().floor()
    }

    pub(crate) fn apply(
        &self,
        admitted: Admitted,
        update: &PolicyUpdate,
    ) -> Result<(), ArchiveError> {
        let issued = issued_at_ms(update);
        match admitted {
            Admitted::Policy(next) => {
                self.lock().install(&self.live, *next, &update.payload, issued)
            }
            Admitted::Label => {
                let version = update.tamiyo_policy_version.clone();
                self.lock().relabel(&self.live, version, update.policy_id.clone(), issued)
            }
            Admitted::Again => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Archive> {
        self.archive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
