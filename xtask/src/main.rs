//! Developer commands: `cargo xtask check`, `cargo xtask test`, `cargo xtask gen`.

mod generate;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Weatherlight")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write every generated file.
    Gen,
}

fn main() -> Result<()> {
    let root = root()?;
    match Arguments::parse().command {
        Command::Gen => generate::write(&root),
    }
}

fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("xtask stands in the workspace")
}
