//! Model checking: random operations and crashes on a real log, each step compared with a small
//! reference in memory.
//!
//! `OONA_MODEL_CASES` sets how many cases run on each log (from seed `OONA_MODEL_FROM`, 0), and
//! `OONA_MODEL_SEED` runs that one seed. A failure prints the seed and the shortest list of
//! operations found that still fails.

use std::time::{Duration, Instant};

use self::logs::LogHost;
use self::ops::Case;
use self::world::World;
use crate::redis_server::RedisServer;

mod logs;
mod ops;
mod reference;
mod world;

/// Cases of one run on each log, when nobody asks for more.
const CASES: u64 = 20;
/// Shrinking ends after so much time.
const SHRINK: Duration = Duration::from_secs(60);
/// No acknowledged byte is lost with the server's process.
const DURABLE: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = number("OONA_MODEL_SEED") {
        return seed..seed + 1;
    }
    let from = number("OONA_MODEL_FROM").unwrap_or(0);
    from..from + number("OONA_MODEL_CASES").unwrap_or(CASES)
}

/// Runs a case; a panic of the bus is a fault like any other.
fn run(case: &Case, server: Option<&mut RedisServer>) -> Result<(), String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // The embedded log has no clock but the runtime's: hours of waiting take no time.
    let runtime = builder.enable_all().start_paused(server.is_none()).build().unwrap();
    let host = LogHost::new(server, case.pressure);
    let ran = std::panic::AssertUnwindSafe(|| runtime.block_on(World::run(case, host)));
    std::panic::catch_unwind(ran).unwrap_or_else(|_| Err("it panicked, see above".to_owned()))
}

/// Leaves operations out as long as the case still fails.
fn shrink(mut case: Case, mut fails: impl FnMut(&Case) -> Option<String>) -> (Case, String) {
    let begun = Instant::now();
    let mut fault = fails(&case).unwrap_or_else(|| "it failed once and not again".to_owned());
    let mut chunk = case.ops.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < case.ops.len() && begun.elapsed() < SHRINK {
            let mut fewer = case.clone();
            fewer.ops.drain(at..(at + chunk).min(fewer.ops.len()));
            match fails(&fewer) {
                Some(found) => (case, fault) = (fewer, found),
                None => at += chunk,
            }
        }
        chunk /= 2;
    }
    (case, fault)
}

fn check(mut server: Option<RedisServer>) {
    for seed in seeds() {
        let case = Case::of(seed);
        let Err(fault) = run(&case, server.as_mut()) else { continue };
        let (least, last) = shrink(case, |case| run(case, server.as_mut()).err());
        let ops: Vec<String> = least.ops.iter().map(|op| format!("    {op:?},")).collect();
        panic!(
            "seed {seed}: {fault}\nshrunk to {} operations (pressure: {}): {last}\n{}\n\
             replay with OONA_MODEL_SEED={seed} cargo test -p oona --test it model",
            ops.len(),
            least.pressure,
            ops.join("\n")
        );
    }
}

#[test]
fn on_embedded() {
    check(None);
}

#[test]
fn on_redis() {
    check(Some(RedisServer::start_with(&DURABLE)));
}
