//! Kernels come from the coordinator at any time and are given to their seeds in the epoch set for them, so that the
//! same settings give the same curve.

use std::time::{Duration, Instant};

use kasmina::Fetched;
use leyline::Stage;
use tracing::warn;

use super::Training;
use crate::error::TrainError;
use crate::journal::Journal;

impl Training {
    /// Takes what the coordinator has sent, and gives to their seeds the kernels whose epoch has come.
    pub(super) fn take_kernels(&mut self) -> Result<(), TrainError> {
        self.receive_kernels();
        self.wait_for_kernels();
        let (epoch, wait) = (self.clock.epoch, self.prepared.config.attach_after_epochs);
        let due = |journal: &Journal, fetched: &Fetched| {
            journal
                .germinated_epoch(&fetched.seed)
                .is_none_or(|germinated| germinated + wait <= epoch)
        };
        let (now_due, later): (Vec<Fetched>, Vec<Fetched>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|fetched| due(&self.journal, fetched));
        self.waiting = later;
        for fetched in now_due {
            let germinated = self.journal.germinated_epoch(&fetched.seed).unwrap_or(epoch);
            let late = epoch.saturating_sub(germinated + wait);
            if late > 0 {
                self.channels.metrics.kernels_late.inc();
                warn!(seed = %fetched.seed, late_epochs = late, "kernel came late, this run cannot be repeated to the bit");
                self.journal.late(&fetched.seed, late);
            }
            let effects = self.manager.on_fetched(fetched, self.clock.now());
            self.carry_out(effects)?;
        }
        Ok(())
    }

    fn receive_kernels(&mut self) {
        while let Ok(fetched) = self.channels.fetched.try_recv() {
            self.waiting.push(fetched);
        }
    }

    /// Waits for kernels whose epoch has come, where that is wanted at all.
    fn wait_for_kernels(&mut self) {
        const LOOK_EVERY: Duration = Duration::from_millis(1);
        let began = Instant::now();
        while began.elapsed() < self.prepared.config.kernel_wait_max && self.lacks_kernel() {
            std::thread::park_timeout(LOOK_EVERY);
            self.receive_kernels();
        }
    }

    /// Whether a seed should have its kernel by now and has not.
    fn lacks_kernel(&self) -> bool {
        self.seeds.iter().any(|seed| {
            let germinated = self.manager.stage(seed) == Some(Stage::Germinated);
            let due = self.journal.germinated_epoch(seed).is_some_and(|epoch| {
                epoch + self.prepared.config.attach_after_epochs <= self.clock.epoch
            });
            germinated && due && !self.waiting.iter().any(|fetched| fetched.seed == *seed)
        })
    }
}
