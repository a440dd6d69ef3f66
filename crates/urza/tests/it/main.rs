//! Black-box tests of the library and its workers, on real files, SQLite and the embedded bus.

mod library;
mod support;
