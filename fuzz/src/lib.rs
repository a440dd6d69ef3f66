//! What the fuzz targets do with their bytes. Compiled twice: here for libFuzzer, and as a module of
//! Oona's tests, which run the committed corpus and seeded mutations of it on stable.
//!
//! `envelope` takes bytes as a payload that was signed, `verify` builds an honest entry and tampers
//! with it, `log_file` takes bytes as the embedded log's file. `oracle` is the second, independent
//! writing of the checks and their order that the first two compare with.

pub mod bytes;
pub mod envelope;
pub mod log_file;
pub mod oracle;
pub mod seeds;
pub mod verify;
