#![no_main]

// Not in the library: Oona's tests compile that, and know nothing of kernels.
#[path = "../src/artifact.rs"]
mod artifact;
#[path = "../src/bytes.rs"]
#[allow(dead_code)]
mod bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(artifact::run(bytes)));
