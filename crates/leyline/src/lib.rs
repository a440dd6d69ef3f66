//! Leyline owns what crosses the bus: the wire types, the identifiers, the stages of a seed with
//! their edges, and how bytes are signed and verified. It leaves delivery to `oona` and does no
//! I/O and nothing asynchronous.
//!
//! Reading order: [`Message`] (what may stand in an envelope), [`sign`] (how an envelope is
//! authenticated), [`command`] (the signature inside a command), [`Stage`] (the life of a seed).
//!
//! The contract itself is `proto/leyline.proto`; [`wire`] is generated from it by
//! `cargo xtask gen`.

mod canonical;
pub mod command;
pub mod ids;
mod message;
pub mod sign;
mod stage;
pub mod time;

/// Types generated from `proto/leyline.proto`. Maps are ordered by key, so that encoding the
/// same message twice gives the same bytes.
#[allow(missing_docs, clippy::all, unreachable_pub)]
#[rustfmt::skip]
pub mod wire;

pub use message::{DecodeError, Message};
pub use stage::{Edge, Gate, Stage, UnknownStage};
