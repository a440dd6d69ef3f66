//! What the service takes while nothing happens: processor, memory, wake-ups.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Figure;
use super::process::{Home, Log, Redis};

/// Until a started service is at rest.
const SETTLE: Duration = Duration::from_secs(10);
const MEMORY_MIB: f64 = 40.0;
/// Of one core.
const CPU_PERCENT: f64 = 0.3;
/// The kernel counts processor time in these, whatever its own clock: `USER_HZ`.
const TICKS_PER_S: f64 = 100.0;

pub fn measure(
    program: &Path,
    log: Log,
    redis: Option<&Redis>,
    seconds: u64,
) -> Result<Vec<Figure>> {
    let home = Home::new(redis)?;
    home.compile_catalogue(program)?;
    let (service, _) = home.start(program)?;
    std::thread::park_timeout(SETTLE);
    let (begun, id) = (Instant::now(), service.id());
    let (cpu, woken) = (ticks(id)?, switches(id)?);
    let server = redis.map(|redis| ticks(redis.id())).transpose()?;
    let until = begun + Duration::from_secs(seconds);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
    let span = begun.elapsed().as_secs_f64();
    let percent = |before: f64, after: f64| (after - before) / TICKS_PER_S / span * 100.0;
    let name = log.name();
    let mut figure = Figure::new(format!("CPU, idle, {name}"), "%", vec![percent(cpu, ticks(id)?)]);
    figure = figure.target(CPU_PERCENT);
    if let (Some(redis), Some(before)) = (redis, server) {
        figure = figure.beside("its Redis server", percent(before, ticks(redis.id())?));
    }
    let woken = (switches(id)? - woken) / span;
    let resident = field(&format!("/proc/{id}/status"), "VmRSS:")? / 1024.0;
    let proportional = field(&format!("/proc/{id}/smaps_rollup"), "Pss:")? / 1024.0;
    let threads = field(&format!("/proc/{id}/status"), "Threads:")?;
    service.stop()?;
    Ok(vec![
        figure,
        Figure::new(format!("wake-ups, idle, {name}"), "/s", vec![woken]),
        Figure::new(format!("resident memory, idle, {name}"), "MiB", vec![resident])
            .target(MEMORY_MIB),
        Figure::new(format!("proportional share of it, {name}"), "MiB", vec![proportional]),
        Figure::new(format!("threads, {name}"), "", vec![threads]),
    ])
}

/// Processor time of a process, of threads that have ended too.
fn ticks(id: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may hold anything; behind it the third field follows.
    let (_, rest) = text.rsplit_once(')').context("no name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next().and_then(|text| text.parse::<f64>().ok()).context("no time");
    Ok(next()? + next()?)
}

/// Times that threads which live now gave up the processor to wait.
fn switches(id: u32) -> Result<f64> {
    let mut sum = 0.0;
    for entry in fs::read_dir(format!("/proc/{id}/task"))? {
        let path = entry?.path().join("status");
        // A thread may end while it is looked at.
        sum += field(&path.to_string_lossy(), "voluntary_ctxt_switches:").unwrap_or(0.0);
    }
    Ok(sum)
}

fn field(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("{path} has no {name}"))
}
