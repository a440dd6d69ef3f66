//! What leaves the library, in which order, and what never does.

use std::fs;
use std::time::{Duration, SystemTime};

use kernel::Digest;
use urza::{
    CollectMode, Collected, FetchError, LeaseJudge, LeaseWatch, Orphans, Page, Record,
    RemovalReason, Retention, StoreError,
};

use crate::support::{Fixture, artifact, on_both};

on_both!(
    what_nothing_keeps_goes_least_recently_used_first,
    what_was_superseded_or_quarantined_long_ago_goes,
    a_lease_keeps_until_it_stands_still,
    files_without_a_record_go_when_they_are_old_enough,
    two_records_of_one_file_keep_it_until_the_last_is_gone,
);

const MINUTE: Duration = Duration::from_secs(60);

fn keep_all() -> Retention {
    Retention {
        quarantined: None,
        superseded: None,
        bytes_max: None,
        idle_min: Duration::ZERO,
        orphan_age: Duration::ZERO,
        orphans: Orphans::Keep,
    }
}

async fn collect(f: &Fixture, retention: &Retention, mode: CollectMode) -> Collected {
    let mut judge = LeaseJudge::ByClock;
    // What was used in this very millisecond is not idle yet.
    let now = leyline::time::now_unix_ms();
    while leyline::time::now_unix_ms() <= now + 1 {
        tokio::task::yield_now().await;
    }
    f.library.collect(retention, &mut judge, mode).await.unwrap()
}

/// A later millisecond than any before.
async fn store(f: &Fixture, blueprint: &str, engine: &str, bytes: usize) -> Record {
    let now = leyline::time::now_unix_ms();
    while leyline::time::now_unix_ms() <= now {
        tokio::task::yield_now().await;
    }
    let text = format!("{blueprint} {engine} ").repeat(bytes);
    let mut new = artifact(blueprint, &text.as_bytes()[..bytes]);
    new.job.engine = engine.to_owned();
    f.library.store(new).await.unwrap()
}

fn gone(collected: &Collected) -> Vec<(RemovalReason, Digest)> {
    collected.removals.iter().map(|removal| (removal.reason, removal.digest)).collect()
}

async fn what_nothing_keeps_goes_least_recently_used_first(f: Fixture) {
    let oldest = store(&f, "BP001", "1", 100).await;
    let pinned = store(&f, "BP001", "2", 100).await;
    let leased = store(&f, "BP001", "3", 100).await;
    let used = store(&f, "BP001", "4", 100).await;
    let unused = store(&f, "BP001", "5", 100).await;
    let served = store(&f, "BP001", "6", 100).await;
    f.library.pin(&pinned).await.unwrap();
    f.library.lease(&leased.digest, "run-1", "seed 3", MINUTE).await.unwrap();
    store(&f, "BP002", "1", 100).await;
    f.library.verify(&used).await.unwrap();
    f.library.verify(&oldest).await.unwrap();
    let retention = Retention { bytes_max: Some(500), ..keep_all() };
    let budget = RemovalReason::Budget;
    let would = collect(&f, &retention, CollectMode::DryRun).await;
    assert!(unused.path.exists(), "a dry run removes nothing");
    assert_eq!(would.removals.len(), 2);
    let collected = collect(&f, &retention, CollectMode::Remove).await;
    assert_eq!(collected.bytes_before, 700);
    assert_eq!((collected.bytes_freed, collected.bytes_over), (200, 0));
    assert_eq!(gone(&collected)[0], (budget, unused.digest));
    assert_eq!(collected.removals.len(), 2);
    assert!(!unused.path.exists());
    // Nothing keeps these two; whatever is wanted, the others stay.
    let retention = Retention { bytes_max: Some(0), ..keep_all() };
    let collected = collect(&f, &retention, CollectMode::Remove).await;
    assert_eq!(collected.bytes_over, 400);
    for kept in [&pinned, &leased, &served] {
        f.library.verify(kept).await.unwrap();
    }
    let records = f.library.list(Page::FIRST).await.unwrap();
    assert_eq!(records.len(), 4);
    // Nobody uses a number twice, also not that of one that is gone.
    assert_eq!(store(&f, "BP001", "7", 10).await.version, 7);
    let refused = f.library.lease(&unused.digest, "run-1", "seed", MINUTE).await;
    assert!(matches!(refused, Err(StoreError::Forgotten)), "{refused:?}");
    f.library.unpin(&pinned).await.unwrap();
    f.library.release(Some(&leased.digest), "run-1").await.unwrap();
    let collected = collect(&f, &retention, CollectMode::Remove).await;
    let gone: Vec<Digest> = collected.removals.iter().map(|removal| removal.digest).collect();
    assert_eq!(gone, [pinned.digest, leased.digest, served.digest]);
}

async fn what_was_superseded_or_quarantined_long_ago_goes(f: Fixture) {
    let superseded = store(&f, "BP001", "1", 10).await;
    let newest = store(&f, "BP001", "2", 10).await;
    let corrupt = store(&f, "BP002", "1", 10).await;
    let fault = FetchError::NotFound { path: corrupt.path.clone() };
    fs::remove_file(&corrupt.path).unwrap();
    f.library.quarantine(&corrupt, &fault).await.unwrap();
    let day = Some(Duration::from_secs(86_400));
    let young = Retention { quarantined: day, superseded: day, ..keep_all() };
    assert_eq!(collect(&f, &young, CollectMode::Remove).await.removals, []);
    let at_once = Some(Duration::ZERO);
    let old = Retention { quarantined: at_once, superseded: at_once, ..keep_all() };
    let mut found = gone(&collect(&f, &old, CollectMode::Remove).await);
    found.sort();
    let wanted = [
        (RemovalReason::Quarantined, corrupt.digest),
        (RemovalReason::Superseded, superseded.digest),
    ];
    assert_eq!(found, wanted);
    assert_eq!(f.library.list(Page::FIRST).await.unwrap(), [newest]);
}

async fn a_lease_keeps_until_it_stands_still(f: Fixture) {
    let leased = store(&f, "BP001", "1", 10).await;
    store(&f, "BP001", "2", 10).await;
    let second = Duration::from_secs(1);
    f.library.lease(&leased.digest, "run-1", "seed 3", second).await.unwrap();
    f.library.lease(&leased.digest, "run-2", "seed 1", second).await.unwrap();
    assert_eq!(f.library.renew_leases("run-1").await.unwrap(), 1);
    let leases = f.library.leases(Some(&leased.digest)).await.unwrap();
    let seen: Vec<_> = leases.iter().map(|lease| (lease.holder.as_str(), lease.ttl)).collect();
    assert_eq!(seen, [("run-1", second), ("run-2", second)]);
    let retention = Retention { bytes_max: Some(0), ..keep_all() };
    let mut judge = LeaseJudge::Watching(LeaseWatch::default());
    let mut round =
        async || f.library.collect(&retention, &mut judge, CollectMode::Remove).await.unwrap();
    assert_eq!(round().await.removals, []);
    // Run 1 renews its lease until run 2's has stood still for its time; the artifact stays.
    let ended = async {
        loop {
            f.library.renew_leases("run-1").await.unwrap();
            let collected = round().await;
            assert_eq!(collected.removals, []);
            if collected.leases_ended > 0 {
                return collected.leases_ended;
            }
        }
    };
    assert_eq!(tokio::time::timeout(MINUTE, ended).await.unwrap(), 1);
    let left = f.library.leases(None).await.unwrap();
    assert_eq!(left.iter().map(|lease| &*lease.holder).collect::<Vec<_>>(), ["run-1"]);
    assert_eq!(f.library.release(None, "run-1").await.unwrap(), 1);
    assert_eq!(round().await.removals[0].digest, leased.digest);
}

async fn files_without_a_record_go_when_they_are_old_enough(f: Fixture) {
    let known = store(&f, "BP001", "1", 10).await;
    let file = |text: &str, age_s: u64| {
        let hex = Digest::of(text).to_hex();
        let directory = f.dir.path().join("artifacts").join(&hex[..2]);
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{hex}.safetensors"));
        fs::write(&path, text).unwrap();
        let written = SystemTime::now() - Duration::from_secs(age_s);
        fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        path
    };
    let (young, of_another, letter) = (
        file("young", 0),
        file("older than this catalogue", 86_400),
        f.dir.path().join("artifacts/letter"),
    );
    fs::write(&letter, "not ours").unwrap();
    let hour = Duration::from_secs(3600);
    let retention = Retention { orphans: Orphans::OfThisCatalogue, orphan_age: hour, ..keep_all() };
    assert_eq!(collect(&f, &retention, CollectMode::Remove).await.removals, []);
    let retention = Retention { orphans: Orphans::All, ..retention };
    let would = collect(&f, &retention, CollectMode::DryRun).await;
    assert_eq!(would.removals.len(), 1);
    assert!(of_another.exists());
    let collected = collect(&f, &retention, CollectMode::Remove).await;
    let wanted = (RemovalReason::Orphan, Digest::of("older than this catalogue"));
    assert_eq!(gone(&collected), [wanted]);
    assert!(!of_another.exists() && young.exists() && known.path.exists() && letter.exists());
}

async fn two_records_of_one_file_keep_it_until_the_last_is_gone(f: Fixture) {
    let mut first = artifact("BP001", b"the same bytes");
    first.job.engine = "1".to_owned();
    let first = f.library.store(first).await.unwrap();
    let mut second = artifact("BP002", b"the same bytes");
    second.job.engine = "1".to_owned();
    let second = f.library.store(second).await.unwrap();
    assert_eq!(first.path, second.path);
    store(&f, "BP001", "2", 10).await;
    let retention = Retention { bytes_max: Some(0), ..keep_all() };
    let collected = collect(&f, &retention, CollectMode::Remove).await;
    assert_eq!(gone(&collected), [(RemovalReason::Budget, first.digest)]);
    assert_eq!(collected.bytes_freed, 0, "the file has another record");
    assert!(second.path.exists());
    store(&f, "BP002", "2", 10).await;
    let collected = collect(&f, &retention, CollectMode::Remove).await;
    assert_eq!(gone(&collected), [(RemovalReason::Budget, second.digest)]);
    assert!(!second.path.exists());
}
