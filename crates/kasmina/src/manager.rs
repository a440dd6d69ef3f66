//! The seed manager: every seed of one training run. Owned by the training thread, synchronous.
//!
//! Commands enter in `apply.rs`, steps and time in `progress.rs`, telemetry leaves in
//! `telemetry.rs`. What the trainer has to do about it comes back as [`Effect`]s.

use std::collections::BTreeMap;

use leyline::Stage;
use leyline::ids::{RunId, SeedId};
use leyline::sign::Keyring;
use leyline::wire::{CommandOptimizerAdjustment, SeedState};
use tokio::sync::mpsc;

use crate::blend::BlendMode;
use crate::breaker::Breaker;
use crate::config::Config;
use crate::error::SlotError;
use crate::event::{Event, Events};
use crate::evidence::Validation;
use crate::fetch::{FetchOrder, FetchedKernel};
use crate::isolation::{Conflict, Owner, Ownership};
use crate::ledger::NonceLedger;
use crate::metrics::Metrics;
use crate::moment::Now;
use crate::seed::{Hold, Life, Moved, Rollback, Seed, Slot};
use crate::state;

/// The word that targets every seed.
pub const ALL_SEEDS: &str = "all";

/// What the trainer has to do.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Make an instance of the kernel for this seed alone and train it in isolation.
    Attach {
        /// The seed.
        seed: SeedId,
        /// The kernel, fit for the slot.
        kernel: FetchedKernel,
        /// How it will be blended in.
        blend: BlendMode,
    },
    /// The seed moved; what the host sees and what trains may have changed. Read
    /// [`SeedManager::host_alpha`] each step while it blends.
    Moved {
        /// The seed.
        seed: SeedId,
        /// From where to where.
        moved: Moved,
    },
    /// Take the seed's instance out of the host; the slot is the identity again.
    Detach {
        /// The seed.
        seed: SeedId,
        /// What is needed to undo the graft.
        rollback: Rollback,
    },
    /// Show the host the identity, and do not train the seed.
    Pause(SeedId),
    /// Undo [`Effect::Pause`].
    Resume(SeedId),
    /// Change the optimiser.
    AdjustOptimizer(CommandOptimizerAdjustment),
    /// Free what can be freed; every other effect of the command stands beside this one.
    EmergencyCleanup,
}

/// What a seed manager is made of.
#[derive(Debug)]
pub struct Parts {
    /// The training run.
    pub run: RunId,
    /// What verifies commands. Without it every command is rejected.
    pub keyring: Option<Keyring>,
    /// Where orders for kernels go; see [`crate::Prefetch`].
    pub orders: mpsc::Sender<FetchOrder>,
    /// What is counted.
    pub metrics: Metrics,
}

/// Every seed of one training run.
#[derive(Debug)]
pub struct SeedManager {
    pub(crate) config: Config,
    pub(crate) run: RunId,
    pub(crate) keyring: Option<Keyring>,
    pub(crate) orders: mpsc::Sender<FetchOrder>,
    pub(crate) metrics: Metrics,
    pub(crate) seeds: BTreeMap<SeedId, Seed>,
    pub(crate) ownership: Ownership,
    pub(crate) ledger: NonceLedger,
    pub(crate) kernel_breaker: Breaker,
    pub(crate) isolation_breaker: Breaker,
    pub(crate) validation: Option<Validation>,
    pub(crate) events: BTreeMap<SeedId, Events>,
    pub(crate) global_events: Events,
    pub(crate) fetch_last_ms: f64,
    pub(crate) packets: u64,
    host_registered: bool,
}

impl SeedManager {
    /// A manager without slots.
    pub fn new(config: Config, parts: Parts) -> Self {
        let Parts { run, keyring, orders, metrics } = parts;
        Self {
            kernel_breaker: Breaker::new(config.kernel_breaker),
            isolation_breaker: Breaker::new(config.isolation_breaker),
            config,
            run,
            keyring,
            orders,
            metrics,
            seeds: BTreeMap::new(),
            ownership: Ownership::default(),
            ledger: NonceLedger::new(),
            validation: None,
            events: BTreeMap::new(),
            global_events: Events::default(),
            fetch_last_ms: 0.0,
            packets: 0,
            host_registered: false,
        }
    }

    /// Adds a slot, with a dormant seed in it.
    ///
    /// # Errors
    /// [`SlotError`]
    pub fn register_slot(&mut self, slot: Slot) -> Result<(), SlotError> {
        let id = slot.seed.clone();
        if id.as_str().trim().is_empty() || id.as_str() == ALL_SEEDS {
            return Err(SlotError::BadId(id.into_string()));
        }
        if self.seeds.contains_key(&id) {
            return Err(SlotError::Taken(id));
        }
        let mut seed = Seed::new(slot);
        seed.evidence_mut().host_registered = self.host_registered;
        self.seeds.insert(id, seed);
        self.count_stages();
        Ok(())
    }

    /// Makes the host known, with the names of its trainable parameters. Replaces the one before;
    /// seeds keep what they own.
    ///
    /// # Errors
    /// A name belongs to a seed.
    pub fn register_host(&mut self, parameters: &[String]) -> Result<(), Conflict> {
        let mut ownership = std::mem::take(&mut self.ownership);
        ownership.deregister(&Owner::Host);
        let outcome = ownership.register(&Owner::Host, parameters);
        self.ownership = ownership;
        outcome?;
        self.host_registered = true;
        for seed in self.seeds.values_mut() {
            seed.evidence_mut().host_registered = true;
        }
        Ok(())
    }

    /// Says where the trainer keeps the weights from before this seed's graft; it goes into the
    /// rollback record.
    pub fn set_snapshot(&mut self, seed: &SeedId, reference: impl Into<String>) {
        if let Some(seed) = self.seeds.get_mut(seed) {
            seed.snapshot = Some(reference.into());
        }
    }

    /// Notes the validation of the whole network. It is the baseline of seeds that begin to blend
    /// before a validation of their own.
    pub fn note_validation(&mut self, validation: Validation) {
        self.validation = Some(validation);
    }

    /// One seed; `None` for an unknown id.
    pub fn seed(&self, id: &SeedId) -> Option<&Seed> {
        self.seeds.get(id)
    }

    /// Where a seed stands.
    pub fn stage(&self, id: &SeedId) -> Option<Stage> {
        self.seeds.get(id).map(Seed::stage)
    }

    /// How much of a seed the host sees now, 0 to 1; 0 for a paused seed, and while SHADOWING, when
    /// the seed is probed but inert.
    pub fn host_alpha(&self, id: &SeedId) -> f32 {
        match self.seeds.get(id) {
            Some(seed) if seed.hold == Hold::Paused || seed.stage() == Stage::Shadowing => 0.0,
            Some(seed) => seed.life().alpha(),
            None => 0.0,
        }
    }

    /// Who owns a parameter.
    pub fn owner_of(&self, parameter: &str) -> Option<&Owner> {
        self.ownership.owner_of(parameter)
    }

    /// Whether a seed may change these parameters.
    pub fn may_update(&self, seed: &SeedId, parameters: &[String]) -> bool {
        self.ownership.may_update(seed, parameters)
    }

    /// Each seed's share in a batch: equal over those that train or blend, else over all.
    pub fn attribution(&self) -> BTreeMap<SeedId, f32> {
        let learning = |seed: &&Seed| match seed.life() {
            Life::Training { .. } | Life::Blending { .. } => seed.hold == Hold::Running,
            _ => false,
        };
        let mut of: Vec<&Seed> = self.seeds.values().filter(learning).collect();
        if of.is_empty() {
            of = self.seeds.values().collect();
        }
        let share = 1.0 / of.len().max(1) as f32;
        of.into_iter().map(|seed| (seed.slot.seed.clone(), share)).collect()
    }

    /// The state of every seed, for the state packet.
    pub fn states(&self, now: Now) -> Vec<SeedState> {
        self.seeds.values().map(|seed| state::wire_state(seed, &self.config, now)).collect()
    }

    pub(crate) fn note(&mut self, seed: &SeedId, event: Event) {
        self.events.entry(seed.clone()).or_default().push(event);
    }

    pub(crate) fn count_stages(&self) {
        self.metrics
            .stages(|stage| self.seeds.values().filter(|seed| seed.stage() == stage).count());
    }
}
