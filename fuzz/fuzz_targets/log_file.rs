#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oona_fuzz::log_file::run(bytes));
