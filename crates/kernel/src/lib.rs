//! The tensor engine: graph IR, gradients, interpreter, plans, guard and the artifact file.
//!
//! Reading order: [`op`] (the closed set of operators), `shape` (what fits what), [`Graph`] and its builder
//! methods, `interpret` (what every operator means), `gradient` (gradients on the IR), `plan` (the fast
//! way to the same values). Knows nothing of catalogues, buses and seeds.

pub mod artifact;
pub mod bench;
mod build;
mod canonical;
pub mod check;
mod cost;
mod digest;
mod dropout;
mod error;
mod gradient;
mod graph;
pub mod guard;
mod init;
pub mod interpret;
mod layers;
mod mapping;
pub mod op;
mod optimise;
pub mod optimiser;
mod outputs;
mod plan;
mod plan_guard;
mod probe;
pub mod quarantine;
mod runner;
mod shape;
pub mod signature;
pub mod stop;
mod store;
pub mod stress;
mod tensor;

pub use canonical::to_canonical_json;
pub use cost::Cost;
pub use digest::{BadDigest, Digest};
pub use error::{GraphError, RunError, Unfit};
pub use gradient::{differentiate, differentiate_trainable, gradient_name};
pub use graph::{Graph, NODES_MAX, Named, Node, NodeId, STEP_INPUT};
pub use init::Init;
pub use op::Op;
pub use optimise::optimise;
pub use outputs::Outputs;
pub use plan::{Algorithm, Choice, Choices, Plan};
pub use plan_guard::{GuardedValue, PLAN_ENGINE, PlanGuard, PlanMismatch, Purpose};
pub use probe::{probe_digest, probe_inputs};
pub use runner::{Execution, Fallback, Runner};
pub use shape::{ELEMENTS_MAX, RANK_MAX};
pub use store::{ParamStore, StoreError};
pub use tensor::{Params, Tensor};
