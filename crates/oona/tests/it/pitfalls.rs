//! The known pitfalls of Redis Streams consumers, each with a test that fails where one falls in.
//!
//! The table in docs/oona.md is made from the comments on these tests by `cargo xtask gen`. Each has
//! three sentences: the pitfall, what goes wrong elsewhere, what Oona does.

mod crashes;
mod keeping;
mod reading;
