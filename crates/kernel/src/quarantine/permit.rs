//! The permit to build and compile what may run in quarantine only.

use crate::stress::Ward;

/// Lets its holder build stressors and compile stress operators. Only the runner of a quarantine makes one, for the time of
/// one quarantine; it can be neither copied nor kept, as nobody is given more than a reference.
#[derive(Debug)]
pub struct Permit(Ward);

impl Permit {
    pub(super) fn new(ward: Ward) -> Self {
        Self(ward)
    }

    pub(crate) fn ward(&self) -> &Ward {
        &self.0
    }
}
