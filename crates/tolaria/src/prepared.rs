//! A run that is ready to be wired: settings checked, data read and divided, sizes known.

use karn::{Catalogue, Site};
use kasmina::{Limits, Ramp};
use tamiyo::{Candidates, Timing};

use crate::config::Config;
use crate::data::{Dataset, Split};
use crate::error::TrainError;
use crate::host::HostShape;

/// A checked configuration with its data.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The settings.
    pub config: Config,
    /// The data.
    pub data: Dataset,
    /// The data, divided and standardised.
    pub split: Split,
    /// Sizes of the host.
    pub shape: HostShape,
    /// Rows per step.
    pub batch: usize,
    /// Steps per epoch.
    pub epoch_steps: usize,
}

impl Prepared {
    /// Checks the settings and reads the data.
    ///
    /// # Errors
    /// [`TrainError::Settings`] with every fault at once, [`TrainError::Data`].
    pub fn load(config: Config) -> Result<Self, TrainError> {
        let faults = config.check();
        if !faults.is_empty() {
            return Err(TrainError::Settings { faults: faults.join("; ") });
        }
        let data = config.source.load(config.seed)?;
        let split = Split::of(&data, config.seed);
        let shape =
            HostShape { features: data.width(), width: config.width, classes: data.classes.len() };
        let batch = config.batch.min(split.train.rows());
        let epoch_steps = (split.train.rows() / batch).max(config.epoch_steps_min);
        Ok(Self { config, data, split, shape, batch, epoch_steps })
    }

    /// Where kernels are wanted: the same for every slot.
    pub fn site(&self) -> Site {
        Site::Vector { features: self.config.width }
    }

    /// What the policy may propose. Builds graphs: call it once per run.
    pub fn candidates(&self, catalogue: &Catalogue) -> Candidates {
        Candidates::Listed(Candidates::of(catalogue, &self.site()))
    }

    /// The policy's settings for a run that can be repeated: rules on measured times report and change nothing, and a
    /// seed is judged when its probation is over.
    pub fn policy_config(&self, base: tamiyo::Config) -> tamiyo::Config {
        let mut config = base;
        config.limits.timing = Timing::Observe;
        config.growth.probation_epochs_min = self.config.probation_epochs;
        config
    }

    /// What the seed manager must be told so that stages last as many epochs as configured. Alpha has risen, and
    /// shadowing ends, within an epoch, so that every validation sees a network as it is meant to be.
    pub fn kasmina_config(&self) -> kasmina::Config {
        let epoch = u32::try_from(self.epoch_steps).unwrap_or(u32::MAX);
        let blend = self.config.blend_epochs.saturating_mul(epoch);
        let limits = Limits {
            training_steps_min: self.config.training_epochs.saturating_mul(epoch),
            shadow_steps_min: (epoch / 2).max(1),
            probation_epochs_min: self.config.probation_epochs,
            stage_steps_max: u32::MAX,
            ..Limits::default()
        };
        // Entering counts as the first step, so this many more end with the last step of an epoch.
        let ramp = Ramp { steps: blend.saturating_add(1), temperature: blend as f32 / 10.0 };
        kasmina::Config { limits, ramp, ..kasmina::Config::default() }
    }
}
