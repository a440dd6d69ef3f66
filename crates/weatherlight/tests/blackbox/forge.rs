//! The forge's durable queue, from outside: what is killed in mid-compile goes on where it was, nothing is done twice,
//! and everybody is told of everything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Answers;
use crate::redis::{Server, get, metric};
use crate::service::Home;
use crate::wire::{self, Answer};

/// Far beyond what anything here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(180);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn run(home: &Home, redis: &Server, arguments: &[&str]) -> (i32, String) {
    let mut command = home.command(arguments);
    command.env("REDIS_URL", redis.url()).env("ESPER_LEYLINE_SECRET", wire::SECRET);
    home.run(&mut command)
}

/// Artifacts in the library: digest, and when it was stored first.
fn kernels(home: &Home, redis: &Server) -> BTreeMap<String, u64> {
    let (code, text) = run(home, redis, &["kernels", "list", "--json"]);
    assert_eq!(code, 0, "{text}");
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let one = |kernel: &Value| {
        let digest = kernel["checksum"].as_str().unwrap().to_owned();
        (digest, kernel["created_at_ms"].as_u64().unwrap())
    };
    all.iter().map(one).collect()
}

fn queue(home: &Home) -> PathBuf {
    home.directory.path().join("var/urza/forge/jobs")
}

fn files(home: &Home, extension: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(queue(home)) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|found| found == extension)).count()
}

/// A metric without labels; none before its first value.
fn plain(http: u16, name: &str) -> Option<f64> {
    let (_, text) = get(http, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[test]
fn a_forge_killed_in_mid_compile_goes_on_and_repeats_nothing() {
    let redis = Server::start();
    let home = Home::new();
    let detached = ["kernels", "build", "BP002", "BP003", "--site", "vector[48]", "--detach"];
    let (code, text) = run(&home, &redis, &detached);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("BP003 queued"), "{text}");
    assert_eq!(files(&home, "json"), 2);

    let service = home.serve_with(&redis, |command| {
        command.env("TEZZERET_JOBS_MAX", "1");
    });
    until("a job is at work", || files(&home, "lock") > 0);
    service.kill();
    let before = kernels(&home, &redis);
    std::fs::write(queue(&home).join("nonsense.json"), "{").unwrap();

    let service = home.serve(&redis);
    until("everything is done", || {
        let is_idle = plain(service.http, "tezzeret_jobs_waiting") == Some(0.0);
        is_idle && files(&home, "json") == 0 && files(&home, "lock") == 0
    });
    let after = kernels(&home, &redis);
    for (digest, stored) in &before {
        assert_eq!(after.get(digest), Some(stored), "{digest} was there and is there still");
    }
    let compiled = metric(service.http, "tezzeret_jobs_total", &["outcome=\"Compiled\""]);
    assert_eq!(compiled, (after.len() - before.len()) as f64, "nothing was repeated");
    assert_eq!(plain(service.http, "tezzeret_queue_set_aside_total"), Some(1.0));
    assert_eq!(std::fs::read_dir(queue(&home).join("corrupt")).unwrap().count(), 1);

    // By plain protobuf, as a program of before reads the stream: each artifact was told of.
    let mut answers = Answers::new(&redis);
    let mut told = 0;
    while told < after.len() {
        told += answers
            .next()
            .iter()
            .filter(|answer| matches!(answer, Answer::CatalogUpdate { .. }))
            .count();
    }
    assert_eq!(service.terminate().code(), Some(0));
}
