//! Black-box tests of the tensor engine.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod algorithm;
mod artifact;
mod cases;
mod check;
mod gradient;
mod graph;
mod guard;
mod hostile;
mod optimise;
mod optimiser;
mod plan;
mod quarantine;
mod steps;
