//! One constructor for each type of command, so that type and payload cannot disagree.

use std::collections::BTreeMap;

use leyline::ids::{BlueprintId, CommandId, SeedId};
use leyline::time;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, CircuitBreakerState, CommandCircuitBreaker, CommandOptimizerAdjustment,
    CommandSeedOperation, CommandType, SeedOperation,
};

/// Name under which commands are issued.
pub const ISSUER: &str = "tamiyo";
/// Annotation that turns a pause into its end.
pub const RESUME: &str = "resume";
/// How long a command may wait for its execution, in milliseconds: it is meant for this epoch.
const DEADLINE_MS: u32 = 1000;

/// What every command needs.
#[derive(Debug, Clone)]
pub struct Head {
    /// The command's nonce.
    pub id: CommandId,
    /// When it is issued, in Unix milliseconds.
    pub issued_at_ms: u64,
    /// Annotations, without the signature.
    pub annotations: BTreeMap<String, String>,
}

impl Head {
    fn command(
        self,
        kind: CommandType,
        target: &str,
        payload: Option<Payload>,
    ) -> AdaptationCommand {
        AdaptationCommand {
            version: 1,
            command_id: self.id.into_string(),
            command_type: kind.into(),
            target_seed_id: target.to_owned(),
            execution_deadline_ms: DEADLINE_MS,
            issued_at: Some(time::timestamp(self.issued_at_ms)),
            issued_by: ISSUER.to_owned(),
            annotations: self.annotations,
            payload,
        }
    }
}

/// Plants a blueprint at a dormant seed.
pub fn germinate(
    head: Head,
    seed: &SeedId,
    blueprint: &BlueprintId,
    parameters: &karn::Parameters,
) -> AdaptationCommand {
    let parameters =
        parameters.iter().map(|(name, value)| (name.to_owned(), value as f32)).collect();
    seed_command(head, seed, SeedOperation::SeedOpGerminate, blueprint.as_str(), parameters)
}

/// Moves a seed along, keeps it or removes it.
pub fn seed_operation(head: Head, seed: &SeedId, operation: SeedOperation) -> AdaptationCommand {
    seed_command(head, seed, operation, "", BTreeMap::new())
}

fn seed_command(
    head: Head,
    seed: &SeedId,
    operation: SeedOperation,
    blueprint: &str,
    parameters: BTreeMap<String, f32>,
) -> AdaptationCommand {
    let payload = CommandSeedOperation {
        operation: operation.into(),
        blueprint_id: blueprint.to_owned(),
        parameters,
    };
    head.command(CommandType::CommandSeed, seed.as_str(), Some(Payload::SeedOperation(payload)))
}

/// Changes the learning rate by a share: 0 changes nothing.
pub fn optimizer(head: Head, optimizer: &str, rate_delta: f32) -> AdaptationCommand {
    let hyperparameters = BTreeMap::from([("lr_delta".to_owned(), rate_delta)]);
    let payload =
        CommandOptimizerAdjustment { optimizer_id: optimizer.to_owned(), hyperparameters };
    head.command(CommandType::CommandOptimizer, "", Some(Payload::OptimizerAdjustment(payload)))
}

/// Forces Kasmina's kernel breaker.
pub fn circuit_breaker(
    head: Head,
    state: CircuitBreakerState,
    rationale: &str,
) -> AdaptationCommand {
    let payload =
        CommandCircuitBreaker { desired_state: state.into(), rationale: rationale.to_owned() };
    head.command(CommandType::CommandCircuitBreaker, "", Some(Payload::CircuitBreaker(payload)))
}

/// Takes a seed out of the forward pass. It always names the seed: a pause without a target
/// pauses nothing.
pub fn pause(head: Head, seed: &SeedId) -> AdaptationCommand {
    head.command(CommandType::CommandPause, seed.as_str(), None)
}

/// Ends a pause.
pub fn resume(mut head: Head, seed: &SeedId) -> AdaptationCommand {
    head.annotations.insert(RESUME.to_owned(), "true".to_owned());
    pause(head, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { id: CommandId::from("c1"), issued_at_ms: 5, annotations: BTreeMap::new() }
    }

    #[test]
    fn type_and_payload_agree() {
        let seed = SeedId::from("a");
        let parameters = [("depth", 2.5)].into_iter().collect();
        let commands = [
            germinate(head(), &seed, &BlueprintId::from("BP009"), &parameters),
            seed_operation(head(), &seed, SeedOperation::SeedOpCull),
            optimizer(head(), "sgd", 0.0),
            circuit_breaker(head(), CircuitBreakerState::CircuitStateOpen, "policy_action"),
            pause(head(), &seed),
            resume(head(), &seed),
        ];
        for command in commands {
            let fits = match (&command.payload, command.command_type()) {
                (Some(Payload::SeedOperation(_)), CommandType::CommandSeed)
                | (None, CommandType::CommandPause) => command.target_seed_id == "a",
                (Some(Payload::OptimizerAdjustment(_)), CommandType::CommandOptimizer)
                | (Some(Payload::CircuitBreaker(_)), CommandType::CommandCircuitBreaker) => true,
                _ => false,
            };
            assert!(fits, "{command:?}");
            assert_eq!((command.version, command.issued_by.as_str()), (1, ISSUER));
        }
    }
}
