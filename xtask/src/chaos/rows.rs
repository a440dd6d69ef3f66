//! The rows of the table: each a fault, and what is done around it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng as _;
use rustix::process::Signal;

use super::place::{self, Place};
use super::server::Sync;
use super::traffic::{BUILT, Forgeries};
use super::trial::{Outcome, Trial};

/// How long faults last that last.
const FAULT: Duration = Duration::from_secs(10);
/// Traffic before and after a fault.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(3);

/// A row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is done, for the table.
    pub what: &'static str,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// At this point, twice.
    Kill(&'static str),
    KillDraining,
    ServiceFrozen,
    RedisKilled(Sync),
    RedisFrozen,
    RedisFlushed,
    RedisFull,
    DiskFull,
    Catalogue(Damage),
    Artifacts,
    Clock(i64),
    Forged,
    ThreeServices,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Flipped,
    Truncated,
}

const fn row(name: &'static str, what: &'static str, fault: Fault) -> Row {
    Row { name, what, fault }
}

const fn kill(point: &'static str, name: &'static str, what: &'static str) -> Row {
    row(name, what, Fault::Kill(point))
}

/// All rows, in the order of the table.
pub const ROWS: [Row; 26] = [
    kill("request_read", "kill-request-read", "`kill -9` twice: request read, nothing verified"),
    kill(
        "request_verified",
        "kill-request-verified",
        "`kill -9` twice: verified, nonce not claimed",
    ),
    kill(
        "nonce_claimed",
        "kill-nonce-claimed",
        "`kill -9` twice: nonce claimed, no handler has it",
    ),
    kill(
        "library_asked",
        "kill-library-asked",
        "`kill -9` twice: library asked, nothing ordered or answered",
    ),
    kill(
        "kernel_compiling",
        "kill-kernel-compiling",
        "`kill -9` twice: in the middle of a compile",
    ),
    kill(
        "artifact_written",
        "kill-artifact-written",
        "`kill -9` twice: artifact written, not renamed",
    ),
    kill(
        "artifact_stored",
        "kill-artifact-stored",
        "`kill -9` twice: artifact stored, nobody told",
    ),
    kill(
        "update_published",
        "kill-update-published",
        "`kill -9` twice: catalogue update published, its job still queued",
    ),
    kill("answer_made", "kill-answer-made", "`kill -9` twice: answer made, not published"),
    kill(
        "answer_published",
        "kill-answer-published",
        "`kill -9` twice: answer published, request not acknowledged",
    ),
    kill(
        "request_acknowledged",
        "kill-request-acknowledged",
        "`kill -9` twice: request acknowledged",
    ),
    row(
        "kill-draining",
        "`kill -9` in an orderly stop with requests in progress",
        Fault::KillDraining,
    ),
    row("service-frozen", "service stopped by `SIGSTOP` for 10 s", Fault::ServiceFrozen),
    row(
        "redis-killed-always",
        "Redis killed for 10 s, `appendfsync always`",
        Fault::RedisKilled(Sync::Always),
    ),
    row(
        "redis-killed-everysec",
        "Redis killed for 10 s, `appendfsync everysec`",
        Fault::RedisKilled(Sync::EverySecond),
    ),
    row("redis-frozen", "Redis stopped by `SIGSTOP` for 10 s", Fault::RedisFrozen),
    row("redis-flushed", "`FLUSHALL` with requests unanswered", Fault::RedisFlushed),
    row("redis-full", "Redis out of memory for 10 s, `noeviction`", Fault::RedisFull),
    row(
        "disk-full",
        "the service's disk full for 10 s, four kernels to be built again",
        Fault::DiskFull,
    ),
    row(
        "catalogue-flipped",
        "catalogue with flipped bytes at a start",
        Fault::Catalogue(Damage::Flipped),
    ),
    row(
        "catalogue-truncated",
        "catalogue cut in half at a start",
        Fault::Catalogue(Damage::Truncated),
    ),
    row("artifacts-corrupt", "one bit flipped in each of six artifacts", Fault::Artifacts),
    row("clock-ahead", "the service's clock stepped an hour ahead", Fault::Clock(3600)),
    row("clock-behind", "the service's clock stepped an hour back", Fault::Clock(-3600)),
    row("forged", "10,000 forged messages a second for 10 s", Fault::Forged),
    row(
        "three-services",
        "three services on one catalogue, one killed each second for 20 s",
        Fault::ThreeServices,
    ),
];

/// What became of a row.
#[derive(Debug)]
pub enum Ran {
    /// It ran to its end.
    Done(Outcome),
    /// This machine cannot run it.
    NotRun(String),
}

impl Row {
    /// Runs it. An error is a trial that could not be brought to its end: the row has failed.
    pub fn run(&self, place: &Place, seed: u64) -> Result<Ran> {
        let mut sync = Sync::Always;
        let mut disk = None;
        let mut faketime = None;
        match self.fault {
            Fault::RedisKilled(chosen) => sync = chosen,
            Fault::DiskFull => {
                let at = place.directory.join(self.name).join("small");
                if let Err(error) = place::small_disk(&at, 32) {
                    return Ok(Ran::NotRun(format!("{error:#}")));
                }
                disk = Some(Mounted(at));
            }
            Fault::Clock(_) => match place::faketime(&place.root) {
                Ok(path) => faketime = Some(path),
                Err(error) => return Ok(Ran::NotRun(format!("no libfaketime: {error:#}"))),
            },
            _ => {}
        }
        let mut trial = Trial::begin(place, self.name, seed, sync)?;
        match self.fault {
            Fault::Kill(point) => kill_at(&mut trial, point)?,
            Fault::KillDraining => kill_draining(&mut trial)?,
            Fault::ServiceFrozen => service_frozen(&mut trial)?,
            Fault::RedisKilled(_) => redis_killed(&mut trial)?,
            Fault::RedisFrozen => redis_frozen(&mut trial)?,
            Fault::RedisFlushed => redis_flushed(&mut trial)?,
            Fault::RedisFull => redis_full(&mut trial)?,
            Fault::DiskFull => disk_full(&mut trial, disk.as_ref().context("mounted above")?)?,
            Fault::Catalogue(damage) => catalogue_damaged(&mut trial, damage)?,
            Fault::Artifacts => artifacts_corrupt(&mut trial)?,
            Fault::Clock(seconds) => {
                clock_stepped(&mut trial, seconds, &faketime.context("found above")?)?;
            }
            Fault::Forged => forged(&mut trial, seed)?,
            Fault::ThreeServices => three_services(&mut trial)?,
        }
        trial.run_for(AFTER)?;
        let outcome = trial.finish();
        drop(disk);
        outcome.map(Ran::Done)
    }
}

/// A small disk, unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A service that is ready, under traffic for a while.
fn usual(trial: &mut Trial<'_>) -> Result<()> {
    trial.add_service()?;
    trial.until_ready()?;
    trial.run_for(BEFORE)
}

/// The library is empty at first and requests wait already, so that every point is on the way.
fn kill_at(trial: &mut Trial<'_>, point: &str) -> Result<()> {
    let is_build = ["kernel_compiling", "artifact_written", "artifact_stored", "update_published"]
        .contains(&point);
    let passings = if is_build { 1..=4 } else { 5..=40 };
    trial.run_for(Duration::from_millis(500))?;
    let fuses = [0, 1].map(|_| format!("{point}:{}", trial.random.random_range(passings.clone())));
    trial.add_service()?.fuses.extend(fuses);
    let died = |trial: &mut Trial<'_>| Ok(trial.services[0].kills() == 2);
    trial.until(Duration::from_secs(60), &format!("the point {point} is passed twice"), died)?;
    trial.ends = trial.services[0].ends.iter().map(|(at, _)| *at).collect();
    trial.until_ready()
}

/// Kernels are taken away, so that requests wait for builds when the stop is asked for. A stop that met none in progress
/// is no trial, and is done again.
fn kill_draining(trial: &mut Trial<'_>) -> Result<()> {
    const TIMES: usize = 10;
    trial.add_service()?.fuses.extend((0..=TIMES).map(|_| "draining:1".to_owned()));
    trial.until_ready()?;
    trial.run_for(BEFORE)?;
    for _ in 0..TIMES {
        for artifact in until_built(trial)? {
            fs::remove_file(artifact)?;
        }
        trial.run_for(Duration::from_millis(150))?;
        let before = trial.services[0].ends.len();
        trial.services[0].signal(Signal::TERM)?;
        let ended = |trial: &mut Trial<'_>| Ok(trial.services[0].ends.len() > before);
        trial.until(Duration::from_secs(20), "the service ends", ended)?;
        if trial.services[0].kills() > 0 {
            trial.services[0].fuses.clear();
            trial.fault_over();
            return trial.until_ready();
        }
        trial.until_ready()?;
    }
    bail!("in {TIMES} orderly stops the point draining was never passed with a request in progress")
}

fn service_frozen(trial: &mut Trial<'_>) -> Result<()> {
    usual(trial)?;
    trial.services[0].is_frozen = true;
    trial.services[0].signal(Signal::STOP)?;
    trial.run_for(FAULT)?;
    trial.services[0].signal(Signal::CONT)?;
    trial.services[0].is_frozen = false;
    trial.fault_over();
    Ok(())
}

fn redis_killed(trial: &mut Trial<'_>) -> Result<()> {
    trial.redis_may_forget = true;
    usual(trial)?;
    trial.redis.kill();
    trial.run_for(FAULT)?;
    trial.redis.resume()?;
    trial.fault_over();
    Ok(())
}

fn redis_frozen(trial: &mut Trial<'_>) -> Result<()> {
    usual(trial)?;
    trial.redis.signal(Signal::STOP)?;
    trial.run_for(FAULT)?;
    trial.redis.signal(Signal::CONT)?;
    trial.fault_over();
    Ok(())
}

/// The service is held still for a moment, so that there is something unanswered to destroy.
fn redis_flushed(trial: &mut Trial<'_>) -> Result<()> {
    trial.redis_may_forget = true;
    usual(trial)?;
    trial.services[0].signal(Signal::STOP)?;
    trial.run_for(Duration::from_millis(500))?;
    trial.redis.client()?.command("FLUSHALL")?;
    trial.services[0].signal(Signal::CONT)?;
    trial.fault_over();
    Ok(())
}

fn redis_full(trial: &mut Trial<'_>) -> Result<()> {
    usual(trial)?;
    let mut client = trial.redis.client()?;
    let memory = client.command("INFO memory")?.text();
    let used = memory
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .context("no used_memory")?;
    let most = used.trim().parse::<u64>()? + (64 << 10);
    client.command("CONFIG SET maxmemory-policy noeviction")?;
    client.command(&format!("CONFIG SET maxmemory {most}"))?;
    trial.run_for(FAULT)?;
    // Nothing can be sent now; if it can, the row proves nothing.
    let probe = client.command("SET chaos-probe 1")?;
    ensure!(
        matches!(&probe, super::client::Reply::Error(text) if text.starts_with("OOM")),
        "Redis is not full: {probe:?}"
    );
    client.command("CONFIG SET maxmemory 0")?;
    trial.fault_over();
    Ok(())
}

fn disk_full(trial: &mut Trial<'_>, disk: &Mounted) -> Result<()> {
    trial.add_service_at(disk.0.join("home"))?;
    trial.until_ready()?;
    trial.run_for(BEFORE)?;
    let artifacts = until_built(trial)?;
    for artifact in artifacts.iter().take(4) {
        fs::remove_file(artifact)?;
    }
    let filler = place::fill(&disk.0)?;
    trial.run_for(FAULT)?;
    fs::remove_file(filler)?;
    trial.fault_over();
    Ok(())
}

fn catalogue_damaged(trial: &mut Trial<'_>, damage: Damage) -> Result<()> {
    usual(trial)?;
    until_built(trial)?;
    trial.services[0].keep = false;
    trial.services[0].signal(Signal::TERM)?;
    let stopped = |trial: &mut Trial<'_>| Ok(!trial.services[0].runs());
    trial.until(Duration::from_secs(20), "the service stops", stopped)?;
    let path = trial.services[0].home.join("var/urza/catalog.db");
    let file = File::options().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    match damage {
        Damage::Truncated => file.set_len(length / 2)?,
        // Behind the header, which alone would be noticed by anybody.
        Damage::Flipped => {
            for _ in 0..200 {
                let at = trial.random.random_range(100..length);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[byte[0] ^ 0xff], at)?;
            }
        }
    }
    trial.run_for(Duration::from_millis(500))?;
    trial.services[0].keep = true;
    trial.fault_over();
    trial.until_ready()
}

fn artifacts_corrupt(trial: &mut Trial<'_>) -> Result<()> {
    usual(trial)?;
    for artifact in until_built(trial)?.iter().take(6) {
        let file = File::options().read(true).write(true).open(artifact)?;
        let at = trial.random.random_range(0..file.metadata()?.len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 1 << trial.random.random_range(0..8);
        file.write_all_at(&byte, at)?;
    }
    trial.fault_over();
    Ok(())
}

fn clock_stepped(trial: &mut Trial<'_>, seconds: i64, faketime: &Path) -> Result<()> {
    let step = trial.directory.join("faketime");
    fs::write(&step, "+0")?;
    let service = trial.add_service()?;
    service.set("LD_PRELOAD", faketime);
    service.set("FAKETIME_TIMESTAMP_FILE", &step);
    service.set("FAKETIME_NO_CACHE", "1");
    // A step of the clock leaves the monotonic clock alone.
    service.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    service.set("DONT_FAKE_MONOTONIC", "1");
    trial.until_ready()?;
    trial.run_for(BEFORE)?;
    let next = step.with_extension("next");
    fs::write(&next, format!("{seconds:+}"))?;
    fs::rename(&next, &step)?;
    trial.fault_over();
    trial.run_for(Duration::from_secs(5))
}

fn forged(trial: &mut Trial<'_>, seed: u64) -> Result<()> {
    const RATE: u32 = 10_000;
    let forgeries = Forgeries::make(seed);
    usual(trial)?;
    let port = trial.redis.port;
    let count = RATE * u32::try_from(FAULT.as_secs())?;
    let begun = Instant::now();
    let forger = std::thread::spawn(move || forgeries.send(port, RATE, count));
    trial.until(FAULT * 6, "all forged messages are sent", |_| Ok(forger.is_finished()))?;
    let took = begun.elapsed();
    let Ok(taken) = forger.join() else { bail!("the forger panicked") };
    let taken = taken?;
    ensure!(taken == u64::from(count), "Redis took only {taken} of {count} forged messages");
    trial.traffic.book().forged = taken;
    trial.fault_over();
    if took > FAULT.mul_f64(1.1) {
        let rate = f64::from(count) / took.as_secs_f64();
        trial.note = Some(format!("{rate:.0} a second was what this machine could send"));
    }
    Ok(())
}

fn three_services(trial: &mut Trial<'_>) -> Result<()> {
    let (catalogue, artifacts) =
        (trial.directory.join("catalog.db"), trial.directory.join("artifacts"));
    for _ in 0..3 {
        let service = trial.add_service()?;
        service.set("URZA_DATABASE_URL", format!("sqlite://{}", catalogue.display()));
        service.set("URZA_ARTIFACT_DIR", &artifacts);
    }
    trial.until_ready()?;
    trial.run_for(BEFORE)?;
    for second in 0..20 {
        trial.services[second % 3].signal(Signal::KILL)?;
        trial.fault_over();
        trial.run_for(Duration::from_secs(1))?;
    }
    trial.until_ready()
}

/// Waits until all kernels are built, and returns their files in order.
fn until_built(trial: &mut Trial<'_>) -> Result<Vec<PathBuf>> {
    let directory = trial.services[0].home.join("var/urza/artifacts");
    let mut found = Vec::new();
    trial.until(Duration::from_secs(60), "all kernels are built", |_| {
        found = artifacts(&directory)?;
        Ok(found.len() >= BUILT as usize)
    })?;
    // The last file stands a moment before its record.
    trial.run_for(Duration::from_millis(500))?;
    Ok(found)
}

fn artifacts(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for shard in fs::read_dir(directory)? {
        let shard = shard?.path();
        if shard.file_name().is_some_and(|name| name.len() == 2) {
            for entry in fs::read_dir(shard)? {
                found.push(entry?.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: &str = include_str!("../../../crates/oona/src/chaos.rs");

    /// The kill points that rows use.
    fn points() -> Vec<&'static str> {
        let of = |row: &Row| match row.fault {
            Fault::Kill(point) => Some(point),
            Fault::KillDraining => Some("draining"),
            _ => None,
        };
        ROWS.iter().filter_map(of).collect()
    }

    #[test]
    fn every_kill_point_has_a_row_and_every_row_a_point() {
        let named: Vec<&str> = POINTS
            .lines()
            .filter_map(|line| {
                line.trim().strip_prefix("(\"")?.split_once("\", Point::").map(|(name, _)| name)
            })
            .collect();
        assert_eq!(named, points());
    }

    #[test]
    fn every_kill_point_is_passed_in_the_sources_exactly_once() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let mut code = String::new();
        for name in ["oona", "urza", "tezzeret"] {
            read_all(&crates.join(name).join("src"), &mut code);
        }
        for line in POINTS.lines().filter_map(|line| line.trim().strip_prefix("(\"")) {
            let Some((_, variant)) = line.split_once("\", ") else { continue };
            let variant = variant.trim_end_matches("),");
            assert_eq!(code.matches(variant).count(), 1, "{variant}");
        }
    }

    fn read_all(directory: &Path, code: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_all(&path, code);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("oona/src/chaos.rs")
            {
                code.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
