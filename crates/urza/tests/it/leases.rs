//! Leases that training runs have without anybody's doing: taken at the answer, renewed by asking again, over when the
//! run has gone.

use std::time::Duration;

use futures_util::future::join_all;
use prometheus_client::registry::Registry;
use sqlx::{Connection as _, Executor as _};
use urza::{
    CollectMode, Collected, Config, Demand, LeaseJudge, LeaseWatch, Library, Metrics, Orphans,
    Record, RemovalReason, Retention,
};

use crate::support::{Fixture, Service, artifact, fixture_with, on_both, service_on};

on_both!(
    a_ready_answer_is_a_lease_of_the_run,
    a_thousand_requests_are_one_write,
    a_running_trainer_keeps_its_kernel_until_its_beat_stands_still,
    what_is_asked_for_by_digest_is_that_artifact_or_an_error,
);

const PATIENCE: Duration = Duration::from_secs(60);

async fn service(fixture: Fixture) -> Service {
    service_on(fixture, |config| config).await
}

/// A library whose metrics can be read, in place of the fixture's.
async fn counted(mut f: Fixture) -> (Fixture, Registry) {
    let mut registry = Registry::default();
    f.metrics = Metrics::register(&mut registry);
    f.library = Library::open(f.config.clone(), f.metrics.clone()).await.unwrap();
    (f, registry)
}

fn count(registry: &Registry, name: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Who holds an artifact.
async fn holders(library: &Library, record: &Record) -> Vec<String> {
    let leases = library.leases(Some(&record.digest)).await.unwrap();
    leases.into_iter().map(|lease| lease.holder).collect()
}

/// Waits until these hold it.
async fn held_by(library: &Library, record: &Record, wanted: &[&str]) {
    let held = async {
        while holders(library, record).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap();
}

async fn store(library: &Library, blueprint: &str, engine: &str) -> Record {
    let mut new = artifact(blueprint, format!("{blueprint} {engine}").as_bytes());
    new.job.engine = engine.to_owned();
    library.store(new).await.unwrap()
}

async fn a_ready_answer_is_a_lease_of_the_run(f: Fixture) {
    let mut s = service(f).await;
    let record = store(&s.fixture.library, "BP001", "1").await;
    s.serve(Demand::nobody(), async |s| {
        s.ask_as("run-1", "r1", "BP001", &[]).await;
        let (ready, attributes) = s.ready_with_attributes().await;
        assert_eq!((ready.request_id.as_str(), &*attributes["kernel-lease-ms"]), ("r1", "3600000"));
        held_by(&s.fixture.library, &record, &["run-1"]).await;
        s.ask_as("run-2", "r2", "BP001", &[]).await;
        s.ready().await;
        held_by(&s.fixture.library, &record, &["run-1", "run-2"]).await;
        let long = "x".repeat(257);
        for run in ["", "two\nlines", long.as_str()] {
            s.ask_as(run, "nameless", "BP001", &[]).await;
            let (ready, attributes) = s.ready_with_attributes().await;
            assert_eq!(ready.request_id, "nameless");
            assert!(!attributes.contains_key("kernel-lease-ms"), "{run:?}");
        }
        s.ask_as("run-3", "r3", "BP099", &[]).await;
        s.error().await;
    })
    .await;
    // What was noted is written by the end of the worker at the latest.
    assert_eq!(holders(&s.fixture.library, &record).await, ["run-1", "run-2"]);
    let leases = s.fixture.library.leases(None).await.unwrap();
    assert_eq!(leases.len(), 2);
    assert_eq!(leases[0].purpose, "training run");
    assert_eq!(leases[0].ttl, Duration::from_secs(3600));
}

async fn a_thousand_requests_are_one_write(f: Fixture) {
    let (f, registry) = counted(f).await;
    let mut s = service(f).await;
    let record = store(&s.fixture.library, "BP001", "1").await;
    s.serve(Demand::nobody(), async |s| {
        // Not all in one step: some come when the lease stands, some while it is written.
        for hundred in 1..=10 {
            let ids: Vec<String> = (0..100).map(|n| format!("{hundred}/{n}")).collect();
            join_all(ids.iter().map(|id| s.ask(id, "BP001"))).await;
            while s.fixture.metric("urza.prefetch.hits") < f64::from(hundred) * 100.0 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    assert_eq!(s.fixture.metric("urza.prefetch.hits"), 1000.0);
    assert_eq!(holders(&s.fixture.library, &record).await, ["run"]);
    assert_eq!(count(&registry, "urza_prefetch_leases_written_total"), 1);
    assert_eq!(count(&registry, "urza_prefetch_leases_unwritten"), 0);
}

/// No room at all, and what was superseded goes at once.
fn greedy() -> Retention {
    Retention {
        quarantined: Some(Duration::ZERO),
        superseded: Some(Duration::ZERO),
        bytes_max: Some(0),
        idle_min: Duration::ZERO,
        orphan_age: Duration::ZERO,
        orphans: Orphans::All,
    }
}

async fn collect(library: &Library, judge: &mut LeaseJudge) -> Collected {
    // What was used in this very millisecond is not idle yet.
    let now = leyline::time::now_unix_ms();
    while leyline::time::now_unix_ms() <= now + 1 {
        tokio::task::yield_now().await;
    }
    library.collect(&greedy(), judge, CollectMode::Remove).await.unwrap()
}

async fn a_running_trainer_keeps_its_kernel_until_its_beat_stands_still(f: Fixture) {
    let (f, registry) = counted(f).await;
    let mut s = service(f).await;
    s.config.lease = Duration::from_secs(1);
    let library = s.fixture.another_process().await;
    let used = store(&library, "BP001", "1").await;
    let mut judge = LeaseJudge::Watching(LeaseWatch::default());
    s.serve(Demand::nobody(), async |s| {
        s.ask_as("run-1", "first", "BP001", &[]).await;
        s.ready().await;
        held_by(&library, &used, &["run-1"]).await;
        // Another has taken its place, and another two without a trainer come and go.
        store(&library, "BP001", "2").await;
        let unused = store(&library, "BP002", "1").await;
        store(&library, "BP002", "2").await;
        let gone = collect(&library, &mut judge).await.removals;
        assert_eq!(gone.len(), 1);
        assert_eq!((gone[0].digest, gone[0].reason), (unused.digest, RemovalReason::Superseded));
        let digest = used.digest.to_hex();
        let written = || count(&registry, "urza_prefetch_leases_written_total");
        // Longer than the lease lives, a quarter of that each: it is renewed by asking for that very artifact again.
        for renewal in 2..8 {
            while written() < renewal {
                s.ask_as("run-1", "again", "BP001", &[("kernel-digest", &*digest)]).await;
                let (ready, attributes) = s.ready_with_attributes().await;
                assert_eq!((&ready.checksum, &*attributes["kernel-lease-ms"]), (&digest, "1000"));
            }
            assert_eq!(collect(&library, &mut judge).await.removals, []);
        }
        library.verify(&used).await.unwrap();
    })
    .await;
    // The run has gone.
    let ended = async {
        loop {
            let collected = collect(&library, &mut judge).await;
            if collected.leases_ended > 0 {
                return collected;
            }
            assert_eq!(collected.removals, []);
        }
    };
    let collected = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(collected.removals[0].digest, used.digest);
    assert!(!used.path.exists());
}

async fn what_is_asked_for_by_digest_is_that_artifact_or_an_error(f: Fixture) {
    let mut s = service(f).await;
    let older = store(&s.fixture.library, "BP001", "1").await;
    let served = store(&s.fixture.library, "BP001", "2").await;
    let broken = store(&s.fixture.library, "BP002", "1").await;
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        for record in [&older, &served] {
            let digest = record.digest.to_hex();
            // The digest says all; a site beside it does not count.
            let by_digest = [("kernel-digest", &*digest), ("kernel-site", "vector[64]")];
            s.ask_with("r1", "BP001", &by_digest).await;
            assert_eq!(s.ready().await.checksum, digest);
            // It is no kernel of another blueprint.
            s.ask_with("r2", "BP002", &by_digest).await;
            assert_eq!(s.error().await.reason, "missing_artifact");
        }
        let nothing = kernel::Digest::of("nothing").to_hex();
        s.ask_with("r3", "BP001", &[("kernel-digest", &*nothing)]).await;
        assert_eq!(s.error().await.reason, "missing_artifact");
        s.ask_with("r4", "BP001", &[("kernel-digest", "3fa9")]).await;
        assert_eq!(s.error().await.reason, "incompatible");
        assert!(orders.try_recv().is_err(), "nobody builds an artifact by its digest");
        std::fs::remove_file(&broken.path).unwrap();
        let digest = broken.digest.to_hex();
        for request in ["r5", "r6"] {
            s.ask_with(request, "BP002", &[("kernel-digest", &*digest)]).await;
            assert_eq!(s.error().await.reason, "artifact_not_found");
        }
        orders.recv().await.unwrap();
        assert!(orders.try_recv().is_err(), "one rebuild is ordered");
    })
    .await;
    held_by(&s.fixture.library, &older, &["run"]).await;
    held_by(&s.fixture.library, &served, &["run"]).await;
    assert_eq!(holders(&s.fixture.library, &broken).await, [""; 0]);
}

/// What a writer of another process keeps waiting is no reason to keep an answer waiting.
#[tokio::test]
async fn a_lease_that_cannot_be_written_is_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { query_timeout: Duration::from_millis(200), ..Config::at(dir.path()) };
    let mut s = service(fixture_with(dir, config).await).await;
    let record = store(&s.fixture.library, "BP001", "1").await;
    let path = s.fixture.config.catalogue.path().unwrap().to_owned();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut writer = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    writer.execute("BEGIN IMMEDIATE").await.unwrap();
    s.serve(Demand::nobody(), async |s| {
        s.ask("r1", "BP001").await;
        let (_, attributes) = s.ready_with_attributes().await;
        assert!(attributes.contains_key("kernel-lease-ms"));
        assert_eq!(holders(&s.fixture.library, &record).await, [""; 0]);
        writer.execute("ROLLBACK").await.unwrap();
        held_by(&s.fixture.library, &record, &["run"]).await;
    })
    .await;
}
