//! Black-box tests of the catalogue.
mod computed;
mod graphs;
mod pytorch;
mod selection;
mod spirals;
mod stress;
