//! Black-box tests of the tensor engine.

mod graph;
