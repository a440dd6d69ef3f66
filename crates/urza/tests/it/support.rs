//! A library in a directory of its own, and artifacts to put into it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kernel::Digest;
use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{
    BlueprintTier, KernelArtifactError, KernelArtifactReady, KernelPrefetchRequest, MessagePriority,
};
use oona::{Bus, Consumer, ConsumerSpec, Heartbeat, LogChoice, Outgoing, Stream, TraceContext};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use urza::{
    Config, Demand, JobKey, Library, Metrics, NewArtifact, PrefetchConfig, Prefetcher, Prewarm,
    Role, Variants,
};

pub struct Fixture {
    pub library: Library,
    pub metrics: Metrics,
    pub config: Config,
    pub dir: TempDir,
}

pub async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::at(dir.path());
    fixture_with(dir, config).await
}

/// With these settings.
pub async fn fixture_with(dir: TempDir, config: Config) -> Fixture {
    let metrics = Metrics::register(&mut Registry::default());
    let library = Library::open(config.clone(), metrics.clone()).await.unwrap();
    Fixture { library, metrics, config, dir }
}

/// Each test once with a catalogue in SQLite and once in PostgreSQL.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::fixture().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::postgres::fixture().await).await;
            })*
        }
    };
}
pub(crate) use on_both;

impl Fixture {
    pub async fn another_process(&self) -> Library {
        let metrics = Metrics::register(&mut Registry::default());
        Library::open(self.config.clone(), metrics).await.unwrap()
    }

    pub fn metric(&self, name: &str) -> f64 {
        let point = self.metrics.snapshot().into_iter().find(|point| point.name == name);
        point.unwrap_or_else(|| panic!("no metric {name}")).value
    }

    pub fn quarantined(&self) -> usize {
        count(&self.dir.path().join("artifacts/quarantine"))
    }
}

pub fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

pub fn artifact(blueprint: &str, bytes: &[u8]) -> NewArtifact {
    NewArtifact {
        job: JobKey {
            blueprint: blueprint.into(),
            parameters: BTreeMap::from([("width".to_owned(), 0.1)]),
            site: "vector[32]".to_owned(),
            engine: "1".to_owned(),
        },
        role: Role::Default,
        bytes: bytes.to_vec(),
        guard_digest: Digest::of("guard"),
        guard_spec: "[]".to_owned(),
        guard_summary: "float32[8x32]".to_owned(),
        compile_ms: 12.5,
        prewarm: Prewarm::new("this machine", [1.0, 2.0, 3.0, 4.0]),
        strategy: "standard".to_owned(),
        tier: BlueprintTier::Safe,
        extras: urza::Extras::new(),
    }
}

/// A bus on an embedded log of its own, the prefetch worker on it, and a trainer that asks.
pub struct Service {
    pub fixture: Fixture,
    pub bus: Bus,
    pub config: PrefetchConfig,
    pub variants: Variants,
    ready: Consumer,
    errors: Consumer,
}

pub async fn bus(dir: &Path) -> Bus {
    bus_with(dir, |config| config).await
}

async fn bus_with(dir: &Path, change: impl FnOnce(oona::Config) -> oona::Config) -> Bus {
    let path = dir.join("log.redb");
    let config =
        change(oona::Config { log: LogChoice::Embedded { path }, ..oona::Config::default() });
    let keyring = Keyring::new(&Secret::new("a secret of some length"), None);
    Bus::open(config, keyring, oona::Metrics::detached()).await.unwrap()
}

pub async fn service() -> Service {
    service_with(|config| config).await
}

/// The same with other settings of the bus.
pub async fn service_with(change: impl FnOnce(oona::Config) -> oona::Config) -> Service {
    service_on(fixture().await, change).await
}

/// The same on a library of the caller's.
pub async fn service_on(
    fixture: Fixture,
    change: impl FnOnce(oona::Config) -> oona::Config,
) -> Service {
    let bus = bus_with(fixture.dir.path(), change).await;
    bus.ensure_groups(&[
        (Stream::KernelRequests, "weatherlight"),
        (Stream::KernelReady, "trainer"),
        (Stream::KernelErrors, "trainer"),
    ])
    .await
    .unwrap();
    let ready = bus.consumer(ConsumerSpec::new(Stream::KernelReady, "trainer"));
    let errors = bus.consumer(ConsumerSpec::new(Stream::KernelErrors, "trainer"));
    let config =
        PrefetchConfig { compiling_after: Duration::from_secs(10), ..PrefetchConfig::default() };
    Service { fixture, bus, config, variants: Variants::none(), ready, errors }
}

impl Service {
    /// Runs the worker beside `client`, then stops it; it must end by itself.
    pub async fn serve<T>(
        &mut self,
        demand: Demand,
        client: impl AsyncFnOnce(&mut Self) -> T,
    ) -> T {
        let worker = Prefetcher {
            bus: self.bus.clone(),
            library: self.fixture.library.clone(),
            demand,
            variants: self.variants.clone(),
            config: self.config.clone(),
            metrics: self.fixture.metrics.clone(),
            heartbeat: Heartbeat::detached(),
        };
        let stop = CancellationToken::new();
        let client = async {
            let outcome = client(self).await;
            stop.cancel();
            outcome
        };
        let both = async { tokio::join!(worker.run(stop.clone()), client) };
        let (ended, outcome) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        ended.unwrap();
        outcome
    }

    pub async fn ask(&self, request: &str, blueprint: &str) {
        let message = Message::PrefetchRequest(KernelPrefetchRequest {
            request_id: request.to_owned(),
            blueprint_id: blueprint.to_owned(),
            training_run_id: "run".to_owned(),
            issued_at: Some(timestamp(now_unix_ms())),
        });
        self.publish(Stream::KernelRequests, &message).await;
    }

    pub async fn publish(&self, stream: Stream, message: &Message) {
        let outcome =
            self.bus.publish(stream, MessagePriority::Normal, "test", message).await.unwrap();
        assert!(outcome.is_sent());
    }

    /// Asks as a part of a trace.
    pub async fn ask_within(&self, request: &str, blueprint: &str, traceparent: &str) {
        let message = &Message::PrefetchRequest(KernelPrefetchRequest {
            request_id: request.to_owned(),
            blueprint_id: blueprint.to_owned(),
            training_run_id: "run".to_owned(),
            issued_at: Some(timestamp(now_unix_ms())),
        });
        let outgoing = Outgoing {
            stream: Stream::KernelRequests,
            priority: MessagePriority::Normal,
            source: "test",
            message,
            traceparent: Some(traceparent),
        };
        assert!(self.bus.send(outgoing).await.unwrap().is_sent());
    }

    /// The trace that the next answer belongs to.
    pub async fn trace_of_ready(&mut self) -> Option<TraceContext> {
        let delivery = self.ready.recv().await.unwrap();
        let trace = delivery.trace();
        delivery.ack().await.unwrap();
        trace
    }

    pub async fn ready(&mut self) -> KernelArtifactReady {
        let delivery = self.ready.recv().await.unwrap();
        let Message::PrefetchReady(ready) = delivery.message.clone() else {
            panic!("{delivery:?}")
        };
        delivery.ack().await.unwrap();
        ready
    }

    /// The next kernel, with the attributes of its envelope.
    pub async fn ready_with_attributes(
        &mut self,
    ) -> (KernelArtifactReady, BTreeMap<String, String>) {
        let delivery = self.ready.recv().await.unwrap();
        let Message::PrefetchReady(ready) = delivery.message.clone() else {
            panic!("{delivery:?}")
        };
        let attributes = delivery.attributes.clone();
        delivery.ack().await.unwrap();
        (ready, attributes)
    }

    pub async fn error(&mut self) -> KernelArtifactError {
        self.error_with_attributes().await.0
    }

    /// The next error, with the attributes of its envelope.
    pub async fn error_with_attributes(
        &mut self,
    ) -> (KernelArtifactError, BTreeMap<String, String>) {
        let delivery = self.errors.recv().await.unwrap();
        let Message::PrefetchError(error) = delivery.message.clone() else {
            panic!("{delivery:?}")
        };
        let attributes = delivery.attributes.clone();
        delivery.ack().await.unwrap();
        (error, attributes)
    }

    /// Asks as a training run of this name.
    pub async fn ask_as(
        &self,
        run: &str,
        request: &str,
        blueprint: &str,
        attributes: &[(&str, &str)],
    ) {
        let message = &Message::PrefetchRequest(KernelPrefetchRequest {
            request_id: request.to_owned(),
            blueprint_id: blueprint.to_owned(),
            training_run_id: run.to_owned(),
            issued_at: Some(timestamp(now_unix_ms())),
        });
        let outgoing = Outgoing {
            stream: Stream::KernelRequests,
            priority: MessagePriority::Normal,
            source: "test",
            message,
            traceparent: None,
        };
        assert!(self.bus.send_with(outgoing, attributes).await.unwrap().is_sent());
    }

    /// Asks with attributes, given in the order of their names.
    pub async fn ask_with(&self, request: &str, blueprint: &str, attributes: &[(&str, &str)]) {
        self.ask_as("run", request, blueprint, attributes).await;
    }
}
