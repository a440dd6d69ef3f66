//! Black-box tests: whole runs without a service.

#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking, as tests do.

mod growth;
mod kitchen;
