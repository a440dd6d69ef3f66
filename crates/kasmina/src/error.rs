//! Why the seed manager did not do what it was asked.

use leyline::ids::{BlueprintId, SeedId};

use crate::isolation::Conflict;
use crate::seed::Refused;
use crate::verify::Rejection;

/// Why a slot was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The seed id is taken.
    #[error("slot {0} is registered already; give every slot an id of its own")]
    Taken(SeedId),
    /// An empty id, or `all`, which commands use for every seed.
    #[error("{0:?} cannot be the id of a slot")]
    BadId(String),
}

/// Why a command had no effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// It did not pass verification; nothing of it was looked at.
    #[error("command rejected, {code}: {0}", code = .0.code())]
    Rejected(#[from] Rejection),
    /// It is for a seed that is not here.
    #[error("there is no seed {0}")]
    UnknownSeed(SeedId),
    /// It says for no seed.
    #[error("the command names no seed; set target_seed_id, or \"all\" where every seed is meant")]
    MissingTarget,
    /// Its contents do not fit its type.
    #[error("a command of type {0} needs the payload of that type")]
    BadPayload(&'static str),
    /// The seed is not where this operation applies, or its gate is closed.
    #[error("seed {seed}: {refused}")]
    Refused {
        /// The seed.
        seed: SeedId,
        /// Why.
        refused: Refused,
    },
    /// The operation has no meaning at the seed's stage.
    #[error("seed {seed} is {stage}; {operation} does not apply")]
    NotApplicable {
        /// The seed.
        seed: SeedId,
        /// Its stage.
        stage: &'static str,
        /// The operation.
        operation: &'static str,
    },
    /// The blueprint may not be germinated here: nobody approved it, or it runs in quarantine only.
    #[error(
        "withheld: blueprint {blueprint} may not be germinated ({reason}); have it approved with KARN_APPROVALS, or name another"
    )]
    Withheld {
        /// The blueprint.
        blueprint: BlueprintId,
        /// `approval_required` or `quarantine_only`.
        reason: &'static str,
    },
    /// Fetching is suspended after repeated failures.
    #[error("breaker_denied: kernel {blueprint} is not fetched while the kernel breaker is open")]
    BreakerDenied {
        /// The blueprint.
        blueprint: BlueprintId,
    },
    /// A parameter has an owner already.
    #[error("registry_conflict: {0}")]
    Conflict(#[from] Conflict),
    /// This kind of command is not executed here.
    #[error("commands of type {0} are not supported")]
    Unsupported(&'static str),
}
