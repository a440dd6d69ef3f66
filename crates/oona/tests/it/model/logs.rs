//! The two logs as a case needs them: set up, killed, brought back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oona::{Config, LogChoice, LogKind, StreamNames};
use tempfile::TempDir;

use super::reference::ATTEMPTS_MAX;
use crate::redis_server::RedisServer;

/// Whatever stands behind the buses of a case.
pub struct LogHost<'a> {
    /// The Redis server of the test, shared by its cases; `None` for the embedded log.
    pub server: Option<&'a mut RedisServer>,
    directory: TempDir,
    /// The embedded log's files so far; a crash continues in a copy.
    generation: u32,
    prefix: String,
    pressure: bool,
}

impl<'a> LogHost<'a> {
    pub fn new(server: Option<&'a mut RedisServer>, pressure: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let prefix = format!("m{:x}", rand::random::<u64>());
        Self { server, directory, generation: 0, prefix, pressure }
    }

    pub fn kind(&self) -> LogKind {
        if self.server.is_some() { LogKind::Redis } else { LogKind::Embedded }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(format!("{}/log.redb", self.generation))
    }

    /// Settings of a process; each has a consumer name of its own.
    pub fn config(&self) -> Config {
        let log = match &self.server {
            Some(server) => LogChoice::Redis { url: server.url() },
            None => LogChoice::Embedded { path: self.path() },
        };
        let name = |stream: &str| format!("{}.{stream}", self.prefix);
        let usual = Config::default();
        let [depth_max, backpressure_threshold, emergency_threshold, recovery_depth] =
            match self.pressure {
                true => [24, 16, 8, 4],
                false => [10_000, 7_500, 5_000, usual.recovery_depth],
            };
        Config {
            log,
            streams: StreamNames {
                normal: name("normal"),
                emergency: name("emergency"),
                telemetry: name("telemetry"),
                policy: name("policy"),
                kernel_requests: name("requests"),
                kernel_ready: name("ready"),
                kernel_errors: name("errors"),
                dead_letter: name("dead"),
            },
            key_prefix: self.prefix.clone(),
            message_bytes_max: 4096,
            read_block: Duration::from_millis(20),
            consumer_ttl: Duration::from_millis(900),
            claim_idle: Duration::from_secs(4),
            retry_delay_min: Duration::from_millis(2),
            retry_delay_max: Duration::from_millis(8),
            depth_sample_interval: Duration::from_millis(1),
            publish_timeout: Duration::from_millis(1500),
            stream_len_max: 6,
            attempts_max: ATTEMPTS_MAX,
            depth_max,
            backpressure_threshold,
            emergency_threshold,
            recovery_depth,
            ..usual
        }
    }

    /// Ends the log at once. For the embedded one: takes what stands on disk at a moment when nobody
    /// writes, as a killed process leaves it, while its buses still live; they are dropped after.
    pub fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill();
            return;
        }
        let old = self.path();
        self.generation += 1;
        let new = self.path();
        copy_at_rest(old.parent().unwrap(), new.parent().unwrap());
    }

    /// Brings a killed server back; the embedded log comes back with its next bus.
    pub fn revive(&mut self) {
        if let Some(server) = &mut self.server {
            server.restart();
        }
    }
}

/// Copies the files until two copies agree: then no commit fell into the copying.
fn copy_at_rest(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let image = || {
        let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "lock") {
                files.push((path.clone(), std::fs::read(path).unwrap_or_default()));
            }
        }
        files.sort();
        files
    };
    let mut before = image();
    loop {
        let after = image();
        if before == after {
            break;
        }
        before = after;
    }
    for (path, bytes) in before {
        std::fs::write(to.join(path.file_name().unwrap()), bytes).unwrap();
    }
}
