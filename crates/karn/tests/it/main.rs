//! Black-box tests of the catalogue.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod computed;
mod graphs;
mod pytorch;
mod selection;
mod spirals;
mod stress;
