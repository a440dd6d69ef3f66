//! `weatherlight bench`.

use super::failure::Failure;
use super::{Global, runtime, table};
use crate::bench;

pub(super) fn run(global: &Global) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    let figures = runtime()?
        .block_on(bench::run(settings.redis_url.as_ref().map(|url| url.expose())))
        .map_err(|error| Failure::software(&error))?;
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
