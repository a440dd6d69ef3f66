//! Weatherlight owns the process: settings, preflight, the boot table, the supervisor, the command
//! line. It has no business rules of its own and carries no data; those live in the crates below.
//!
//! Reading order: [`settings`] (one table of options), [`preflight`] (what is looked at before
//! anything starts), [`supervisor`] (keeps workers alive), [`service`] (what is started), `wiring` (settings to each crate's
//! configuration), [`cli`] (the commands).

pub mod bench;
pub mod blueprints;
pub mod cli;
pub mod client;
pub mod codes;
pub mod logging;
pub mod otlp;
pub mod preflight;
pub mod service;
pub mod settings;
pub mod supervisor;
pub mod training;
mod wiring;

/// The bus allocates for every message and frees on another thread than it allocated on; the system's allocator spent a
/// third of the process's time on that (`docs/benchmarks.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what `weatherlight kernels bench` measures, for `cargo bench`.
#[doc(hidden)]
pub fn bench_kernels(quick: bool) -> std::process::ExitCode {
    cli::bench_kernels(quick)
}
