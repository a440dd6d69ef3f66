//! The worker against a real library and bus, with a compiler that does what each test needs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use oona::{ConsumerSpec, LogChoice, Stream};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::time::timeout;
use urza::{BuildAnswer, Demand, Prewarm, WhyBuild};

use super::*;
use crate::compile::Compiled;
use crate::desk::{Handle, OrderError};
use crate::error::CompileError;
use crate::progress::Progress;

/// Far beyond what any test needs, so that a hang fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the stand-in compiler does with a blueprint, per attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Fine,
    Failing,
    Panicking,
    /// Goes on until it is told to stop.
    Hanging,
    /// Fails this often, then is fine.
    FailingFirst(usize),
}

struct Bench {
    config: Config,
    _dir: TempDir,
    library: Library,
    bus: Bus,
    desk: Desk,
    demand: Demand,
    handle: Handle,
    metrics: Metrics,
    moods: BTreeMap<&'static str, Mood>,
    attempts: Arc<Mutex<BTreeMap<String, usize>>>,
    cancelled: Arc<AtomicUsize>,
}

impl Bench {
    async fn new(moods: &[(&'static str, Mood)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = open_library(&dir).await;
        let bus = oona::Config {
            log: LogChoice::Embedded { path: dir.path().join("log.redb") },
            ..oona::Config::default()
        };
        let keyring = Keyring::new(&Secret::new("a secret of the tests, long enough"), None);
        let bus_metrics = oona::Metrics::register(&mut Registry::default());
        let bus = Bus::open(bus, keyring, bus_metrics).await.unwrap();
        bus.ensure_groups(&[(Stream::KernelReady, "test")]).await.unwrap();
        let (desk, demand, handle) = Desk::open();
        let config = Config { retry_delay: Duration::from_millis(1), ..Config::default() };
        Self {
            config,
            _dir: dir,
            library,
            bus,
            desk,
            demand,
            handle,
            metrics: Metrics::register(&mut Registry::default()),
            moods: moods.iter().copied().collect(),
            attempts: Arc::default(),
            cancelled: Arc::default(),
        }
    }

    fn forge(&self) -> Forge {
        Forge {
            config: self.config.clone(),
            library: self.library.clone(),
            bus: self.bus.clone(),
            desk: self.desk.clone(),
            metrics: self.metrics.clone(),
            heartbeat: Heartbeat::detached(),
        }
    }

    fn compiler(&self) -> Compiler {
        let (moods, attempts) = (self.moods.clone(), self.attempts.clone());
        let cancelled = self.cancelled.clone();
        Arc::new(move |job, _, _, cancel| {
            let id = job.blueprint().id().as_str();
            let attempt = {
                let mut attempts = attempts.lock().unwrap();
                let count = attempts.entry(id.to_owned()).or_default();
                *count += 1;
                *count
            };
            let failure = CompileError::NotFinite { value: "output".to_owned() };
            match moods.get(id).copied().unwrap_or(Mood::Fine) {
                Mood::Fine => Ok(compiled(job)),
                Mood::Failing => Err(failure),
                Mood::Panicking => panic!("{id} is poisoned"),
                Mood::Hanging => {
                    while !cancel.is_cancelled() {
                        std::thread::yield_now();
                    }
                    cancelled.fetch_add(1, Ordering::SeqCst);
                    Err(CompileError::Cancelled)
                }
                Mood::FailingFirst(times) if attempt <= times => Err(failure),
                Mood::FailingFirst(_) => Ok(compiled(job)),
            }
        })
    }

    /// Runs a forge over `ids` beside `work`, then stops it and waits for its end.
    async fn beside<F: Future>(&self, ids: &[&str], work: F) -> F::Output {
        let list = ids.iter().map(|id| karn::find(&(*id).into()).unwrap()).collect();
        let stop = CancellationToken::new();
        let forge = self.forge().run_with(stop.clone(), self.compiler(), list);
        let work = async {
            let output = timeout(PATIENCE, work).await.expect("the test ends in time");
            stop.cancel();
            output
        };
        let (ended, output) = tokio::join!(timeout(PATIENCE, forge), work);
        ended.expect("the forge stops in time").unwrap();
        output
    }

    async fn finished(&self) -> Progress {
        let mut progress = self.handle.progress();
        progress.wait_for(|progress| progress.finished).await.unwrap().clone()
    }

    fn attempts(&self, id: &str) -> usize {
        self.attempts.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    async fn demand(&self, id: &str) -> BuildAnswer {
        self.demand.order(&id.into(), WhyBuild::Missing).unwrap().await.unwrap()
    }

    fn point(&self, name: &str) -> f64 {
        let points = self.metrics.snapshot();
        points.iter().find(|point| point.name == name).unwrap().value
    }
}

async fn open_library(dir: &TempDir) -> Library {
    let metrics = urza::Metrics::register(&mut Registry::default());
    Library::open(urza::Config::at(dir.path()), metrics).await.unwrap()
}

fn compiled(job: &Job) -> Compiled {
    Compiled {
        bytes: format!("{:?}", job.key()).into_bytes(),
        guard_digest: kernel::Digest::of("guard"),
        guard_spec: "[]".to_owned(),
        guard_summary: "none".to_owned(),
        difference: 0.0,
        took: Duration::from_millis(5),
        prewarm: Prewarm::new("test", [1.0, 2.0, 3.0, 4.0]),
    }
}

fn is_built(answer: &BuildAnswer) -> bool {
    matches!(answer, BuildAnswer::Built(_))
}

#[tokio::test]
async fn the_catalogue_is_built_once_and_found_by_the_next_start() {
    let bench = Bench::new(&[]).await;
    let ids = ["BP001", "BP002", "BP003"];
    let first = bench.beside(&ids, bench.finished()).await;
    assert_eq!((first.total, first.done, first.found, first.failed), (3, 3, 0, 0));
    assert!(first.current.is_empty());

    let (desk, demand, handle) = Desk::open();
    let bench = Bench { desk, demand, handle, ..bench };
    let second = bench.beside(&ids, bench.finished()).await;
    assert_eq!((second.total, second.done, second.found), (3, 3, 3));
    assert_eq!(bench.attempts("BP002"), 1, "nothing is compiled twice");
    assert_eq!(bench.point("tezzeret.jobs.completed"), 6.0);
    assert_eq!(bench.point("tezzeret.compilation.total"), 3.0);
}

#[tokio::test]
async fn a_poisoned_blueprint_blocks_nobody_and_is_named() {
    let moods = [("BP002", Mood::Failing), ("BP003", Mood::Panicking)];
    let bench = Bench::new(&moods).await;
    let progress = bench.beside(&["BP001", "BP002", "BP003", "BP004"], bench.finished()).await;
    assert_eq!((progress.done, progress.failed), (2, 2));
    let failures: BTreeMap<_, _> = progress.failures.into_iter().collect();
    assert!(failures["BP002"].contains("not finite"), "{failures:?}");
    assert!(failures["BP003"].contains("BP003 is poisoned"), "{failures:?}");
    assert_eq!((bench.attempts("BP002"), bench.attempts("BP003")), (2, 2));
    assert_eq!(bench.point("tezzeret.compilation.failed_attempts"), 4.0);
    assert_eq!(bench.point("tezzeret.jobs.failed"), 2.0);
    assert_eq!(bench.point("tezzeret.breaker.open_total"), 0.0, "two are no epidemic");
}

#[tokio::test]
async fn a_failure_that_passes_is_tried_again() {
    let bench = Bench::new(&[("BP002", Mood::FailingFirst(1))]).await;
    let progress = bench.beside(&["BP002"], bench.finished()).await;
    assert_eq!((progress.done, progress.failed), (1, 0));
    assert_eq!(bench.point("tezzeret.jobs.retried"), 1.0);
}

#[tokio::test]
async fn a_hanging_compile_is_given_up_at_the_deadline_and_told_to_stop() {
    let mut bench = Bench::new(&[("BP002", Mood::Hanging)]).await;
    bench.config.deadline = Duration::from_secs(1);
    bench.config.attempts_max = 1;
    let progress = bench.beside(&["BP002", "BP003"], bench.finished()).await;
    assert_eq!((progress.done, progress.failed), (1, 1));
    assert!(progress.failures[0].1.contains("not done within 1s"), "{:?}", progress.failures);
    timeout(PATIENCE, async {
        while bench.cancelled.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the thread was told to stop");
}

#[tokio::test]
async fn an_epidemic_opens_the_breaker_and_a_probe_closes_it() {
    let first = Mood::FailingFirst(1);
    let moods = [("BP001", first), ("BP002", first), ("BP003", first)];
    let mut bench = Bench::new(&moods).await;
    bench.config.jobs_max = 1;
    bench.config.breaker_open = Duration::from_millis(50);
    // Long enough for all three first attempts to come before any second one.
    bench.config.retry_delay = Duration::from_millis(40);
    let ids = ["BP001", "BP002", "BP003", "BP004", "BP005"];
    let progress = bench.beside(&ids, bench.finished()).await;
    assert_eq!((progress.done, progress.failed), (5, 0));
    assert_eq!(bench.point("tezzeret.breaker.open_total"), 1.0);
    assert_eq!(bench.point("tezzeret.breaker.state"), 1.0);
    assert_eq!(bench.point("tezzeret.mode.conservative"), 0.0, "five successes are calm enough");
    let records = bench.library.list(urza::Page::FIRST).await.unwrap();
    assert_eq!(records.iter().filter(|record| record.strategy == "conservative").count(), 3);
}

#[tokio::test]
async fn the_prefetch_workers_orders_are_answered_by_what_became_of_them() {
    let bench = Bench::new(&[("BP009", Mood::Failing)]).await;
    let refused = |reason: &str| BuildAnswer::Refused { reason: reason.to_owned() };
    bench
        .beside(&[], async {
            assert!(is_built(&bench.demand("BP002").await));
            assert!(bench.library.find(&"BP002".into()).await.unwrap().is_some());
            assert_eq!(bench.demand("BP051").await, BuildAnswer::Unknown);
            assert_eq!(bench.demand("BP045").await, refused("quarantined"));
            assert_eq!(bench.demand("BP019").await, refused("not_graftable"));
            for _ in 0..2 {
                let answer = bench.demand("BP009").await;
                assert!(matches!(answer, BuildAnswer::Failed { .. }), "{answer:?}");
            }
            assert_eq!(bench.attempts("BP009"), 2, "a parked job is refused at once");
        })
        .await;
    assert_eq!(bench.point("tezzeret.breaker.consecutive_failures"), 1.0);
}

#[tokio::test]
async fn a_request_may_name_parameters_and_a_site() {
    let bench = Bench::new(&[]).await;
    let wide = |text: &str, depth: f64| BuildRequest {
        parameters: BTreeMap::from([("depth".to_owned(), depth)]),
        site: Some(text.to_owned()),
        ..BuildRequest::of("BP009".into(), WhyBuild::Missing)
    };
    let refused = BuildAnswer::Refused { reason: "incompatible".to_owned() };
    bench
        .beside(&[], async {
            let placed = bench.demand.place(wide("vector[64]", 4.0)).unwrap();
            let BuildAnswer::Built(record) = placed.answer.await.unwrap() else {
                panic!("it can be built")
            };
            assert_eq!((record.job.site.as_str(), record.role), ("vector[64]", Role::Variant));
            assert_eq!(record.job.parameters["depth"], 4.0);
            for (site, depth) in
                [("vector[0]", 4.0), ("vector[64]", 99.0), ("vector[64]", f64::NAN)]
            {
                let placed = bench.demand.place(wide(site, depth)).unwrap();
                assert_eq!(placed.answer.await.unwrap(), refused, "{site} {depth}");
            }
        })
        .await;
}

#[tokio::test]
async fn equal_orders_are_compiled_once_and_all_answered() {
    let bench = Bench::new(&[]).await;
    let block = karn::find(&"BP009".into()).unwrap();
    let deeper = [("depth", 4.0)].into_iter().collect();
    let job = Job::with(block, deeper, bench.config.site, &bench.config).unwrap();
    let digests = bench
        .beside(&[], async {
            let orders = (0..5).map(|_| bench.handle.order(job.clone()));
            let records = futures_util::future::join_all(orders).await;
            records.into_iter().map(|record| record.unwrap().digest).collect::<Vec<_>>()
        })
        .await;
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    assert_eq!(bench.attempts("BP009"), 1);
    assert_eq!(bench.library.find(&"BP009".into()).await.unwrap(), None, "a variant is no default");
    assert!(bench.library.find_job(&job.key()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_corrupt_artifact_is_compiled_again_when_ordered() {
    let bench = Bench::new(&[]).await;
    bench.beside(&["BP002"], bench.finished()).await;
    let record = bench.library.find(&"BP002".into()).await.unwrap().unwrap();
    std::fs::remove_file(&record.path).unwrap();
    std::fs::write(&record.path, b"something else").unwrap();
    let answer = bench.beside(&[], bench.demand("BP002")).await;
    assert!(is_built(&answer));
    assert_eq!(bench.attempts("BP002"), 2);
    let healed = bench.library.find(&"BP002".into()).await.unwrap().unwrap();
    assert_eq!(healed.digest, record.digest, "the same job gives the same bytes");
    bench.library.verify(&healed).await.unwrap();
}

#[tokio::test]
async fn another_site_makes_its_own_defaults_and_going_back_restores_the_old() {
    let mut bench = Bench::new(&[]).await;
    let mut digests = Vec::new();
    for features in [32, 64, 32] {
        bench.config.site = karn::Site::Vector { features };
        assert!(is_built(&bench.beside(&[], bench.demand("BP002")).await));
        digests.push(bench.library.find(&"BP002".into()).await.unwrap().unwrap().digest);
    }
    assert_eq!(digests[0], digests[2]);
    assert_ne!(digests[0], digests[1]);
}

#[tokio::test]
async fn a_catalogue_update_follows_the_durable_artifact() {
    let bench = Bench::new(&[]).await;
    let mut consumer = bench.bus.consumer(ConsumerSpec::new(Stream::KernelReady, "test"));
    let delivery = bench.beside(&["BP002"], consumer.recv()).await.unwrap();
    let Message::CatalogUpdate(update) = delivery.message.clone() else {
        panic!("{:?}", delivery.message)
    };
    delivery.ack().await.unwrap();
    let record = bench.library.find(&"BP002".into()).await.unwrap().unwrap();
    assert_eq!(update.blueprint_id, "BP002");
    assert_eq!(update.artifact_ref, record.path.to_str().unwrap());
    assert!(record.path.is_absolute() && record.path.exists());
    assert_eq!(update.checksum, record.digest.to_hex());
    assert_eq!(update.guard_digest, kernel::Digest::of("guard").to_hex());
    assert_eq!((update.compile_ms, update.prewarm_ms), (5.0, 2.5));
}

#[tokio::test]
async fn a_catalogue_update_goes_on_with_the_trace_of_the_request() {
    let bench = Bench::new(&[]).await;
    let mut consumer = bench.bus.consumer(ConsumerSpec::new(Stream::KernelReady, "test"));
    let asked = oona::TraceContext::begin();
    let ordered = bench.demand.order_within(&"BP002".into(), WhyBuild::Missing, Some(asked));
    let delivery = bench.beside(&[], consumer.recv()).await.unwrap();
    assert!(is_built(&ordered.unwrap().await.unwrap()));
    let told = delivery.trace().expect("the update belongs to the trace");
    assert_eq!(told.trace_id(), asked.trace_id());
    assert_ne!(told.span_id(), asked.span_id());
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn a_stopping_forge_leaves_nobody_waiting_and_its_desk_free() {
    let bench = Bench::new(&[("BP009", Mood::Hanging)]).await;
    let job = Job::of(karn::find(&"BP009".into()).unwrap(), &bench.config);
    let mut progress = bench.handle.progress();
    let order = bench.handle.order(job);
    let started =
        async { progress.wait_for(|now| !now.current.is_empty()).await.map(|_| ()).unwrap() };
    let work = bench.beside(&[], started);
    let (answer, ()) = tokio::join!(order, work);
    assert_eq!(answer, Err(OrderError::Stopped));
    assert_eq!(bench.cancelled.load(Ordering::SeqCst), 1);
    assert!(is_built(&bench.beside(&[], bench.demand("BP001")).await));
}

#[tokio::test]
async fn two_forges_at_one_desk_and_bad_settings_are_refused() {
    let bench = Bench::new(&[]).await;
    let second = bench
        .beside(&["BP001"], async {
            bench.finished().await;
            bench.forge().run(CancellationToken::new()).await
        })
        .await;
    assert!(matches!(second, Err(ForgeError::DeskTaken)));
    let mut forge = bench.forge();
    forge.config.jobs_max = 0;
    let error = forge.run(CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("jobs_max is 0"), "{error}");
}
