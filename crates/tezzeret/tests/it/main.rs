//! Black-box tests of the forge: real templates, real library, embedded bus.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod catalogue;
mod compile;
mod prefetch;
