//! The maintenance worker: what a scrub finds, what is cleared away, what is left alone.

use std::fs;
use std::time::Duration;

use oona::Heartbeat;
use tokio_util::sync::CancellationToken;
use urza::{
    BuildAnswer, Config, Demand, Maintenance, MaintenanceConfig, Page, RecordState, Scrubbed,
    WhyBuild,
};

use crate::servers::S3;
use crate::support::{Fixture, artifact, bus, count, fixture, fixture_with};

async fn maintenance(f: &Fixture, demand: Demand, config: MaintenanceConfig) -> Maintenance {
    let lease = bus(f.dir.path()).await.duty_at(Maintenance::LEASE, f.library.id());
    let heartbeat = Heartbeat::detached();
    Maintenance { library: f.library.clone(), demand, lease, config, heartbeat }
}

#[tokio::test]
async fn a_scrub_finds_what_verification_took_for_granted() {
    let f = fixture().await;
    let sound = f.library.store(artifact("BP001", b"sound")).await.unwrap();
    let rotten = f.library.store(artifact("BP002", b"rotten")).await.unwrap();
    let gone = f.library.store(artifact("BP003", b"gone")).await.unwrap();
    for record in [&sound, &rotten, &gone] {
        f.library.verify(record).await.unwrap();
    }
    fs::write(&rotten.path, b"ROTTEN").unwrap();
    fs::remove_file(&gone.path).unwrap();
    let (demand, mut orders) = Demand::channel();
    let worker = maintenance(&f, demand, MaintenanceConfig::default()).await;
    let found = worker.scrub(&CancellationToken::new()).await.unwrap();
    assert_eq!(found, Scrubbed { sound: 1, quarantined: 2, unreadable: 0 });
    for blueprint in ["BP002", "BP003"] {
        let order = orders.try_recv().unwrap();
        assert_eq!(
            (order.request.blueprint.as_str(), order.request.why),
            (blueprint, WhyBuild::Rebuild)
        );
    }
    assert!(sound.path.exists());
    let again = worker.scrub(&CancellationToken::new()).await.unwrap();
    assert_eq!(again, Scrubbed { sound: 1, ..Scrubbed::default() });
}

/// A builder that is away, or gives an order back, is asked again until it answers.
#[tokio::test]
async fn what_a_scrub_has_quarantined_is_ordered_until_it_is_answered() {
    let f = fixture().await;
    let record = f.library.store(artifact("BP001", b"rotten")).await.unwrap();
    fs::write(&record.path, b"ROTTEN").unwrap();
    let (demand, mut orders) = Demand::channel();
    // No room for another order, as while the forge is started again.
    while demand.order(&"BP009".into(), WhyBuild::Missing).is_some() {}
    let config =
        MaintenanceConfig { scrub_interval: Duration::ZERO, ..MaintenanceConfig::default() };
    let stop = CancellationToken::new();
    let working = async {
        while !matches!(
            f.library.list(Page::FIRST).await.unwrap()[0].state,
            RecordState::Quarantined { .. }
        ) {
            tokio::task::yield_now().await;
        }
        let mut dropped = 0;
        loop {
            let order = orders.recv().await.unwrap();
            if order.request.why == WhyBuild::Missing {
                continue;
            }
            assert_eq!(order.request.blueprint.as_str(), "BP001");
            assert_eq!(order.request.site.as_deref(), Some("vector[32]"));
            if dropped == 0 {
                dropped += 1;
                continue;
            }
            let rebuilt = f.library.store(artifact("BP001", b"rotten")).await.unwrap();
            assert_eq!(rebuilt.digest, record.digest);
            order.answer.send(BuildAnswer::Built(Box::new(rebuilt))).unwrap();
            break;
        }
        stop.cancel();
    };
    let worker = maintenance(&f, demand.clone(), config).await;
    let both = async { tokio::join!(worker.run(stop.clone()), working) };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    ended.unwrap();
    f.library.verify(&record).await.unwrap();
}

#[tokio::test]
async fn only_abandoned_files_are_cleared_away() {
    let f = fixture().await;
    let record = f.library.store(artifact("BP001", b"kept")).await.unwrap();
    let tmp = f.dir.path().join("artifacts/tmp");
    let (old, young) = (tmp.join("store-old"), tmp.join("store-young"));
    fs::write(&young, b"half an artif").unwrap();
    let abandoned = fs::File::create(&old).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    abandoned.set_modified(long_ago).unwrap();
    let config =
        MaintenanceConfig { tidy_interval: Duration::ZERO, ..MaintenanceConfig::default() };
    let stop = CancellationToken::new();
    let gone = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while old.exists() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (ended, ()) =
        tokio::join!(maintenance(&f, Demand::nobody(), config).await.run(stop.clone()), gone);
    ended.unwrap();
    assert_eq!(count(&tmp), 1);
    assert!(young.exists() && record.path.exists());
}

#[tokio::test]
async fn the_cache_of_a_bucket_keeps_what_is_under_lease() {
    let (dir, s3) = (tempfile::tempdir().unwrap(), S3::start());
    let config =
        Config { bucket: Some(s3.config()), artifact_cache_bytes_max: 1, ..Config::at(dir.path()) };
    let f = fixture_with(dir, config).await;
    let leased = f.library.store(artifact("BP001", b"leased")).await.unwrap();
    let free = f.library.store(artifact("BP002", b"free")).await.unwrap();
    for record in [&leased, &free] {
        let file = fs::File::options().write(true).open(&record.path).unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(3600);
        file.set_times(fs::FileTimes::new().set_accessed(at)).unwrap();
    }
    // Taken by whoever shares the catalogue, and not by this process.
    let minute = Duration::from_secs(60);
    let elsewhere = f.another_process().await;
    elsewhere.lease(&leased.digest, "run", "training run", minute).await.unwrap();
    let config =
        MaintenanceConfig { tidy_interval: Duration::ZERO, ..MaintenanceConfig::default() };
    let stop = CancellationToken::new();
    let gone = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while free.path.exists() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (ended, ()) =
        tokio::join!(maintenance(&f, Demand::nobody(), config).await.run(stop.clone()), gone);
    ended.unwrap();
    assert!(leased.path.exists());
    f.library.verify(&free).await.unwrap();
    assert!(free.path.exists(), "what went comes again");
}
