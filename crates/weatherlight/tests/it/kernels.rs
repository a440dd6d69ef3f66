//! A trainer that does not see the library's directory: its coordinator is told of a path that is not
//! on its machine and of a URL, and fetches from the service's endpoint through a proxy that breaks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kasmina::{
    FetchOrder, FetchedKernel, Patience, Prefetch, PrefetchConfig, PrefetchDesk, ReadyConsumer,
};
use kernel::artifact::{Kernel, Manifest, write_bytes};
use kernel::{Digest, Graph};
use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{BlueprintTier, KernelArtifactReady, MessagePriority};
use oona::{Bus, ConsumerSpec, Heartbeat, LogChoice, Outgoing, Stream};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use urza::fetch::FetcherConfig;
use urza::{Config, JobKey, Library, NewArtifact, Prewarm, Role};

use crate::proxy::{Fault, Proxy};

const TOKEN: &str = "a token of the tests, long enough";
const PATIENCE: Duration = Duration::from_secs(60);
/// Wide enough for a file of more than a megabyte.
const WIDTH: usize = 512;

/// The file of a linear kernel.
fn artifact() -> Vec<u8> {
    let mut graph = Graph::new();
    let input = graph.input("input", &[8, WIDTH]).unwrap();
    let output = graph.linear_layer(input, "w", WIDTH).unwrap();
    graph.output("output", output).unwrap();
    let params = graph.init_params(1);
    let site = serde_json::json!({ "vector": { "features": WIDTH } });
    let manifest = Manifest::new("BP009", [].into(), site, graph, &params, 1e-5).unwrap();
    write_bytes(&manifest, &params).unwrap().0
}

async fn library(directory: &Path, bytes: &[u8]) -> (Library, Digest) {
    let metrics = urza::Metrics::register(&mut Registry::default());
    let library = Library::open(Config::at(directory), metrics).await.unwrap();
    let new = NewArtifact {
        job: JobKey {
            blueprint: "BP009".into(),
            parameters: BTreeMap::new(),
            site: format!("vector[{WIDTH}]"),
            engine: "1".to_owned(),
        },
        role: Role::Default,
        bytes: bytes.to_vec(),
        guard_digest: Digest::of("guard"),
        guard_spec: "[]".to_owned(),
        guard_summary: String::new(),
        compile_ms: 1.0,
        prewarm: Prewarm::new("this machine", [1.0]),
        strategy: "standard".to_owned(),
        tier: BlueprintTier::Safe,
        extras: urza::Extras::default(),
    };
    let digest = library.store(new).await.unwrap().digest;
    (library, digest)
}

fn endpoint(listener: std::net::TcpListener, library: Library) -> nissa::Http {
    let mut registry = Registry::default();
    let metrics = nissa::Metrics::register(&mut registry);
    let config = nissa::HttpConfig {
        kernel_token: nissa::Token::new(TOKEN).unwrap().into(),
        ..nissa::HttpConfig::default()
    };
    nissa::Http {
        listener,
        config: Arc::new(config),
        health: watch::channel(nissa::Health::booting("1", "embedded")).1,
        board: nissa::channel(&nissa::IngestConfig::default()).1,
        bus: watch::channel(None).1,
        kernels: watch::channel(Some(library)).1,
        registry: Arc::new(registry),
        logs: nissa::LogTail::default(),
        control: nissa::WorkerControl::channel().0,
        reload: nissa::ReloadPort::channel().0,
        metrics,
        heartbeat: Heartbeat::detached(),
    }
}

/// Orders the kernel of a coordinator, is the library that answers with `ready` and `url`, and says
/// what the coordinator delivers.
async fn order(
    directory: &Path,
    fetcher: FetcherConfig,
    ready: KernelArtifactReady,
    url: &str,
) -> FetchedKernel {
    let log = LogChoice::Embedded { path: directory.join("log.redb") };
    let keyring = Keyring::new(&Secret::new("a secret of some length"), None);
    let config = oona::Config { log, ..oona::Config::default() };
    let bus = Bus::open(config, keyring, oona::Metrics::detached()).await.unwrap();
    let patience = Patience { attempts_max: 1, ..Patience::default() };
    let (desk, mut trainer) =
        PrefetchDesk::new(PrefetchConfig { patience, fetcher: Some(fetcher), trusted: None });
    let metrics = kasmina::Metrics::register(&mut Registry::default());
    let consumer = ReadyConsumer {
        bus: bus.clone(),
        group: "trainer".to_owned(),
        replies: desk.replies(),
        metrics: metrics.clone(),
        heartbeat: Heartbeat::detached(),
    };
    let coordinator = Prefetch {
        bus: bus.clone(),
        run: "run".into(),
        desk,
        metrics,
        heartbeat: Heartbeat::detached(),
    };
    let mut requests = bus.consumer(ConsumerSpec::new(Stream::KernelRequests, "weatherlight"));
    let stop = CancellationToken::new();
    let asking = async {
        let order = FetchOrder {
            request: "r1".into(),
            seed: "s1".into(),
            blueprint: "BP009".into(),
            shape: vec![WIDTH],
            parameters: Default::default(),
        };
        trainer.orders.try_send(order).unwrap();
        requests.recv().await.unwrap().ack().await.unwrap();
        let message = Message::PrefetchReady(ready);
        let outgoing = Outgoing {
            stream: Stream::KernelReady,
            priority: MessagePriority::Normal,
            source: "urza",
            message: &message,
            traceparent: None,
        };
        let sent = bus.send_with(outgoing, &[(urza::KERNEL_URL, url)]).await.unwrap();
        assert!(sent.is_sent());
        let fetched = trainer.results.recv().await.unwrap().result;
        stop.cancel();
        fetched
    };
    let all =
        async { tokio::join!(consumer.run(stop.clone()), coordinator.run(stop.clone()), asking) };
    let (read, coordinated, fetched) = tokio::time::timeout(PATIENCE, all).await.unwrap();
    read.unwrap();
    coordinated.unwrap();
    fetched.unwrap()
}

#[tokio::test]
async fn a_trainer_that_does_not_see_the_library_gets_its_kernel_over_a_connection_that_breaks() {
    let (service, trainer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = artifact();
    let (library, digest) = library(&service.path().join("library"), &bytes).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap());
    proxy.faults([Fault::CutAfter(300_000), Fault::CutAfter(300_000)]);
    let url = urza::kernel_url(&format!("http://{}", proxy.address), &digest);
    let ready = KernelArtifactReady {
        request_id: "r1".to_owned(),
        blueprint_id: "BP009".to_owned(),
        artifact_ref: "/on/another/machine/kernel.safetensors".to_owned(),
        checksum: digest.to_hex(),
        guard_digest: Kernel::parse(&bytes, &digest).unwrap().manifest().guard_digest.to_hex(),
        prewarm_p50_ms: 0.5,
        prewarm_p95_ms: 0.9,
    };
    let kept = trainer.path().join("kernels");
    let fetcher = FetcherConfig {
        token: Some(TOKEN.to_owned()),
        backoff: Duration::from_millis(10),
        ..FetcherConfig::at(kept.clone())
    };
    let stop = CancellationToken::new();
    let ordering = async {
        let fetched = order(trainer.path(), fetcher, ready, &url).await;
        stop.cancel();
        fetched
    };
    let http = endpoint(listener, library);
    let (served, fetched) = tokio::join!(http.run(stop.clone()), ordering);
    served.unwrap();
    assert_eq!(fetched.digest, digest);
    assert!(fetched.path.starts_with(kept.canonicalize().unwrap()), "{:?}", fetched.path);
    assert!(std::fs::read(&fetched.path).unwrap() == bytes);
    assert_eq!(fetched.kernel.manifest().blueprint, "BP009");
    assert_eq!(proxy.connections(), 3, "cut twice, gone on with twice");
    assert!(proxy.passed() < bytes.len() * 11 / 10, "{} bytes were sent", proxy.passed());
}
