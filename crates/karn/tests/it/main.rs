//! Black-box tests of the catalogue.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod computed;
mod docs;
mod graphs;
mod manifests;
mod pytorch;
mod selection;
mod spirals;
mod stress;
