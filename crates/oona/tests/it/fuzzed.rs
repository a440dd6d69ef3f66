//! The fuzz targets of `fuzz/` on stable: the committed corpus, and some thousand mutations of it
//! from a seeded generator. `cargo xtask fuzz` lets libFuzzer look for more.

use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

#[allow(dead_code, missing_docs, reason = "the fuzz crate uses what the tests do not")]
#[path = "../../../../fuzz/src/lib.rs"]
mod targets;

/// Mutations of the corpus that one target is run on.
const MUTATIONS: u32 = 2_000;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus")).join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("no corpus at {}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn run(target: &str, mutations: u32, on: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let corpus = corpus(target);
    for (path, bytes) in &corpus {
        let outcome = std::panic::catch_unwind(|| on(bytes));
        assert!(outcome.is_ok(), "target {target} fails on {}", path.display());
    }
    for seed in 0..mutations {
        let mut random = StdRng::seed_from_u64(u64::from(seed));
        let mut bytes = corpus[random.random_range(0..corpus.len())].1.clone();
        for _ in 0..random.random_range(1..6) {
            mutate(&mut random, &mut bytes, &corpus);
        }
        let outcome = std::panic::catch_unwind(|| on(&bytes));
        assert!(outcome.is_ok(), "target {target} fails on mutation {seed}: {bytes:02x?}");
    }
}

/// What libFuzzer does as well: flips, cuts, copies, crosses two inputs.
fn mutate(random: &mut StdRng, bytes: &mut Vec<u8>, corpus: &[(PathBuf, Vec<u8>)]) {
    let length = bytes.len();
    match random.random_range(0..6) {
        0 if length > 0 => bytes[random.random_range(0..length)] ^= 1 << random.random_range(0..8),
        1 if length > 0 => bytes[random.random_range(0..length)] = random.random(),
        2 if length > 0 => bytes.truncate(random.random_range(0..length)),
        3 if length > 0 => drop(bytes.remove(random.random_range(0..length))),
        4 => bytes.insert(random.random_range(0..=length), random.random()),
        _ => {
            let other = &corpus[random.random_range(0..corpus.len())].1;
            let cut = random.random_range(0..=other.len());
            bytes.truncate(random.random_range(0..=length));
            bytes.extend_from_slice(&other[cut..]);
        }
    }
}

/// The corpus is what its generator makes, plus what fuzzing found (`found-*`).
/// `OONA_WRITE_CORPUS=1` writes it.
#[test]
fn the_corpus_is_what_its_generator_makes() {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus"));
    if std::env::var_os("OONA_WRITE_CORPUS").is_some() {
        targets::seeds::write(&root).unwrap();
    }
    for target in ["envelope", "verify", "log_file"] {
        let mut expected = targets::seeds::of(target);
        expected.sort();
        let mut found = corpus(target);
        found
            .retain(|(path, _)| !path.file_name().unwrap().to_string_lossy().starts_with("found-"));
        let found: Vec<(String, Vec<u8>)> = found
            .into_iter()
            .map(|(path, bytes)| (path.file_name().unwrap().to_string_lossy().into_owned(), bytes))
            .collect();
        assert_eq!(found, expected, "{target}: write it with OONA_WRITE_CORPUS=1");
    }
}

#[test]
fn envelopes() {
    run("envelope", MUTATIONS, targets::envelope::run);
}

#[test]
fn tampered_entries() {
    run("verify", MUTATIONS, targets::verify::run);
}

#[test]
fn damaged_log_files() {
    run("log_file", MUTATIONS / 16, targets::log_file::run);
}
