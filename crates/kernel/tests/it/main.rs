//! Black-box tests of the tensor engine.

mod cases;
mod gradient;
mod graph;
mod optimiser;
mod plan;
