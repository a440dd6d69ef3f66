//! The `weatherlight` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    weatherlight::cli::main(std::env::args_os())
}
