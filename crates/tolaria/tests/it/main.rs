//! Black-box tests: whole runs without a service.

mod growth;
mod kitchen;
