//! The built commands from outside: what they refuse, with which message and exit code, and how the
//! service starts and stops. Each test has its own directory and port, and leaves nothing running.

#![allow(clippy::unwrap_used)] // In a test, a surprise is a failure.

mod bed;
mod bus;
#[allow(dead_code)] // The crate's own tests use the rest.
#[path = "../../src/otlp/collector.rs"]
mod collector;
mod demo;
mod kernels;
mod leases;
mod logs;
mod otlp;
#[allow(dead_code, reason = "the tests of urza use the rest")]
#[path = "../../../urza/tests/it/proxy.rs"]
mod proxy;
mod refusals;
mod reload;
mod service;
