//! Start to ready, and SIGTERM to exit, of a service whose catalogue is compiled.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::process::{Home, Log, Redis};
use super::{Figure, median};

/// What an idle service is given before it is stopped.
const SETTLE: Duration = Duration::from_millis(1_200);
/// Start to ready.
const START_MS: (f64, f64) = (150.0, 250.0);
const STOP_MS: f64 = 100.0;

/// The baseline of a start: the program is executed, says its version and ends. In milliseconds.
pub fn bare(program: &Path, runs: usize) -> Result<f64> {
    let mut spans = Vec::with_capacity(runs);
    for _ in 0..runs {
        let begun = Instant::now();
        let status = Command::new(program).arg("--version").stdout(Stdio::null()).status()?;
        ensure!(status.success(), "it ended with {status}");
        spans.push(milliseconds(begun.elapsed()));
    }
    Ok(median(&spans))
}

pub fn measure(
    program: &Path,
    log: Log,
    redis: Option<&Redis>,
    runs: usize,
    bare: f64,
) -> Result<Vec<Figure>> {
    let home = Home::new(redis)?;
    home.compile_catalogue(program)?;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (service, taken) = home.start(program)?;
        starts.push(milliseconds(taken));
        std::thread::park_timeout(SETTLE);
        stops.push(milliseconds(service.stop()?));
    }
    let target = if log == Log::Embedded { START_MS.0 } else { START_MS.1 };
    let name = log.name();
    Ok(vec![
        Figure::new(format!("start to ready, {name}"), "ms", starts)
            .target(target)
            .beside("`--version` of the same program", bare),
        Figure::new(format!("SIGTERM to exit, idle, {name}"), "ms", stops).target(STOP_MS),
    ])
}

pub fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
