//! Building commands: one constructor for each kind, so that a command's type and its payload
//! always belong together, and every command that leaves is signed.

use std::collections::BTreeMap;
use std::time::Duration;

use karn::Blueprint;
use leyline::command::sign_command;
use leyline::ids::{CommandId, SeedId};
use leyline::sign::Keyring;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, CircuitBreakerState, CommandCircuitBreaker, CommandOptimizerAdjustment,
    CommandSeedOperation, CommandType, SeedOperation,
};

/// Who issues the commands.
pub const ISSUED_BY: &str = "tamiyo";
/// The optimizer named by a downgraded command, as the contract has it.
pub const OPTIMIZER: &str = "sgd";
/// Hyperparameter of an optimizer command: relative change of the learning rate; −0.1 is 10 % less.
pub const LR_DELTA: &str = "lr_delta";
/// Annotation of a PAUSE that ends one: `resume` = `true`.
pub const RESUME: &str = "resume";

/// What every command carries. No key of its annotations may begin another one: encoders disagree
/// on the order of two such keys, and a signature over either order fails for the other reader.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// The command's id, its nonce.
    pub id: CommandId,
    /// When it is issued, in Unix milliseconds.
    pub now_unix_ms: u64,
    /// After this it is void.
    pub deadline: Duration,
    /// What is to be known about it.
    pub annotations: BTreeMap<String, String>,
    /// Signs it.
    pub keyring: &'a Keyring,
}

impl Draft<'_> {
    /// SEED / GERMINATE, at the midpoints of the blueprint's parameters: at those its kernel was
    /// compiled.
    pub fn germinate(self, seed: &SeedId, blueprint: &Blueprint) -> AdaptationCommand {
        let midpoints = blueprint.midpoints();
        let parameters =
            midpoints.iter().map(|(name, value)| (name.to_owned(), value as f32)).collect();
        let blueprint_id = blueprint.id().to_string();
        self.seed(seed, SeedOperation::SeedOpGerminate, blueprint_id, parameters)
    }

    /// SEED / FOSSILIZE: keep it.
    pub fn fossilize(self, seed: &SeedId) -> AdaptationCommand {
        self.seed(seed, SeedOperation::SeedOpFossilize, String::new(), BTreeMap::new())
    }

    /// SEED / CULL: take it away.
    pub fn cull(self, seed: &SeedId) -> AdaptationCommand {
        self.seed(seed, SeedOperation::SeedOpCull, String::new(), BTreeMap::new())
    }

    /// OPTIMIZER: change the learning rate by this share.
    pub fn optimizer(self, lr_delta: f32) -> AdaptationCommand {
        let hyperparameters = BTreeMap::from([(LR_DELTA.to_owned(), lr_delta)]);
        let optimizer_id = OPTIMIZER.to_owned();
        let payload = CommandOptimizerAdjustment { optimizer_id, hyperparameters };
        self.sign(CommandType::CommandOptimizer, None, Some(Payload::OptimizerAdjustment(payload)))
    }

    /// CIRCUIT_BREAKER: bring the executor's kernel breaker into this state.
    pub fn circuit_breaker(
        self,
        desired: CircuitBreakerState,
        rationale: impl Into<String>,
    ) -> AdaptationCommand {
        let desired_state = desired.into();
        let payload = CommandCircuitBreaker { desired_state, rationale: rationale.into() };
        self.sign(CommandType::CommandCircuitBreaker, None, Some(Payload::CircuitBreaker(payload)))
    }

    /// PAUSE of one seed. A pause without a target would be nobody's, so it cannot be built.
    pub fn pause(self, seed: &SeedId) -> AdaptationCommand {
        self.sign(CommandType::CommandPause, Some(seed), None)
    }

    /// PAUSE with `resume=true`: the seed goes on.
    pub fn resume(mut self, seed: &SeedId) -> AdaptationCommand {
        self.annotations.insert(RESUME.to_owned(), "true".to_owned());
        self.sign(CommandType::CommandPause, Some(seed), None)
    }

    fn seed(
        self,
        seed: &SeedId,
        operation: SeedOperation,
        blueprint_id: String,
        parameters: BTreeMap<String, f32>,
    ) -> AdaptationCommand {
        let operation = operation.into();
        let payload = CommandSeedOperation { operation, blueprint_id, parameters };
        self.sign(CommandType::CommandSeed, Some(seed), Some(Payload::SeedOperation(payload)))
    }

    fn sign(
        self,
        kind: CommandType,
        target: Option<&SeedId>,
        payload: Option<Payload>,
    ) -> AdaptationCommand {
        let mut command = AdaptationCommand {
            version: 1,
            command_id: self.id.into_string(),
            command_type: kind.into(),
            target_seed_id: target.map(ToString::to_string).unwrap_or_default(),
            execution_deadline_ms: u32::try_from(self.deadline.as_millis()).unwrap_or(u32::MAX),
            issued_at: Some(leyline::time::timestamp(self.now_unix_ms)),
            issued_by: ISSUED_BY.to_owned(),
            annotations: self.annotations,
            payload,
        };
        debug_assert_eq!(prefix_clash(&command.annotations), None);
        sign_command(self.keyring, &mut command);
        command
    }
}

/// Two annotation keys of which the first begins the second, if there are such.
pub fn prefix_clash(annotations: &BTreeMap<String, String>) -> Option<(&str, &str)> {
    // In lexical order everything between the two begins with the first, so neighbours suffice.
    let keys: Vec<&str> = annotations.keys().map(String::as_str).collect();
    keys.windows(2).map(|pair| (pair[0], pair[1])).find(|(short, long)| long.starts_with(short))
}
