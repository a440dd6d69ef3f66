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
use urza::{BuildAnswer, BuildRequest, Demand, Prewarm, WhyBuild};

use super::*;
use crate::compile::Compiled;
use crate::desk::{Handle, OrderError};
use crate::error::CompileError;
use crate::progress::Progress;
use crate::queue::{Standing, Ticket};

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
    dir: TempDir,
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
        let config = Config {
            retry_delay: Duration::from_millis(1),
            calm_time: Duration::ZERO,
            ..Config::default()
        };
        Self {
            config,
            dir,
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
            bus: Some(self.bus.clone()),
            queue_dir: self.dir.path().join("forge/jobs"),
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
        let forge = self.forge().run_with(stop.clone(), self.compiler(), Duty::List(list));
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

/// What a restarted process has: everything on the disk, nothing else.
async fn restarted(bench: Bench) -> Bench {
    let (desk, demand, handle) = Desk::open();
    let metrics = Metrics::register(&mut Registry::default());
    Bench { desk, demand, handle, metrics, attempts: Arc::default(), ..bench }
}

impl Bench {
    /// Runs a forge until `work` has ended, then drops it in mid-work: what a kill leaves behind.
    async fn killed_after<F: Future>(&self, ids: &[&str], work: F) -> F::Output {
        let list = ids.iter().map(|id| karn::find(&(*id).into()).unwrap()).collect();
        let duty = Duty::List(list);
        let forge = self.forge().run_with(CancellationToken::new(), self.compiler(), duty);
        tokio::select! {
            ended = forge => panic!("nobody stopped it: {ended:?}"),
            output = timeout(PATIENCE, work) => output.expect("the test ends in time"),
        }
    }

    fn queue(&self) -> Queue {
        Queue::open(&self.dir.path().join("forge/jobs"), 256).unwrap()
    }

    fn tickets(&self) -> usize {
        self.queue().len().unwrap()
    }

    async fn until_settled(&self) {
        let settled = async {
            while self.tickets() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, settled).await.expect("every ticket is settled");
    }

    /// Catalogue updates that were published up to now, by blueprint.
    async fn told(&self, count: usize) -> BTreeMap<String, usize> {
        let mut consumer = self.bus.consumer(ConsumerSpec::new(Stream::KernelReady, "test"));
        let mut told = BTreeMap::new();
        for _ in 0..count {
            let delivery = timeout(PATIENCE, consumer.recv()).await.expect("it is told").unwrap();
            let Message::CatalogUpdate(update) = delivery.message.clone() else {
                panic!("{:?}", delivery.message)
            };
            *told.entry(update.blueprint_id).or_insert(0) += 1;
            delivery.ack().await.unwrap();
        }
        told
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
        execution: kernel::Execution::Plan,
        operators: BTreeMap::new(),
        left_out: Vec::new(),
        took: Duration::from_millis(5),
        prewarm: Prewarm::new(crate::machine(), [1.0, 2.0, 3.0, 4.0]),
        algorithms: serde_json::Value::Null,
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

#[tokio::test]
async fn an_order_that_was_queued_survives_a_kill_and_finished_work_is_not_repeated() {
    let mut bench = Bench::new(&[("BP003", Mood::Hanging)]).await;
    bench.config.jobs_max = 1;
    let placed = |bench: &Bench, id: &str| {
        bench.demand.place(BuildRequest::of(id.into(), WhyBuild::Missing)).unwrap()
    };
    bench
        .killed_after(&["BP001"], async {
            let done = placed(&bench, "BP002");
            assert!(is_built(&done.answer.await.unwrap()));
            let (hangs, waits) = (placed(&bench, "BP003"), placed(&bench, "BP004"));
            assert_eq!(hangs.queued.await, Ok(Queued::Durably));
            assert_eq!(waits.queued.await, Ok(Queued::Durably));
        })
        .await;
    let mut bench = restarted(bench).await;
    bench.moods.clear();
    let told = bench.beside(&["BP001"], async { bench.told(4).await }).await;
    let all: Vec<_> = told.keys().map(String::as_str).collect();
    assert_eq!(all, ["BP001", "BP002", "BP003", "BP004"]);
    assert_eq!((bench.attempts("BP002"), bench.attempts("BP003")), (0, 1));
    bench.until_settled().await;
}

#[tokio::test]
async fn what_was_given_up_stays_so_after_a_kill_and_the_others_go_on() {
    let bench = Bench::new(&[("BP002", Mood::Panicking)]).await;
    bench
        .killed_after(&["BP002"], async {
            bench.finished().await;
            // Its ticket is written beside the loop.
            let is_parked = |ticket: &Ticket| matches!(ticket.standing, Standing::Parked { .. });
            while !bench.queue().look(|_| false).unwrap().tickets.iter().any(is_parked) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    assert_eq!(bench.attempts("BP002"), 2);
    let bench = restarted(bench).await;
    let answer = async {
        let progress = bench.finished().await;
        assert_eq!((progress.done, progress.failed), (1, 1));
        assert!(progress.failures[0].1.contains("poisoned"), "{:?}", progress.failures);
        bench.demand("BP002").await
    };
    let answer = bench.beside(&["BP002", "BP004"], answer).await;
    assert!(matches!(answer, BuildAnswer::Failed { reason } if reason.contains("poisoned")));
    assert_eq!((bench.attempts("BP002"), bench.attempts("BP004")), (0, 1));
}

#[tokio::test]
async fn a_job_during_which_the_process_ended_again_and_again_is_given_up() {
    let bench = Bench::new(&[]).await;
    let jobs: Vec<Job> =
        ["BP002", "BP003"].map(|id| Job::of(karn::find(&id.into()).unwrap(), &bench.config)).into();
    let dir = bench.dir.path().join("forge/jobs");
    crate::detach(&dir, &jobs, &bench.config).unwrap();
    for (job, deaths) in jobs.iter().zip(["3", "2"]) {
        std::fs::write(dir.join(format!("{}.lock", job.key().digest().to_hex())), deaths).unwrap();
    }
    let progress = bench.beside(&["BP002", "BP003", "BP004"], bench.finished()).await;
    assert_eq!((progress.done, progress.failed), (2, 1));
    assert!(progress.failures[0].1.contains("3 times in a row"), "{:?}", progress.failures);
    assert_eq!((bench.attempts("BP002"), bench.attempts("BP003")), (0, 1));
}

#[tokio::test]
async fn a_crash_between_storing_and_telling_keeps_the_news_from_nobody() {
    let bench = Bench::new(&[]).await;
    let dir = bench.dir.path().join("forge/jobs");
    // A forge without a bus stores and cannot tell; to the queue that is the same as a crash in between.
    let alone = Forge { bus: None, ..bench.forge() };
    let stop = CancellationToken::new();
    let job = Job::of(karn::find(&"BP002".into()).unwrap(), &bench.config);
    let ordering = async {
        let brought = bench.handle.bring(job.clone()).await.unwrap();
        stop.cancel();
        brought
    };
    let work = alone.run_with(stop.clone(), bench.compiler(), Duty::OrdersOnly);
    let (ended, brought) = tokio::join!(work, timeout(PATIENCE, ordering));
    ended.unwrap();
    assert_eq!(brought.unwrap().how, How::Compiled);
    assert_eq!(bench.tickets(), 1);
    std::fs::write(dir.join("nonsense.json"), "{").unwrap();

    let bench = restarted(bench).await;
    let told = bench.beside(&["BP002", "BP004"], async { bench.told(2).await }).await;
    assert_eq!(told.values().copied().collect::<Vec<_>>(), [1, 1], "{told:?}");
    assert_eq!((bench.attempts("BP002"), bench.attempts("BP004")), (0, 1));
    assert_eq!(bench.metrics.set_aside.get(), 1, "no ticket, and in nobody's way");
    bench.until_settled().await;

    // Once told, it is not told again.
    let bench = restarted(bench).await;
    let told = bench.beside(&["BP002", "BP005"], async { bench.told(1).await }).await;
    assert_eq!(told.keys().collect::<Vec<_>>(), ["BP005"]);
}

#[tokio::test]
async fn two_forges_on_one_queue_never_compile_the_same_job() {
    let one = Bench::new(&[]).await;
    let ids: Vec<&str> =
        karn::catalogue().iter().take(18).map(|blueprint| blueprint.id().as_str()).collect();
    // Another process, as far as queue and library can tell: its own handles, desk and log.
    let mut two = Bench::new(&[]).await;
    two.library = open_library(&one.dir).await;
    let other = Forge { queue_dir: one.dir.path().join("forge/jobs"), ..two.forge() };
    let stop = CancellationToken::new();
    let list = ids.iter().map(|id| karn::find(&(*id).into()).unwrap()).collect();
    let second = other.run_with(stop.clone(), two.compiler(), Duty::List(list));
    let both = async {
        let done = (one.finished().await, two.finished().await);
        stop.cancel();
        done
    };
    let (ended, (first, other)) = tokio::join!(second, one.beside(&ids, both));
    ended.unwrap();
    assert_eq!((first.done, other.done), (18, 18));
    for id in ids {
        assert_eq!(one.attempts(id) + two.attempts(id), 1, "{id}");
    }
}

#[tokio::test]
async fn a_job_past_its_deadline_stops_computing() {
    let mut bench = Bench::new(&[]).await;
    bench.config.deadline = Duration::from_secs(1);
    bench.config.attempts_max = 1;
    let (ended, endings) = tokio::sync::mpsc::unbounded_channel();
    // The real compiler, which says how each of its calls ends.
    let compiler: Compiler = Arc::new(move |job, strategy, config, cancel| {
        let outcome = crate::compile(job, strategy, config, cancel);
        let _ = ended.send(outcome.as_ref().map(|_| ()).map_err(ToString::to_string));
        outcome
    });
    let mut endings = endings;
    // Minutes of work for the interpreter, some hundred milliseconds for one operator.
    let site = karn::Site::Sequence { length: 256, width: 768 };
    let block = karn::find(&"BP009".into()).unwrap();
    let job = Job::with(block, block.midpoints(), site, &bench.config).unwrap();
    let stop = CancellationToken::new();
    let forge = bench.forge().run_with(stop.clone(), compiler, Duty::OrdersOnly);
    let ordering = async {
        let error = bench.handle.order(job).await.unwrap_err();
        assert!(error.to_string().contains("not done within 1s"), "{error}");
        let ending = timeout(PATIENCE, endings.recv()).await.expect("the thread ends too");
        stop.cancel();
        ending.unwrap()
    };
    let (ran, ending) = tokio::join!(forge, ordering);
    ran.unwrap();
    let said = ending.expect_err("it was not finished, it was stopped");
    assert!(said.contains("stopped before it was done"), "{said}");
}

#[tokio::test]
async fn a_kernel_of_another_machine_is_timed_here_before_it_is_offered() {
    let bench = Bench::new(&[]).await;
    let stop = CancellationToken::new();
    let work = async {
        let job = Job::of(karn::find(&"BP002".into()).unwrap(), &bench.config);
        let record = bench.handle.order(job.clone()).await.unwrap();
        assert_eq!(record.prewarm.samples_ms.len(), crate::PREWARM_SAMPLES_MIN);
        let elsewhere = Prewarm::new("another machine", [500.0; 20]);
        bench.library.set_prewarm(&record, &elsewhere).await.unwrap();
        let known = bench.handle.order(job.clone()).await.unwrap();
        assert_eq!(known.prewarm, record.prewarm, "it was timed here before");
        assert_eq!(bench.metrics.remeasured.get(), 0);

        let never = urza::Measurement::default();
        let machine = crate::machine();
        let engine = crate::ENGINE;
        bench.library.set_measurement(&record.digest, &machine, engine, &never).await.unwrap();
        let timed = bench.handle.bring(job).await.unwrap();
        assert_eq!((timed.how, &timed.record.prewarm.machine), (How::Found, &machine));
        assert!(timed.record.prewarm.p95_ms() < 500.0);
        assert_eq!(bench.metrics.remeasured.get(), 1);
        let kept = bench.library.measurement(&record.digest, &machine, engine).await.unwrap();
        let kept = Prewarm::new(machine.as_str(), kept.unwrap().samples_ms);
        assert!((kept.p50_ms() - timed.record.prewarm.p50_ms()).abs() < 1e-9, "{kept:?}");
        let offered = bench.library.find(&"BP002".into()).await.unwrap().unwrap();
        assert_eq!(offered.prewarm.machine, machine);
        stop.cancel();
    };
    let compiler: Compiler = Arc::new(crate::compile);
    let forge = bench.forge().run_with(stop.clone(), compiler, Duty::OrdersOnly);
    let (ran, done) = tokio::join!(forge, timeout(PATIENCE, work));
    ran.unwrap();
    done.unwrap();
}

#[tokio::test]
async fn what_happens_is_told_as_the_contracts_events() {
    let first = Mood::FailingFirst(1);
    let mut bench = Bench::new(&[("BP001", first), ("BP002", first), ("BP003", first)]).await;
    bench.bus.ensure_groups(&[(Stream::Telemetry, "test")]).await.unwrap();
    bench.config.jobs_max = 1;
    bench.config.breaker_open = Duration::from_millis(500);
    bench.config.retry_delay = Duration::from_millis(40);
    bench.beside(&["BP001", "BP002", "BP003"], bench.finished()).await;
    let mut consumer = bench.bus.consumer(ConsumerSpec::new(Stream::Telemetry, "test"));
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    while seen.get("tezzeret.compile_succeeded") != Some(&3) {
        let delivery = timeout(PATIENCE, consumer.recv()).await.expect("it is told").unwrap();
        let Message::Telemetry(packet) = delivery.message.clone() else {
            panic!("{:?}", delivery.message)
        };
        assert_eq!(packet.source_subsystem, "tezzeret");
        for event in packet.events {
            *seen.entry(event.description).or_default() += 1;
        }
        delivery.ack().await.unwrap();
    }
    assert_eq!(
        (seen["tezzeret.compile_failed"], seen["tezzeret.breaker_open"]),
        (3, 1),
        "{seen:?}"
    );
    assert!(seen["tezzeret.breaker_open_skip"] >= 1, "{seen:?}");
}
