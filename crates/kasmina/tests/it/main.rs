//! Black-box tests of the seed manager and of the coordinator on the embedded bus.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod commands;
mod coordinator;
mod leases;
mod life;
mod quarantine;
mod rig;
mod telemetry;
