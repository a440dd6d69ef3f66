//! A scripted run: packets are made by hand, commands are looked at, time is a number.

use std::collections::BTreeMap;

use leyline::Stage;
use leyline::command::verify_command;
use leyline::ids::CommandId;
use leyline::sign::{Keyring, Secret};
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{CommandType, SeedState, SystemStatePacket};
use tamiyo::{Candidates, Config, Context, Decision, Horizon, LivePolicy, Policy};

pub fn keyring() -> Keyring {
    Keyring::new(&Secret::new("a secret for the tests of tamiyo"), None)
}

/// A run whose epochs are played one by one.
pub struct Rig {
    pub policy: Policy,
    pub state: SystemStatePacket,
    pub candidates: Candidates,
    pub horizon: Horizon,
    pub epoch: u32,
}

/// Short patience, no smoothing: a plateau after 3 flat epochs.
pub fn config() -> Config {
    let mut config = Config::default();
    config.growth.patience_epochs = 3;
    config.growth.warm_up_epochs = 2;
    config.growth.smoothing = 1.0;
    config.growth.probation_epochs_min = 2;
    config.growth.probation_epochs_max = 4;
    config.growth.retry_epochs = 3;
    config
}

impl Rig {
    pub fn new(config: Config) -> Self {
        let live = LivePolicy::built_in(&config.growth);
        Self::with_live(config, live)
    }

    pub fn with_live(config: Config, live: LivePolicy) -> Self {
        let state = SystemStatePacket {
            version: 1,
            validation_loss: 1.0,
            training_loss: 1.0,
            training_run_id: "run-1".to_owned(),
            packet_id: "run-1-epoch-0".to_owned(),
            seed_states: vec![seed("a", Stage::Dormant), seed("b", Stage::Dormant)],
            training_metrics: BTreeMap::from([
                ("loss".to_owned(), 1.0),
                ("gradient_norm".to_owned(), 1.0),
                ("samples_per_s".to_owned(), 1000.0),
            ]),
            ..SystemStatePacket::default()
        };
        let policy = Policy::new(config, live, keyring());
        Self { policy, state, candidates: Candidates::Any, horizon: Horizon::Open, epoch: 0 }
    }

    pub fn context(&self) -> Context {
        Context {
            now_unix_ms: 1_700_000_000_000 + u64::from(self.epoch) * 1000,
            epoch: self.epoch,
            command_id: CommandId::from(format!("command-{}", self.epoch)),
            candidates: self.candidates.clone(),
            culled: Vec::new(),
            horizon: self.horizon,
        }
    }

    /// Plays the next epoch at this validation loss. Every command that comes out is checked.
    pub fn epoch(&mut self, loss: f32) -> Decision {
        self.epoch += 1;
        self.state.current_epoch = self.epoch;
        self.state.validation_loss = loss;
        let decision = self.policy.decide(&self.state, &self.context());
        check(&decision);
        decision
    }

    /// Plays epochs at a constant loss until a command comes out; at most 50.
    pub fn until_command(&mut self, loss: f32) -> Decision {
        for _ in 0..50 {
            let decision = self.epoch(loss);
            if decision.command.is_some() {
                return decision;
            }
        }
        panic!("no command in 50 epochs");
    }

    pub fn stage(&mut self, seed: &str, stage: Stage) {
        self.seed(seed).stage = stage.wire() as i32;
    }

    pub fn metric(&mut self, seed: &str, key: &str, value: f32) {
        self.seed(seed).metrics.insert(key.to_owned(), value);
    }

    fn seed(&mut self, id: &str) -> &mut SeedState {
        self.state.seed_states.iter_mut().find(|seed| seed.seed_id == id).unwrap()
    }

    /// Takes a seed from germination to probation, one epoch for each stage.
    pub fn grow(&mut self, seed: &str, loss: f32) {
        for stage in [
            Stage::Germinated,
            Stage::Training,
            Stage::Blending,
            Stage::Shadowing,
            Stage::Probationary,
        ] {
            self.stage(seed, stage);
            let decision = self.epoch(loss);
            assert_eq!(decision.command, None, "{stage:?}: {decision:?}");
        }
    }
}

pub fn seed(id: &str, stage: Stage) -> SeedState {
    SeedState {
        seed_id: id.to_owned(),
        stage: stage.wire() as i32,
        learning_rate: 0.01,
        gradient_norm: 1.0,
        layer_depth: 1,
        ..SeedState::default()
    }
}

/// What must hold of every decision: type and payload agree, a target is named, the signature
/// verifies, and no annotation key begins another.
pub fn check(decision: &Decision) {
    assert!(decision.annotations.contains_key("risk_reason"));
    let Some(command) = &decision.command else { return };
    verify_command(&keyring(), command).unwrap();
    assert_eq!(tamiyo::prefix_clash(&command.annotations), None);
    let fits = match command.command_type() {
        CommandType::CommandSeed => matches!(command.payload, Some(Payload::SeedOperation(_))),
        CommandType::CommandOptimizer => {
            matches!(command.payload, Some(Payload::OptimizerAdjustment(_)))
        }
        CommandType::CommandPause => command.payload.is_none(),
        _ => false,
    };
    assert!(fits, "{command:?}");
    let needs_target = command.command_type() != CommandType::CommandOptimizer;
    assert_eq!(needs_target, !command.target_seed_id.is_empty(), "{command:?}");
}

/// The blueprint of a germination.
pub fn blueprint(decision: &Decision) -> String {
    match &decision.command.as_ref().unwrap().payload {
        Some(Payload::SeedOperation(operation)) => operation.blueprint_id.clone(),
        other => panic!("no germination: {other:?}"),
    }
}

/// A bus of its own in a directory of its own.
pub async fn bus(dir: &std::path::Path) -> oona::Bus {
    let log = oona::LogChoice::Embedded { path: dir.join("log.redb") };
    let config = oona::Config { log, ..oona::Config::default() };
    oona::Bus::open(config, keyring(), oona::Metrics::detached()).await.unwrap()
}

/// No test waits longer than this for anything.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
