//! `weatherlight completions SHELL`.

use clap_complete::Shell;

use super::failure::Failure;
use super::table;

pub(super) fn run(shell: Shell, command: &mut clap::Command) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "weatherlight", &mut script);
    table::print(&String::from_utf8_lossy(&script));
    Ok(0)
}
