//! `weatherlight bench`.

use clap::Args;
use indicatif::MultiProgress;

use super::failure::Failure;
use super::serve::start_logging;
use super::{Global, runtime, table};
use crate::bench;

/// What `weatherlight bench` can be asked.
#[derive(Debug, Args)]
pub struct Options {
    /// Measure the supervisor instead: how soon a crashed worker runs again and a hung one is noticed
    #[arg(long)]
    supervisor: bool,
}

pub(super) fn run(global: &Global, options: &Options) -> Result<u8, Failure> {
    let resolved = global.load()?;
    let figures = if options.supervisor {
        // Part of what a restart costs, so they are written as the service writes them.
        start_logging(global, &resolved, &MultiProgress::new())?;
        runtime()?.block_on(bench::supervisor()).map_err(|error| Failure::software(&error))?
    } else {
        runtime()?
            .block_on(bench::run(resolved.settings.redis_url.as_ref().map(|url| url.expose())))
            .map_err(|error| Failure::software(&error))?
    };
    if global.json {
        table::print_json(&figures);
        return Ok(0);
    }
    let columns = ["measurement", "unit", "median", "baseline", "ratio", "target", "met"];
    let mut rows = table::with_columns(&columns);
    for figure in &figures {
        rows.add_row([
            figure.name.clone(),
            figure.unit.to_owned(),
            format!("{:.3}", figure.value),
            format!("{:.3}", figure.baseline),
            format!("{:.2}", figure.ratio),
            format!("{:.0}", figure.target),
            if figure.met { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table::print(&rows.to_string());
    Ok(0)
}
