//! The engine beside PyTorch eager in one run, each on one thread:
//! `cargo run --release -p kernel --example engine_bench -- --python /opt/torch/bin/python [--rounds N] [--json]`.
//! Without `--python`, the engine alone.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use kernel::bench::{Times, beside};

/// One slice of ours, then one of PyTorch's: short, so that what else the machine does meets both.
const SLICE: Duration = Duration::from_millis(250);

fn main() -> Result<(), Box<dyn Error>> {
    let (mut python, mut rounds, mut as_json) = (None, 12, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--python" => python = Some(PathBuf::from(value()?)),
            "--rounds" => rounds = value()?.parse()?,
            "--json" => as_json = true,
            other => return Err(format!("unknown argument {other:?}").into()),
        }
    }
    let rows = beside(python.as_deref(), rounds, SLICE)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    for row in &rows {
        println!("{}", row.title);
        show("engine", &row.engine);
        if let (Some(torch), Some(ratio)) = (&row.torch, row.ratio) {
            show("PyTorch", torch);
            println!(
                "  ratio by processor time {ratio:.2}, of medians {:.2}, of least times {:.2}",
                torch.median / row.engine.median,
                torch.least / row.engine.least
            );
        }
        for choice in row.choices.iter() {
            let time =
                choice.nanoseconds.map_or("not measured".to_owned(), |time| format!("{time} ns"));
            println!("  {:?} {} {}: {time}", choice.algorithm, choice.operator, choice.shape);
        }
    }
    Ok(())
}

fn show(name: &str, times: &Times) {
    let Times { least, decile, median, processor, steps } = times;
    let rate = |time: f64| 1e6 / time;
    println!(
        "  {name:<8} processor {:>8.1} us ({:>6.0}/s), least {least:>8.1} us ({:>6.0}/s), decile {decile:>8.1} us, \
         median {median:>8.1} us, {steps} steps",
        processor.unwrap_or(f64::NAN),
        rate(processor.unwrap_or(f64::NAN)),
        rate(*least),
    );
}
