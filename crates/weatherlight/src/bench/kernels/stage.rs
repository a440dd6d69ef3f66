//! What a measurement over the bus stands on: a bus with names of its own, a library with the
//! artifacts that are asked for, and the prefetch worker of the service between them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernel::Digest;
use leyline::Message;
use leyline::ids::RequestId;
use leyline::sign::{Keyring, Secret};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{BlueprintTier, KernelPrefetchRequest};
use oona::{Bus, Consumer, ConsumerSpec, Heartbeat, LogChoice, Stream, StreamNames};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use urza::{
    Demand, JobKey, Library, NewArtifact, PrefetchConfig, Prefetcher, Prewarm, Role, Variants,
};

use super::{Bench, BenchError};

const SERVICE: &str = "weatherlight-bench";
const TRAINER: &str = "trainer-bench";
/// A backlog that no measurement reaches: admission must not refuse what is to be measured.
const DEPTH_MAX: u64 = 1 << 40;

/// The sizes that are asked for: a small kernel and one of 64 MiB.
pub(super) const SIZES: [(&str, &str, usize); 2] =
    [("BP001", "1KiB", 1 << 10), ("BP002", "64MiB", 64 << 20)];

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Redis,
    Embedded,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Embedded => "embedded",
        }
    }

    /// The logs that are measured.
    pub(super) fn of(bench: &Bench) -> Vec<Self> {
        let redis = bench.redis_url.is_some().then_some(Self::Redis);
        let embedded = bench.embedded.then_some(Self::Embedded);
        redis.into_iter().chain(embedded).collect()
    }
}

/// A bus, a library and the worker, running.
pub(super) struct Stage {
    pub(super) bus: Bus,
    pub(super) answers: Consumer,
    pub(super) directory: PathBuf,
    prefix: String,
    redis_url: Option<String>,
    library: Library,
    stop: CancellationToken,
    worker: JoinHandle<Result<(), oona::BusError>>,
}

impl Stage {
    /// Opens everything, stores the artifacts and starts the worker.
    pub(super) async fn open(bench: &Bench, kind: Kind) -> Result<Self, BenchError> {
        let prefix = format!("kernels-bench-{}", uuid::Uuid::new_v4().simple());
        let directory = bench.room(&prefix)?;
        let log = match (kind, &bench.redis_url) {
            (Kind::Redis, Some(url)) => LogChoice::Redis { url: url.clone() },
            _ => LogChoice::Embedded { path: directory.join("log.redb") },
        };
        let secret = Secret::new(uuid::Uuid::new_v4().to_string());
        let config = config(log, &prefix);
        let bus = Bus::open(config, Keyring::new(&secret, None), oona::Metrics::detached()).await?;
        bus.ensure_groups(&[(Stream::KernelRequests, SERVICE), (Stream::KernelReady, TRAINER)])
            .await?;
        let metrics = urza::Metrics::register(&mut Registry::default());
        let mut settings = urza::Config::at(&directory);
        settings.artifact_bytes_max = settings.artifact_bytes_max.max(128 << 20);
        let library = Library::open(settings, metrics.clone()).await?;
        for (blueprint, _, bytes) in SIZES {
            library.store(artifact(blueprint, bytes)).await?;
        }
        let prefetcher = Prefetcher {
            bus: bus.clone(),
            library: library.clone(),
            demand: Demand::nobody(),
            variants: Variants::none(),
            config: PrefetchConfig { group: SERVICE.to_owned(), ..PrefetchConfig::default() },
            metrics,
            heartbeat: Heartbeat::detached(),
        };
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
        let worker = tokio::spawn(prefetcher.run(stop.clone()));
        let answers = bus.consumer(ConsumerSpec {
            in_work_max: 4096,
            ..ConsumerSpec::new(Stream::KernelReady, TRAINER)
        });
        let redis_url = bench.redis_url.clone().filter(|_| kind == Kind::Redis);
        Ok(Self { bus, answers, directory, prefix, redis_url, library, stop, worker })
    }

    /// A bare connection to the same server. (A stage cannot be looked at from two threads: its consumer cannot.)
    pub(super) async fn raw(
        &mut self,
    ) -> Result<Option<redis::aio::MultiplexedConnection>, BenchError> {
        let Some(url) = &self.redis_url else { return Ok(None) };
        let client = redis::Client::open(url.as_str())?;
        Ok(Some(client.get_multiplexed_async_connection().await?))
    }

    /// A name on the server that is removed with the others.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Stops the worker and removes what was left on the server.
    pub(super) async fn close(mut self) -> Result<(), BenchError> {
        self.stop.cancel();
        (&mut self.worker).await.map_err(|_| BenchError::Panicked)??;
        self.library.close().await;
        if let Some(mut raw) = self.raw().await? {
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{}*", self.prefix))
                    .arg("COUNT")
                    .arg(1000);
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
        drop(self.answers);
        self.bus.flush().await?;
        Ok(())
    }
}

/// A fresh request, as a trainer sends it.
pub(super) fn request(blueprint: &str) -> (String, Message) {
    let id = RequestId::fresh().to_string();
    let message = Message::from(KernelPrefetchRequest {
        request_id: id.clone(),
        blueprint_id: blueprint.to_owned(),
        training_run_id: "bench".to_owned(),
        issued_at: Some(timestamp(now_unix_ms())),
    });
    (id, message)
}

fn artifact(blueprint: &str, bytes: usize) -> NewArtifact {
    NewArtifact {
        job: JobKey {
            blueprint: blueprint.into(),
            parameters: BTreeMap::new(),
            site: "vector[32]".to_owned(),
            engine: "bench".to_owned(),
        },
        role: Role::Default,
        bytes: vec![7; bytes],
        guard_digest: Digest::of(b"bench"),
        guard_spec: "[]".to_owned(),
        guard_summary: "bench".to_owned(),
        compile_ms: 1.0,
        prewarm: Prewarm::default(),
        strategy: "standard".to_owned(),
        tier: BlueprintTier::Safe,
        extras: urza::Extras::default(),
    }
}

fn config(log: LogChoice, prefix: &str) -> oona::Config {
    let name = |stream: &str| format!("{prefix}.{stream}");
    oona::Config {
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
        ..oona::Config::default()
    }
}
