//! Black-box tests of the catalogue.
mod graphs;
mod selection;
