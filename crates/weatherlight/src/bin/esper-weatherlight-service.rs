//! `weatherlight serve` under the name that existing unit and compose files start.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    arguments.insert(arguments.len().min(1), "serve".into());
    weatherlight::cli::main(arguments)
}
