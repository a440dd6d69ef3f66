//! The tensor engine: graph IR, gradients, interpreter, plans, guard and the artifact file.

mod digest;

pub use digest::{BadDigest, Digest};
