//! From a request on the bus to the kernel that did not exist when it was made.

use std::time::Duration;

use kernel::Digest;
use kernel::artifact::Kernel;
use leyline::Message;
use leyline::ids::RequestId;
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{KernelArtifactReady, KernelPrefetchRequest, MessagePriority};
use oona::{ConsumerSpec, Heartbeat, Stream};
use prometheus_client::registry::Registry;
use tezzeret::{Config, Desk};
use tokio_util::sync::CancellationToken;
use urza::{Demand, Maintenance, MaintenanceConfig, PrefetchConfig, Prefetcher};

use crate::catalogue::Process;

/// Far beyond what a request needs, so that a hang fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

async fn request(process: &Process, blueprint: &str) -> String {
    let request_id = RequestId::fresh().into_string();
    let message = Message::PrefetchRequest(KernelPrefetchRequest {
        request_id: request_id.clone(),
        blueprint_id: blueprint.to_owned(),
        training_run_id: "run-1".to_owned(),
        issued_at: Some(timestamp(now_unix_ms())),
    });
    let (stream, priority) = (Stream::KernelRequests, MessagePriority::Normal);
    let outcome = process.bus.publish(stream, priority, "kasmina", &message).await;
    assert!(outcome.expect("the log is there").is_sent());
    request_id
}

/// The answer to a request, past the catalogue updates that share its stream.
async fn ready(process: &Process, wanted: &str) -> KernelArtifactReady {
    let mut answers = process.bus.consumer(ConsumerSpec::new(Stream::KernelReady, "client"));
    loop {
        let delivery = answers.recv().await.expect("the log is there");
        let message = delivery.message.clone();
        delivery.ack().await.expect("the log is there");
        match message {
            Message::PrefetchReady(ready) if ready.request_id == wanted => return ready,
            Message::PrefetchReady(_) | Message::CatalogUpdate(_) => {}
            other => panic!("{other:?} on the ready stream"),
        }
    }
}

async fn refusal(process: &Process) -> (String, String) {
    let mut errors = process.bus.consumer(ConsumerSpec::new(Stream::KernelErrors, "client"));
    let delivery = errors.recv().await.expect("the log is there");
    let Message::PrefetchError(error) = delivery.message.clone() else {
        panic!("{:?} on the error stream", delivery.message)
    };
    delivery.ack().await.expect("the log is there");
    (error.request_id, error.reason)
}

/// A forge, a prefetch worker and a client on one embedded log.
struct Service {
    root: tempfile::TempDir,
    process: Process,
    demand: Demand,
}

impl Service {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (desk, demand, handle) = Desk::open();
        let process = Process { desk, handle, ..Process::start(root.path()).await };
        let groups = [
            (Stream::KernelRequests, "weatherlight"),
            (Stream::KernelReady, "client"),
            (Stream::KernelErrors, "client"),
        ];
        process.bus.ensure_groups(&groups).await.unwrap();
        Self { root, process, demand }
    }

    /// Runs forge and worker beside a client. The forge does what is ordered and nothing else.
    async fn beside<T>(&self, client: impl Future<Output = T>) -> T {
        let prefetcher = Prefetcher {
            bus: self.process.bus.clone(),
            library: self.process.library.clone(),
            demand: self.demand.clone(),
            variants: urza::Variants::none(),
            // However busy the machine is.
            config: PrefetchConfig { compiling_after: PATIENCE, ..PrefetchConfig::default() },
            metrics: urza::Metrics::register(&mut Registry::default()),
            heartbeat: Heartbeat::detached(),
        };
        let stop = CancellationToken::new();
        let client = async {
            let outcome = tokio::time::timeout(2 * PATIENCE, client).await.expect("in time");
            stop.cancel();
            outcome
        };
        let forge = self.process.forge(Config::default()).run_orders(stop.clone());
        let (forged, served, outcome) = tokio::join!(forge, prefetcher.run(stop.clone()), client);
        forged.unwrap();
        served.unwrap();
        outcome
    }

    fn quarantined(&self) -> usize {
        std::fs::read_dir(self.root.path().join("artifacts/quarantine")).unwrap().count()
    }
}

/// Other contents of the same length.
fn flip(path: impl AsRef<std::path::Path>) {
    let mut contents = std::fs::read(&path).unwrap();
    let middle = contents.len() / 2;
    contents[middle] ^= 1;
    std::fs::write(path, contents).unwrap();
}

#[tokio::test]
async fn a_corrupt_artifact_is_rebuilt_and_every_request_that_waits_is_answered() {
    let service = Service::start().await;
    let process = &service.process;
    service
        .beside(async {
            let asked = request(process, "BP001").await;
            let before = ready(process, &asked).await;
            flip(&before.artifact_ref);
            let (first, second) =
                (request(process, "BP001").await, request(process, "BP001").await);
            for asked in [first, second] {
                let after = ready(process, &asked).await;
                assert_eq!(after.checksum, before.checksum, "the same job gives the same bytes");
                let digest: Digest = after.checksum.parse().unwrap();
                Kernel::open(&after.artifact_ref, &digest).unwrap();
            }
            std::fs::remove_file(&before.artifact_ref).unwrap();
            let asked = request(process, "BP001").await;
            assert_eq!(ready(process, &asked).await.checksum, before.checksum);
        })
        .await;
    assert_eq!(service.quarantined(), 1, "what was corrupt is kept, what was gone cannot be");
}

#[tokio::test]
async fn what_a_scrub_finds_corrupt_is_back_without_a_request() {
    let service = Service::start().await;
    let process = &service.process;
    let lease = process.bus.duty_at(Maintenance::LEASE, process.library.id());
    let config =
        MaintenanceConfig { scrub_interval: Duration::ZERO, ..MaintenanceConfig::default() };
    let maintenance = Maintenance {
        library: process.library.clone(),
        demand: service.demand.clone(),
        lease,
        config,
        heartbeat: Heartbeat::detached(),
    };
    let stop = CancellationToken::new();
    let client = async {
        let asked = request(process, "BP001").await;
        let before = ready(process, &asked).await;
        let mut changes = process.library.changes();
        changes.mark_unchanged();
        flip(&before.artifact_ref);
        let maintaining = maintenance.run(stop.clone());
        let waiting = async {
            changes.changed().await.expect("the library stands");
            stop.cancel();
        };
        let (maintained, ()) = tokio::join!(maintaining, waiting);
        maintained.unwrap();
        let record = process.library.find(&"BP001".into()).await.unwrap().expect("it is back");
        assert_eq!(record.digest.to_hex(), before.checksum);
        process.library.verify(&record).await.unwrap();
    };
    service.beside(client).await;
    assert_eq!(service.quarantined(), 1);
}

#[tokio::test]
async fn a_request_for_what_is_not_compiled_yet_is_answered_when_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (desk, demand, handle) = Desk::open();
    let process = Process { desk, handle, ..Process::start(root.path()).await };
    let groups = [
        (Stream::KernelRequests, "weatherlight"),
        (Stream::KernelReady, "client"),
        (Stream::KernelErrors, "client"),
    ];
    process.bus.ensure_groups(&groups).await.unwrap();
    let prefetcher = Prefetcher {
        bus: process.bus.clone(),
        library: process.library.clone(),
        demand,
        variants: urza::Variants::none(),
        // However busy the machine is.
        config: PrefetchConfig { compiling_after: PATIENCE, ..PrefetchConfig::default() },
        metrics: urza::Metrics::register(&mut Registry::default()),
        heartbeat: Heartbeat::detached(),
    };
    let stop = CancellationToken::new();
    let client = async {
        let asked = request(&process, "BP009").await;
        let answer =
            tokio::time::timeout(PATIENCE, ready(&process, &asked)).await.expect("in time");
        assert_eq!(answer.blueprint_id, "BP009");
        let digest: Digest = answer.checksum.parse().unwrap();
        let kernel = Kernel::open(&answer.artifact_ref, &digest).unwrap();
        assert_eq!(kernel.manifest().blueprint, "BP009");
        assert_eq!(kernel.manifest().guard_digest.to_hex(), answer.guard_digest);
        assert!(0.0 < answer.prewarm_p50_ms && answer.prewarm_p50_ms <= answer.prewarm_p95_ms);

        for blueprint in ["BP045", "BP043", "nonsense"] {
            let asked = request(&process, blueprint).await;
            let (id, reason) =
                tokio::time::timeout(PATIENCE, refusal(&process)).await.expect("in time");
            assert_eq!(id, asked, "{blueprint}: {reason}");
        }
        stop.cancel();
    };
    let forge = process.forge(Config::default()).run(stop.clone());
    let (forged, served, ()) = tokio::join!(forge, prefetcher.run(stop.clone()), client);
    forged.unwrap();
    served.unwrap();
}
