//! `weatherlight man`: the manual pages.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::{Global, table};

#[derive(Debug, Args)]
pub struct Options {
    /// Write one page for each command into this directory, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(
    global: &Global,
    options: &Options,
    command: clap::Command,
) -> Result<u8, Failure> {
    let Some(directory) = &options.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| Failure::software(&error))?;
        table::print(&String::from_utf8_lossy(&page));
        return Ok(0);
    };
    let cannot = |error: std::io::Error| {
        Failure::configuration(format!(
            "cannot write pages into {}: {error}; name a directory that this user can write",
            directory.display()
        ))
    };
    fs::create_dir_all(directory).map_err(cannot)?;
    clap_mangen::generate_to(command, directory).map_err(cannot)?;
    if global.json {
        table::print_json(&json!({ "directory": directory }));
    } else {
        table::print(&format!("wrote the manual pages into {}", directory.display()));
    }
    Ok(0)
}
