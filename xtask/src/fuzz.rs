//! The fuzz targets of `fuzz/`, each for a bounded time.
//!
//! libFuzzer needs a nightly compiler and `cargo fuzz`. Neither is installed here: where one is
//! missing, the error says what to do. The same targets run on stable with the tests, on their
//! corpus and on seeded mutations of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

/// An input that takes longer than this is a finding.
const INPUT_SECONDS_MAX: u32 = 30;
/// Memory beyond which an input is a finding, in MiB.
const MEMORY_MIB_MAX: u32 = 4096;

struct Target {
    name: &'static str,
    /// Options of libFuzzer that only this one needs.
    options: &'static [&'static str],
}

const TARGETS: [Target; 4] = [
    Target { name: "artifact", options: &[] },
    Target { name: "envelope", options: &[] },
    Target { name: "verify", options: &[] },
    // The store answers a damaged page with a panic, which is caught; what it held then leaks.
    Target { name: "log_file", options: &["-detect_leaks=0"] },
];

/// Runs every target for so many seconds; an input that crashes one is an error that names its file.
pub fn run(root: &Path, seconds: u64) -> Result<()> {
    needs_nightly()?;
    needs_cargo_fuzz()?;
    for target in &TARGETS {
        println!("== {} for {seconds} s", target.name);
        fuzz(&root.join("fuzz"), target, seconds)?;
    }
    println!("no target crashed");
    Ok(())
}

fn needs_nightly() -> Result<()> {
    if answers(Command::new("rustc").args(["+nightly", "--version"])) {
        return Ok(());
    }
    bail!("libFuzzer needs a nightly compiler: rustup toolchain install nightly --profile minimal")
}

fn needs_cargo_fuzz() -> Result<()> {
    if answers(Command::new("cargo").args(["+nightly", "fuzz", "--version"])) {
        return Ok(());
    }
    bail!("cargo-fuzz is missing: cargo install cargo-fuzz --locked")
}

fn answers(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn fuzz(fuzz: &Path, target: &Target, seconds: u64) -> Result<()> {
    // New inputs go to a directory that git ignores; the committed corpus is only read.
    let found = fuzz.join("target/corpus").join(target.name);
    std::fs::create_dir_all(&found)?;
    let begun = SystemTime::now();
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz", "run", target.name]).current_dir(fuzz);
    command.arg(&found).arg(Path::new("corpus").join(target.name)).arg("--");
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    command.arg("-print_final_stats=1").args(target.options);
    // The toolchain of the caller must not reach the nightly one.
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(name);
    }
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if status.success() {
        return Ok(());
    }
    match newest(&fuzz.join("artifacts").join(target.name), begun) {
        Some(input) => bail!(
            "target {0} crashed; the input is {1}\nagain: cargo +nightly fuzz run {0} {1}\n\
             when mended, copy it to fuzz/corpus/{0}/found-<what it was>",
            target.name,
            input.display()
        ),
        None => bail!("target {} did not run: {status}", target.name),
    }
}

/// The youngest file that is not older than the run.
fn newest(directory: &Path, begun: SystemTime) -> Option<PathBuf> {
    let files = std::fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let dated =
        files.filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())));
    dated.filter(|(modified, _)| *modified >= begun).max().map(|(_, path)| path)
}
