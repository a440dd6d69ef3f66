//! The contract from outside: published vectors and round trips.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod round_trip;
mod vectors;
