//! What a measurement stands on: a bus whose names nobody else uses, a bare client of the same
//! server, and the caller's way to spawn.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::SystemStatePacket;
use redis::aio::MultiplexedConnection;
use tokio::sync::oneshot;

use super::report::Part;
use super::{BenchError, Options};
use crate::bus::Bus;
use crate::config::{Config, LogChoice, StreamNames};
use crate::metrics::Metrics;
use crate::stream::Stream;

/// A backlog that no measurement reaches: admission must not refuse what is to be measured.
const DEPTH_MAX: u64 = 1 << 40;
/// A bare command that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys removed in one step of the clearing.
const KEYS_PER_SCAN: usize = 1000;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How the caller starts tasks; nothing in this crate spawns by itself.
#[derive(Clone)]
pub struct Spawner(Arc<dyn Fn(Task) + Send + Sync>);

impl std::fmt::Debug for Spawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spawner")
    }
}

impl Spawner {
    /// Wraps the caller's way.
    pub fn new(spawn: impl Fn(Task) + Send + Sync + 'static) -> Self {
        Self(Arc::new(spawn))
    }

    /// Starts a task; dropping the answer does not stop it.
    pub(super) fn start<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Running<T> {
        let (sender, receiver) = oneshot::channel();
        (self.0)(Box::pin(async move {
            let _ = sender.send(task.await);
        }));
        Running(receiver)
    }
}

/// A task that was started.
pub(super) struct Running<T>(oneshot::Receiver<T>);

impl<T> Running<T> {
    pub(super) async fn result(self) -> Result<T, BenchError> {
        self.0.await.map_err(|_| BenchError::Panicked)
    }
}

/// The stage of one measurement.
pub(super) struct Stage {
    pub(super) options: Options,
    pub(super) spawner: Spawner,
    pub(super) bus: Bus,
    pub(super) group: String,
    prefix: String,
    client: Option<redis::Client>,
    file: Option<PathBuf>,
    server: String,
}

impl Stage {
    pub(super) async fn open(
        options: &Options,
        spawner: &Spawner,
        part: Part,
    ) -> Result<Self, BenchError> {
        let prefix = format!("oona-bench-{:08x}", rand::random::<u32>());
        // The durable part is about the embedded log, whatever the others run on.
        let url = options.redis_url.clone().filter(|_| part != Part::Durable);
        let (log, client, file) = match url {
            Some(url) => {
                let client = redis::Client::open(url.as_str())?;
                (LogChoice::Redis { url }, Some(client), None)
            }
            None => {
                let path = options.directory.join(format!("{prefix}.redb"));
                (LogChoice::Embedded { path: path.clone() }, None, Some(path))
            }
        };
        let secret = Secret::new(uuid::Uuid::new_v4().to_string());
        let keyring = Keyring::new(&secret, None);
        let bus = Bus::open(config(log, &prefix), keyring, Metrics::detached()).await?;
        let mut stage = Self {
            options: options.clone(),
            spawner: spawner.clone(),
            bus,
            group: prefix.clone(),
            prefix,
            client,
            file,
            server: "embedded log, fsync before each answer".to_owned(),
        };
        if stage.client.is_some() {
            stage.server = stage.describe_server().await?;
        }
        Ok(stage)
    }

    /// A bare connection. Patient, because removing millions of keys takes a busy server its time.
    pub(super) async fn raw(&self) -> Result<MultiplexedConnection, BenchError> {
        let client = self.client.as_ref().ok_or(BenchError::Panicked)?;
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        Ok(client.get_multiplexed_async_connection_with_config(&patient).await?)
    }

    pub(super) fn is_redis(&self) -> bool {
        self.client.is_some()
    }

    /// The lane's name in the log.
    pub(super) fn name(&self, stream: Stream) -> &str {
        self.bus.name(stream)
    }

    /// A name that this measurement may use and that is removed with the others.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// What stands beside every number.
    pub(super) fn conditions(&self, more: &str) -> String {
        format!("{}; payload {} bytes; {more}", self.server, self.options.payload_bytes)
    }

    /// Kind of the log and how it persists, as the server itself reports it.
    async fn describe_server(&self) -> Result<String, BenchError> {
        let mut raw = self.raw().await?;
        let info: String = redis::cmd("INFO").query_async(&mut raw).await?;
        let field = |name: &str| {
            let found = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            found.unwrap_or("?").trim().to_owned()
        };
        let aof = match field("aof_enabled").as_str() {
            "1" => {
                let asked = redis::cmd("CONFIG").arg("GET").arg("appendfsync").to_owned();
                let policy: Result<Vec<String>, _> = asked.query_async(&mut raw).await;
                let policy = policy.ok().and_then(|pair| pair.into_iter().nth(1));
                format!("AOF {}", policy.unwrap_or_else(|| "on".to_owned()))
            }
            _ => "no AOF".to_owned(),
        };
        let version = field("redis_version");
        Ok(format!("Redis {version} over its socket, {aof}, durability class none"))
    }

    /// A message whose payload has the wanted size and begins with this text.
    pub(super) fn message(&self, text: &str) -> Message {
        let of = |length: usize| {
            let filled = format!("{text:x<length$}");
            Message::from(SystemStatePacket {
                training_run_id: filled,
                ..SystemStatePacket::default()
            })
        };
        let wanted = self.options.payload_bytes;
        let extra = of(wanted).encode_payload().len().saturating_sub(wanted);
        of(wanted.saturating_sub(extra))
    }

    /// Empties the normal lane between slices, its groups with it.
    pub(super) async fn empty(&self, raw: &mut MultiplexedConnection) -> Result<(), BenchError> {
        let name = self.name(Stream::Normal);
        redis::cmd("UNLINK").arg(name).query_async::<()>(raw).await?;
        Ok(())
    }

    /// Removes everything that the measurement has left.
    pub(super) async fn clear(self) -> Result<(), BenchError> {
        if self.client.is_some() {
            let mut raw = self.raw().await?;
            let pattern = format!("{}*", self.prefix);
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(KEYS_PER_SCAN);
                let (next, keys): (u64, Vec<String>) = scan.query_async(&mut raw).await?;
                if !keys.is_empty() {
                    redis::cmd("UNLINK").arg(&keys).query_async::<()>(&mut raw).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        let Self { bus, file, .. } = self;
        bus.flush().await?;
        drop(bus);
        if let Some(file) = file {
            for path in [file.with_extension("lock"), file] {
                // The lock may be named otherwise; the directory is the caller's to remove.
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }
}

fn config(log: LogChoice, prefix: &str) -> Config {
    let name = |stream: &str| format!("{prefix}.{stream}");
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
            dead_letter: name("deadletter"),
        },
        group: prefix.to_owned(),
        key_prefix: prefix.to_owned(),
        depth_max: DEPTH_MAX,
        backpressure_threshold: DEPTH_MAX,
        emergency_threshold: DEPTH_MAX,
        // The lane itself is measured, not the bucket before it.
        emergency_per_min: u32::MAX,
        ..Config::default()
    }
}
