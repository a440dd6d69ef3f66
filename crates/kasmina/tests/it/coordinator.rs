//! The coordinator and its consumers on the embedded bus: the library is played by the test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kasmina::{
    ErrorConsumer, FetchFailure, FetchOrder, Fetched, FetchedKernel, Metrics, Patience, Prefetch,
    PrefetchConfig, PrefetchDesk, ReadyConsumer, TrainerEnd,
};
use kernel::artifact::Kernel;
use kernel::guard::GuardSpec;
use kernel::{Digest, Execution, Fallback};
use leyline::Message;
use leyline::wire::{
    KernelArtifactError, KernelArtifactReady, KernelCatalogUpdate, KernelPrefetchRequest,
    MessagePriority,
};
use oona::{Bus, Consumer, ConsumerSpec, Heartbeat, LogChoice, Outgoing, Stream};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::rig::{keyring, linear_artifact};

/// One trainer with its coordinator, and the library's side of the bus.
pub struct Bench {
    pub bus: Bus,
    dir: TempDir,
    desk: PrefetchDesk,
    pub trainer: TrainerEnd,
    pub metrics: Metrics,
    requests: Consumer,
}

pub async fn bench(patience: Patience) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let config = oona::Config { log: LogChoice::Embedded { path }, ..oona::Config::default() };
    let bus = Bus::open(config, keyring(), oona::Metrics::detached()).await.unwrap();
    let requests = bus.consumer(ConsumerSpec::new(Stream::KernelRequests, "weatherlight"));
    let (desk, trainer) =
        PrefetchDesk::new(PrefetchConfig { patience, ..PrefetchConfig::default() });
    let metrics = Metrics::register(&mut Registry::default());
    Bench { bus, dir, desk, trainer, metrics, requests }
}

impl Bench {
    /// Runs the three workers beside `test`, then stops them; they must end by themselves.
    pub async fn run<T>(&mut self, test: impl AsyncFnOnce(&mut Self) -> T) -> T {
        let stop = CancellationToken::new();
        let (bus, metrics, heartbeat) = (&self.bus, &self.metrics, Heartbeat::detached());
        let prefetch = Prefetch {
            bus: bus.clone(),
            run: "run".into(),
            desk: self.desk.clone(),
            metrics: metrics.clone(),
            heartbeat: heartbeat.clone(),
        };
        let ready = ReadyConsumer {
            bus: bus.clone(),
            group: "trainer".to_owned(),
            replies: self.desk.replies(),
            metrics: metrics.clone(),
            heartbeat: heartbeat.clone(),
        };
        let errors = ErrorConsumer {
            bus: bus.clone(),
            group: "trainer".to_owned(),
            replies: self.desk.replies(),
            metrics: metrics.clone(),
            heartbeat,
        };
        let test = async {
            let outcome = test(self).await;
            stop.cancel();
            outcome
        };
        let all = async {
            tokio::join!(
                prefetch.run(stop.clone()),
                ready.run(stop.clone()),
                errors.run(stop.clone()),
                test
            )
        };
        let (one, two, three, outcome) =
            tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
        for ended in [one, two, three] {
            ended.unwrap();
        }
        outcome
    }

    pub fn order(&self, request: &str) {
        self.order_of(request, "BP009");
    }

    fn order_of(&self, request: &str, blueprint: &str) {
        let order = FetchOrder {
            request: request.into(),
            seed: "s1".into(),
            blueprint: blueprint.into(),
            shape: vec![32],
            parameters: [].into(),
        };
        self.trainer.orders.try_send(order).unwrap();
    }

    pub async fn asked(&mut self) -> KernelPrefetchRequest {
        self.asked_with_attributes().await.0
    }

    /// The next request, with the attributes of its envelope.
    pub async fn asked_with_attributes(
        &mut self,
    ) -> (KernelPrefetchRequest, BTreeMap<String, String>) {
        let delivery = self.requests.recv().await.unwrap();
        let Message::PrefetchRequest(request) = delivery.message.clone() else {
            panic!("{delivery:?}")
        };
        let trace = delivery.trace().expect("a request begins a trace");
        assert!(trace.is_sampled());
        let attributes = delivery.attributes.clone();
        delivery.ack().await.unwrap();
        (request, attributes)
    }

    fn stored(&self, bytes: &[u8]) -> (PathBuf, Digest) {
        let path = self.dir.path().join(Digest::of(bytes).to_hex());
        std::fs::write(&path, bytes).unwrap();
        (path, Digest::of(bytes))
    }

    /// The library's answer for an artifact, changed as wished.
    async fn answer_ready(
        &self,
        request: &str,
        bytes: &[u8],
        change: impl FnOnce(&mut KernelArtifactReady),
    ) {
        self.answer_ready_with(request, bytes, &[], change).await;
    }

    /// The same with attributes.
    pub async fn answer_ready_with(
        &self,
        request: &str,
        bytes: &[u8],
        attributes: &[(&str, &str)],
        change: impl FnOnce(&mut KernelArtifactReady),
    ) {
        let (path, digest) = self.stored(bytes);
        let guard_digest = Kernel::parse(bytes, &digest)
            .map(|kernel| kernel.manifest().guard_digest)
            .unwrap_or(digest);
        let mut ready = KernelArtifactReady {
            request_id: request.to_owned(),
            blueprint_id: "BP009".to_owned(),
            artifact_ref: path.to_string_lossy().into_owned(),
            checksum: digest.to_hex(),
            guard_digest: guard_digest.to_hex(),
            prewarm_p50_ms: 0.5,
            prewarm_p95_ms: 0.9,
        };
        change(&mut ready);
        let message = &ready.into();
        let outgoing = Outgoing {
            stream: Stream::KernelReady,
            priority: MessagePriority::Normal,
            source: "urza",
            message,
            traceparent: None,
        };
        assert!(self.bus.send_with(outgoing, attributes).await.unwrap().is_sent());
    }

    pub async fn answer_error(&self, request: &str, reason: &str) {
        let error = KernelArtifactError {
            request_id: request.to_owned(),
            blueprint_id: "BP009".to_owned(),
            reason: reason.to_owned(),
        };
        self.publish(Stream::KernelErrors, error.into()).await;
    }

    /// The library's answer for the linear kernel, with an attribute of the envelope.
    async fn answer_ready_beside(&self, request: &str, attribute: (&str, &str)) {
        let bytes = artifact();
        let (path, digest) = self.stored(&bytes);
        let kernel = Kernel::parse(&bytes, &digest).unwrap();
        let message = Message::from(KernelArtifactReady {
            request_id: request.to_owned(),
            blueprint_id: "BP009".to_owned(),
            artifact_ref: path.to_string_lossy().into_owned(),
            checksum: digest.to_hex(),
            guard_digest: kernel.manifest().guard_digest.to_hex(),
            prewarm_p50_ms: 0.5,
            prewarm_p95_ms: 0.9,
        });
        let outgoing = Outgoing {
            stream: Stream::KernelReady,
            priority: MessagePriority::Normal,
            source: "urza",
            message: &message,
            traceparent: None,
        };
        assert!(self.bus.send_with(outgoing, &[attribute]).await.unwrap().is_sent());
    }

    async fn publish(&self, stream: Stream, message: Message) {
        let priority = MessagePriority::Normal;
        assert!(self.bus.publish(stream, priority, "urza", &message).await.unwrap().is_sent());
    }

    pub async fn result(&mut self) -> Result<FetchedKernel, FetchFailure> {
        let Fetched { request, seed, result, .. } = self.trainer.results.recv().await.unwrap();
        assert_eq!((request.as_str(), seed.as_str()), ("r1", "s1"));
        result
    }

    /// Waits until the trainer's group has nothing left, that is, everything is acknowledged.
    pub async fn settled(&self, stream: Stream) {
        let settled = async {
            while self.bus.depth(stream, "trainer").await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
    }
}

pub fn artifact() -> Vec<u8> {
    linear_artifact("BP009", 32)
}

#[tokio::test]
async fn an_order_becomes_a_request_and_its_answer_a_kernel() {
    let mut bench = bench(Patience::default()).await;
    let kernel = bench
        .run(async |b| {
            b.order("r1");
            let request = b.asked().await;
            assert_eq!(
                (request.request_id.as_str(), request.blueprint_id.as_str()),
                ("r1", "BP009")
            );
            assert_eq!(request.training_run_id, "run");
            b.answer_ready("r1", &artifact(), |_| {}).await;
            let kernel = b.result().await.unwrap();
            b.settled(Stream::KernelReady).await;
            kernel
        })
        .await;
    assert_eq!((kernel.digest, kernel.prewarm_p50_ms), (Digest::of(artifact()), 0.5));
    assert_eq!(kernel.kernel.graph().outputs().len(), 1);
    assert_eq!(bench.metrics.foreign_total(), 0);
}

/// Weaknesses 19, 57 and 66: answers of others, catalogue updates and wrong answers were acted on.
#[tokio::test]
async fn only_the_answer_to_our_request_counts() {
    let mut bench = bench(Patience::default()).await;
    bench
        .run(async |b| {
            b.order("r1");
            b.asked().await;
            b.answer_ready("somebody else's", &artifact(), |_| {}).await;
            b.answer_error("somebody else's", "missing_artifact").await;
            b.answer_ready("r1", &artifact(), |ready| ready.blueprint_id = "BP043".to_owned())
                .await;
            let update = KernelCatalogUpdate {
                blueprint_id: "r1".to_owned(),
                artifact_ref: "BP009".to_owned(),
                ..KernelCatalogUpdate::default()
            };
            b.publish(Stream::KernelReady, update.into()).await;
            b.settled(Stream::KernelReady).await;
            b.settled(Stream::KernelErrors).await;
            assert!(b.trainer.results.try_recv().is_err());
            b.answer_ready("r1", &artifact(), |_| {}).await;
            b.result().await.unwrap();
            b.answer_ready("r1", &artifact(), |_| {}).await;
            b.settled(Stream::KernelReady).await;
            assert!(b.trainer.results.try_recv().is_err(), "the second answer is nobody's");
        })
        .await;
    assert_eq!(bench.metrics.foreign_total(), 3);
}

async fn check_refused(
    bytes: Vec<u8>,
    change: impl FnOnce(&mut KernelArtifactReady),
    expected: FetchFailure,
) {
    let mut bench = bench(Patience { attempts_max: 1, ..Patience::default() }).await;
    bench
        .run(async |b| {
            b.order("r1");
            b.asked().await;
            b.answer_ready("r1", &bytes, change).await;
            if expected == FetchFailure::IncompatibleSite {
                // Asked for once more, by the slot's own site; one that does not fit either is refused.
                let again = b.asked().await;
                b.answer_ready(&again.request_id, &bytes, |_| {}).await;
            }
            let failure = b.result().await.unwrap_err();
            match (&failure, &expected) {
                (FetchFailure::OpenFailed { .. }, FetchFailure::OpenFailed { .. }) => {}
                _ => assert_eq!(failure, expected),
            }
        })
        .await;
}

fn failed() -> FetchFailure {
    FetchFailure::OpenFailed { detail: String::new() }
}

#[tokio::test]
async fn what_is_not_what_was_promised_is_never_attached() {
    let unchanged = |_: &mut KernelArtifactReady| {};
    let other = Digest::of("another").to_hex();
    check_refused(artifact(), |r| r.checksum = other.clone(), FetchFailure::ChecksumMismatch).await;
    check_refused(artifact(), |r| r.guard_digest = other, FetchFailure::GuardMismatch).await;
    check_refused(linear_artifact("BP009", 16), unchanged, FetchFailure::IncompatibleSite).await;
    check_refused(linear_artifact("BP001", 32), unchanged, FetchFailure::BlueprintMismatch).await;
    check_refused(b"no artifact".to_vec(), unchanged, failed()).await;
    check_refused(artifact(), |r| r.checksum.clear(), failed()).await;
    check_refused(artifact(), |r| r.artifact_ref = "../kernel".to_owned(), failed()).await;
    let gone = |r: &mut KernelArtifactReady| r.artifact_ref = "/nowhere/kernel".to_owned();
    check_refused(artifact(), gone, FetchFailure::ArtifactNotFound).await;
}

/// The file of the linear kernel with another manifest.
fn forged(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let bytes = artifact();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, tensors) = rest.split_at(length);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let text = &mut header["__metadata__"]["esper.manifest"];
    let mut manifest: serde_json::Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    change(&mut manifest);
    *text = manifest.to_string().into();
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), tensors].concat()
}

/// A guard with one thing changed and the digest that belongs to it, in the manifest and in the answer.
async fn check_guard(change: impl FnOnce(&mut serde_json::Value)) {
    let mut digest = String::new();
    let bytes = forged(|manifest| {
        change(&mut manifest["guard"]);
        let guard: GuardSpec = serde_json::from_value(manifest["guard"].clone()).unwrap();
        digest = guard.digest().to_hex();
        manifest["guard_digest"] = digest.clone().into();
    });
    let announced = |ready: &mut KernelArtifactReady| ready.guard_digest = digest;
    check_refused(bytes, announced, FetchFailure::GuardMismatch).await;
}

/// The digest of the answer is the manifest's, that is the guard's, and the guard is that of the graph: each wrong by one
/// thing.
#[tokio::test]
async fn a_guard_that_is_wrong_by_one_thing_is_a_mismatch() {
    check_refused(forged(|_| {}), |ready| ready.checksum.clear(), failed()).await;
    check_guard(|guard| guard[0]["shape"][1] = 16.into()).await;
    check_guard(|guard| guard[0]["shape"][0] = 9.into()).await;
    check_guard(|guard| guard[0]["dtype"] = "float64".into()).await;
    check_guard(|guard| guard[0]["stride"][0] = 1.into()).await;
    check_guard(|guard| guard[0]["requires_grad"] = true.into()).await;
    check_guard(|guard| guard[0]["index"] = 1.into()).await;
    check_guard(|guard| *guard = serde_json::json!([])).await;
    let other = Digest::of("another guard").to_hex();
    let bytes = forged(|manifest| manifest["guard_digest"] = other.clone().into());
    let announced = |ready: &mut KernelArtifactReady| ready.guard_digest = other;
    check_refused(bytes, announced, FetchFailure::GuardMismatch).await;
}

/// What the forge found out about a plan comes with the kernel; an answer that says nothing is of a kernel whose plan is
/// its graph.
#[tokio::test]
async fn what_must_run_a_kernel_is_carried() {
    let carried = async |attribute: (&str, &str)| {
        let mut bench = bench(Patience::default()).await;
        let answered = bench.run(async |b| {
            b.order("r1");
            b.asked().await;
            b.answer_ready_beside("r1", attribute).await;
            b.result().await.unwrap().execution
        });
        answered.await
    };
    assert_eq!(carried(("kernel-other", "interpreter")).await, Execution::Plan);
    assert_eq!(carried(("kernel-execution", "plan")).await, Execution::Plan);
    let by = carried(("kernel-execution", "interpreter")).await;
    let Some(Fallback::Asked { reason }) = by.reason() else { panic!("{by:?}") };
    assert!(reason.contains("plan"), "{reason}");
}

/// A reference names a regular file by a plain absolute path, or it is refused; none makes it wait.
#[tokio::test]
async fn hostile_references_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    std::fs::write(&real, artifact()).unwrap();
    let (link, pipe) = (dir.path().join("link"), dir.path().join("pipe"));
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let directory = dir.path().display();
    for reference in [
        String::new(),
        "kernel".to_owned(),
        "./kernel".to_owned(),
        "../../etc/passwd".to_owned(),
        format!("{directory}/nowhere/../real"),
        format!("{directory}/../{}/real", dir.path().file_name().unwrap().display()),
        format!("{directory}/real\0"),
        "file:///etc/passwd".to_owned(),
        "http://127.0.0.1/kernels/x".to_owned(),
        link.display().to_string(),
        pipe.display().to_string(),
        directory.to_string(),
        "/dev/zero".to_owned(),
    ] {
        check_refused(artifact(), |ready| ready.artifact_ref = reference, failed()).await;
    }
}

fn quick() -> Patience {
    Patience {
        reply_timeout: Duration::from_millis(200),
        retry_delay: Duration::from_millis(10),
        ..Patience::default()
    }
}

/// Weakness 65, cascade 1: a lost answer left the seed waiting for ever.
#[tokio::test]
async fn a_request_without_an_answer_is_repeated_and_given_up() {
    let mut bench = bench(quick()).await;
    bench
        .run(async |b| {
            b.order("r1");
            for _ in 0..3 {
                assert_eq!(b.asked().await.request_id, "r1");
            }
            assert_eq!(b.result().await.unwrap_err(), FetchFailure::TimedOut);
        })
        .await;
}

/// Cascade 2: an outage of the library's store ended in a lost slot.
#[tokio::test]
async fn an_outage_of_the_library_is_waited_out() {
    let patience = Patience { retry_delay: Duration::from_millis(10), ..Patience::default() };
    let mut bench = bench(patience).await;
    bench
        .run(async |b| {
            b.order("r1");
            b.asked().await;
            b.answer_error("r1", "unavailable").await;
            b.asked().await;
            b.answer_error("r1", "checksum_mismatch").await;
            b.asked().await;
            b.answer_ready("r1", &artifact(), |_| {}).await;
            b.result().await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn what_cannot_get_better_fails_at_once() {
    let mut bench = bench(Patience::default()).await;
    bench
        .run(async |b| {
            b.order("r1");
            b.asked().await;
            b.answer_error("r1", "quarantined_blueprint").await;
            let failure = b.result().await.unwrap_err();
            assert_eq!(failure.to_string(), "quarantined_blueprint");
        })
        .await;
}

/// Cascade 4: a restart lost what was pending.
#[tokio::test]
async fn a_restart_of_the_workers_loses_nothing() {
    let mut bench = bench(Patience::default()).await;
    bench
        .run(async |b| {
            b.order("r1");
            b.asked().await;
        })
        .await;
    bench.answer_ready("r1", &artifact(), |_| {}).await;
    bench.run(async |b| b.result().await.unwrap()).await;
}

#[tokio::test]
async fn an_answer_that_nobody_handles_is_not_acknowledged() {
    let bench = bench(Patience::default()).await;
    let (replies, mut handed_over) = tokio::sync::mpsc::channel(1);
    let errors = ErrorConsumer {
        bus: bench.bus.clone(),
        group: "trainer".to_owned(),
        replies,
        metrics: bench.metrics.clone(),
        heartbeat: Heartbeat::detached(),
    };
    bench.bus.ensure_groups(&[(Stream::KernelErrors, "trainer")]).await.unwrap();
    bench.answer_error("r1", "missing_artifact").await;
    let stop = CancellationToken::new();
    let crash_twice = async {
        for _ in 0..2 {
            // Dropped without a word, as by a coordinator that crashed: it comes again.
            drop(handed_over.recv().await.unwrap());
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(errors.run(stop.clone()), crash_twice);
    ended.unwrap();
    assert_eq!(bench.bus.depth(Stream::KernelErrors, "trainer").await.unwrap(), 1);
}

#[tokio::test]
async fn a_stressor_is_tried_here_and_asked_for_nowhere() {
    let mut bench = bench(Patience::default()).await;
    let result = bench
        .run(async |b| {
            b.order_of("r1", "BP045");
            b.result().await
        })
        .await;
    let Err(FetchFailure::Quarantined(report)) = result else { panic!("{result:?}") };
    assert_eq!(report.verdict(), "not_finite");
    assert_eq!(bench.metrics.quarantined_total("not_finite"), 1);
    let depth = bench.bus.depth(Stream::KernelRequests, "urza").await.unwrap();
    assert_eq!(depth, 0, "the library was not asked");
}

/// A kernel of handling class quarantine, as the library would announce it, with a layer of this gain.
async fn tried(gain: f32) -> (Result<FetchedKernel, FetchFailure>, Metrics) {
    let mut bench = bench(Patience::default()).await;
    let mut graph = kernel::Graph::new();
    let input = graph.input("input", &[8, 32]).unwrap();
    let weight = graph.parameter("w", &[32], kernel::Init::ONES).unwrap();
    let weighted = graph.mul(input, weight).unwrap();
    let output = graph.scale(weighted, gain).unwrap();
    graph.output("output", output).unwrap();
    let params = graph.init_params(1);
    let site = serde_json::json!({ "vector": { "features": 32 } });
    let manifest =
        kernel::artifact::Manifest::new("BP038", [].into(), site, graph, &params, 1e-5).unwrap();
    let (bytes, _) = kernel::artifact::write_bytes(&manifest, &params).unwrap();
    let result = bench
        .run(async |b| {
            b.order_of("r1", "BP038");
            b.asked().await;
            b.answer_ready("r1", &bytes, |ready| ready.blueprint_id = "BP038".to_owned()).await;
            b.result().await
        })
        .await;
    (result, bench.metrics)
}

#[tokio::test]
async fn a_kernel_of_handling_class_quarantine_is_tried_before_it_is_handed_on() {
    let (sound, metrics) = tried(1.0).await;
    assert_eq!(sound.unwrap().blueprint.as_str(), "BP038");
    assert_eq!(metrics.quarantined_total("sound"), 1);

    let (caught, metrics) = tried(1e4).await;
    let Err(FetchFailure::Quarantined(report)) = caught else { panic!("{caught:?}") };
    assert_eq!(report.verdict(), "gradient_exploded");
    assert_eq!(metrics.quarantined_total("gradient_exploded"), 1);
}
