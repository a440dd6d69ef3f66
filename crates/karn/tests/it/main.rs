//! Black-box tests of the catalogue.
mod selection;
