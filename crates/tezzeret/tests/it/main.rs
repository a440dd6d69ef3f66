//! Black-box tests of the forge: real templates, real library, embedded bus.
mod catalogue;
mod compile;
mod prefetch;
