//! Store, find, verify, quarantine, and what a crash or another process leaves behind.

use std::fs;
use std::time::Duration;

use kernel::Digest;
use leyline::ids::BlueprintId;
use leyline::wire::BlueprintTier;
use prometheus_client::registry::Registry;
use serde_json::json;
use sqlx::Connection as _;
use urza::{
    Config, FetchError, Library, LibraryError, Measurement, Metrics, Mismatch, OpenError, Page,
    Prewarm, RecordState, Remedy, Role, StoreError,
};

use crate::support::{Fixture, artifact, count, fixture, on_both};

on_both!(
    what_is_stored_is_found_under_its_digest,
    the_newest_default_wins_and_variants_are_found_by_job,
    storing_again_keeps_one_record_and_joins_samples_of_the_same_machine,
    the_list_is_paged_from_the_store_not_from_the_cache,
    a_corrupt_artifact_is_kept_aside_and_healed_by_storing_again,
    a_sound_file_stored_meanwhile_is_not_quarantined,
    what_cannot_be_stored_leaves_nothing,
    a_store_that_does_not_answer_is_unavailable_and_memory_stands_in,
    another_process_shows_within_the_time_a_record_counts_as_fresh,
    a_store_wakes_whoever_waits,
    extras_stand_beside_a_record_and_nobody_loses_anothers,
    measurements_are_kept_by_digest_machine_and_engine,
);

fn id(text: &str) -> BlueprintId {
    text.into()
}

async fn what_is_stored_is_found_under_its_digest(f: Fixture) {
    let stored = f.library.store(artifact("BP001", b"one")).await.unwrap();
    let hex = Digest::of("one").to_hex();
    assert_eq!(stored.digest.to_hex(), hex);
    assert!(stored.path.ends_with(format!("{}/{hex}.safetensors", &hex[..2])), "{:?}", stored.path);
    assert!(stored.path.is_absolute());
    assert_eq!(fs::read(&stored.path).unwrap(), b"one");
    assert_eq!(count(&f.dir.path().join("artifacts/tmp")), 0);
    assert_eq!(f.library.find(&id("BP001")).await.unwrap(), Some(stored.clone()));
    assert_eq!(f.library.verify(&stored).await.unwrap(), stored.path);
    assert_eq!(f.library.find(&id("BP002")).await.unwrap(), None);
    let other = f.another_process().await;
    assert_eq!(other.find(&id("BP001")).await.unwrap(), Some(stored));
}

async fn the_newest_default_wins_and_variants_are_found_by_job(f: Fixture) {
    let first = f.library.store(artifact("BP001", b"first")).await.unwrap();
    let mut variant = artifact("BP001", b"variant");
    variant.job.parameters.insert("width".to_owned(), 0.7);
    variant.role = Role::Variant;
    let job = variant.job.clone();
    let variant = f.library.store(variant).await.unwrap();
    assert_eq!(f.library.find(&id("BP001")).await.unwrap().as_ref(), Some(&first));
    assert_eq!(f.library.find_job(&job).await.unwrap(), Some(variant));
    let mut newer = artifact("BP001", b"newer");
    newer.job.engine = "2".to_owned();
    let newer = f.library.store(newer).await.unwrap();
    assert_eq!(f.library.find(&id("BP001")).await.unwrap().unwrap().digest, newer.digest);
    assert_eq!(f.library.list(Page::FIRST).await.unwrap().len(), 3);
    assert!(first.path.exists(), "earlier artifacts stay");
}

async fn storing_again_keeps_one_record_and_joins_samples_of_the_same_machine(f: Fixture) {
    let first = f.library.store(artifact("BP001", b"same")).await.unwrap();
    let mut again = artifact("BP001", b"same");
    again.prewarm = Prewarm::new("this machine", (0..18).map(|n| f64::from(n) + 0.5));
    let again = f.library.store(again).await.unwrap();
    assert_eq!(again.created_at_ms, first.created_at_ms);
    assert_eq!(again.prewarm.samples_ms.len(), 20);
    assert_eq!(again.prewarm.samples_ms[..2], [3.0, 4.0]);
    assert_eq!(f.library.list(Page::FIRST).await.unwrap(), std::slice::from_ref(&again));
    let elsewhere = Prewarm::new("other machine", [9.0]);
    f.library.set_prewarm(&again, &elsewhere).await.unwrap();
    assert_eq!(f.library.find(&id("BP001")).await.unwrap().unwrap().prewarm, elsewhere);
}

/// Weakness 34: the listing came from the cache of 128.
async fn the_list_is_paged_from_the_store_not_from_the_cache(f: Fixture) {
    let mut config = f.config.clone();
    config.cache_len_max = 3;
    let library = Library::open(config, f.metrics.clone()).await.unwrap();
    for n in 0..7 {
        library
            .store(artifact(&format!("BP00{n}"), format!("bytes {n}").as_bytes()))
            .await
            .unwrap();
    }
    let mut page = Some(Page { after: None, limit: 3 });
    let mut seen = Vec::new();
    while let Some(wanted) = page {
        let records = library.list(wanted).await.unwrap();
        page = wanted.next(&records);
        seen.extend(records.into_iter().map(|record| record.job.blueprint.into_string()));
    }
    assert_eq!(seen, (0..7).map(|n| format!("BP00{n}")).collect::<Vec<_>>());
    assert!(f.metric("urza.library.cache_size") <= 3.0);
}

#[tokio::test]
async fn a_file_is_hashed_once_until_it_changes() {
    let f = fixture().await;
    let record = f.library.store(artifact("BP001", b"contents")).await.unwrap();
    f.library.verify(&record).await.unwrap();
    f.library.verify(&record).await.unwrap();
    fs::write(&record.path, b"CONTENTS").unwrap();
    // The same size: only hashing can tell, and the changed identity makes it hash.
    let fault = f.library.verify(&record).await.unwrap_err();
    assert_eq!(fault.remedy(), Remedy::Quarantine);
    assert!(matches!(fault, FetchError::Corrupt { found: Mismatch::Digest(_), .. }), "{fault}");
    fs::write(&record.path, b"longer contents").unwrap();
    let fault = f.library.verify(&record).await.unwrap_err();
    assert!(matches!(fault, FetchError::Corrupt { found: Mismatch::Size(15), .. }), "{fault}");
    fs::remove_file(&record.path).unwrap();
    let fault = f.library.verify(&record).await.unwrap_err();
    assert!(matches!(fault, FetchError::NotFound { .. }), "{fault}");
    assert_eq!(fault.remedy(), Remedy::Compile);
    std::os::unix::fs::symlink("/etc/passwd", &record.path).unwrap();
    let fault = f.library.verify(&record).await.unwrap_err();
    assert!(matches!(fault, FetchError::Corrupt { found: Mismatch::Kind, .. }), "{fault}");
}

async fn a_corrupt_artifact_is_kept_aside_and_healed_by_storing_again(f: Fixture) {
    let record = f.library.store(artifact("BP001", b"contents")).await.unwrap();
    fs::write(&record.path, b"CONTENTS").unwrap();
    let fault = f.library.verify(&record).await.unwrap_err();
    f.library.quarantine(&record, &fault).await.unwrap();
    assert_eq!(f.library.find(&id("BP001")).await.unwrap(), None);
    assert_eq!(f.quarantined(), 1);
    assert!(!record.path.exists());
    let listed = f.library.list(Page::FIRST).await.unwrap();
    assert!(matches!(listed[0].state, RecordState::Quarantined { .. }), "marked, not deleted");
    assert_eq!(f.metric("urza.library.integrity_failures"), 1.0);
    let healed = f.library.store(artifact("BP001", b"contents")).await.unwrap();
    assert_eq!(f.library.find(&id("BP001")).await.unwrap(), Some(healed.clone()));
    f.library.verify(&healed).await.unwrap();
}

/// Weakness 31, cascade 5: recompiling during a fetch made the reader delete the new file.
async fn a_sound_file_stored_meanwhile_is_not_quarantined(f: Fixture) {
    let record = f.library.store(artifact("BP001", b"contents")).await.unwrap();
    fs::write(&record.path, b"CONTENTS").unwrap();
    let fault = f.library.verify(&record).await.unwrap_err();
    let healed = f.library.store(artifact("BP001", b"contents")).await.unwrap();
    f.library.quarantine(&record, &fault).await.unwrap();
    assert_eq!(f.library.find(&id("BP001")).await.unwrap(), Some(healed.clone()));
    assert_eq!(f.library.verify(&healed).await.unwrap(), healed.path);
    assert_eq!(f.quarantined(), 0);
}

async fn what_cannot_be_stored_leaves_nothing(f: Fixture) {
    let mut unspecified = artifact("BP001", b"x");
    unspecified.tier = BlueprintTier::Unspecified;
    let refused = f.library.store(unspecified).await;
    assert!(matches!(refused, Err(StoreError::TierUnspecified)));
    let empty = f.library.store(artifact("BP001", b"")).await;
    assert!(matches!(empty, Err(StoreError::Size { found: 0, .. })));
    let mut not_a_number = artifact("BP001", b"x");
    not_a_number.job.parameters.insert("width".to_owned(), f64::INFINITY);
    assert!(matches!(f.library.store(not_a_number).await, Err(StoreError::Job(_))));
    assert_eq!(f.library.list(Page::FIRST).await.unwrap(), []);
}

/// Weakness 36: a slow or locked store looked like "not found".
async fn a_store_that_does_not_answer_is_unavailable_and_memory_stands_in(f: Fixture) {
    let mut config = f.config.clone();
    config.cache_fresh = Duration::ZERO;
    let library = Library::open(config, f.metrics.clone()).await.unwrap();
    let known = library.store(artifact("BP001", b"one")).await.unwrap();
    library.close().await;
    let unknown = library.find(&id("BP002")).await;
    assert!(matches!(unknown, Err(LibraryError::Unavailable(_))), "{unknown:?}");
    assert_eq!(library.find(&id("BP001")).await.unwrap(), Some(known));
    assert_eq!(f.metric("urza.library.cache_errors"), 1.0);
}

async fn another_process_shows_within_the_time_a_record_counts_as_fresh(f: Fixture) {
    let mut config = f.config.clone();
    config.cache_fresh = Duration::ZERO;
    let reader = Library::open(config, f.metrics.clone()).await.unwrap();
    let first = f.library.store(artifact("BP001", b"one")).await.unwrap();
    assert_eq!(reader.find(&id("BP001")).await.unwrap(), Some(first));
    let mut second = artifact("BP001", b"two");
    second.job.engine = "2".to_owned();
    let second = f.library.store(second).await.unwrap();
    assert_eq!(reader.find(&id("BP001")).await.unwrap(), Some(second));
}

/// Weakness 35: the TTL deleted files and rows.
#[tokio::test]
async fn the_ttl_expires_the_memory_only() {
    let f = fixture().await;
    let mut config = Config::at(f.dir.path());
    config.cache_ttl = Some(Duration::ZERO);
    let library = Library::open(config, f.metrics.clone()).await.unwrap();
    let record = library.store(artifact("BP001", b"one")).await.unwrap();
    assert_eq!(library.find(&id("BP001")).await.unwrap().as_ref(), Some(&record));
    assert_eq!(f.metric("urza.library.cache_expired"), 1.0);
    assert!(record.path.exists());
}

#[tokio::test]
async fn two_processes_open_a_new_catalogue_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let metrics = Metrics::register(&mut Registry::default());
        Library::open(Config::at(dir.path()), metrics)
    };
    let (one, two, three) = tokio::join!(open(), open(), open());
    one.unwrap().store(artifact("BP001", b"one")).await.unwrap();
    assert!(two.unwrap().find(&id("BP001")).await.unwrap().is_some());
    assert!(three.unwrap().find(&id("BP001")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_newer_catalogue_is_refused_untouched() {
    let f = fixture().await;
    f.library.store(artifact("BP001", b"one")).await.unwrap();
    let path = f.dir.path().join("catalog.db");
    let pool =
        sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(&path))
            .await
            .unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'from the future', TRUE, x'00', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let metrics = Metrics::register(&mut Registry::default());
    let refused = Library::open(Config::at(f.dir.path()), metrics).await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer { version: 99, .. }), "{refused}");
}

#[tokio::test]
async fn what_is_no_catalogue_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("catalog.db"), "this is no database, however long it may be")
        .unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let refused = Library::open(Config::at(dir.path()), metrics).await.unwrap_err();
    assert!(refused.to_string().contains("catalog.db"), "{refused}");
}

async fn a_store_wakes_whoever_waits(f: Fixture) {
    let mut changes = f.library.changes();
    let before = *changes.borrow_and_update();
    f.library.store(artifact("BP001", b"one")).await.unwrap();
    changes.changed().await.unwrap();
    assert!(*changes.borrow() > before);
}

/// Whatever is done to the catalogue's file, the library opens, keeps the damaged one, and takes the artifact again.
#[tokio::test]
async fn a_damaged_catalogue_is_set_aside_and_filled_again() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 3] = [
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("cut behind the header", |bytes| bytes.truncate(100)),
        ("its pages overwritten", |bytes| bytes[4096..].fill(0x5a)),
    ];
    for (name, damage) in cases {
        let fixture = fixture().await;
        let stored = fixture.library.store(artifact("BP001", b"one")).await.unwrap();
        fixture.library.close().await;
        let path = closed_catalogue(&fixture).await;
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();

        let library = fixture.another_process().await;
        assert_eq!(library.find(&"BP001".into()).await.unwrap(), None, "{name}");
        let again = library.store(artifact("BP001", b"one")).await.unwrap();
        assert_eq!(again.digest, stored.digest, "{name}");
        assert!(library.find(&"BP001".into()).await.unwrap().is_some(), "{name}");
        let aside: Vec<_> = std::fs::read_dir(fixture.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains("catalog.db.damaged-"))
            .collect();
        assert_eq!(aside.len(), 1, "{name}: {aside:?}");
        assert_eq!(std::fs::read(&aside[0]).unwrap(), bytes, "{name}: what was damaged is kept");
    }
}

#[tokio::test]
async fn two_processes_that_find_the_damage_at_once_make_one_new_catalogue() {
    let fixture = fixture().await;
    fixture.library.close().await;
    let path = closed_catalogue(&fixture).await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let (one, other) = tokio::join!(fixture.another_process(), fixture.another_process());
    one.store(artifact("BP001", b"one")).await.unwrap();
    assert!(
        other.find(&"BP001".into()).await.unwrap().is_some(),
        "both use the same new catalogue"
    );
}

/// The file of a catalogue that nobody has open. The last connection takes its journal away, which may be a moment after
/// `close` has returned; of two that close at the same time neither may think itself the last, so one more comes and goes.
async fn closed_catalogue(fixture: &Fixture) -> std::path::PathBuf {
    let path = fixture.dir.path().join("catalog.db");
    let journal = fixture.dir.path().join("catalog.db-wal");
    let gone = async {
        while journal.exists() {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
            let mut last = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::query("SELECT count(*) FROM records").fetch_one(&mut last).await.unwrap();
            last.close().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the catalogue is closed");
    path
}

async fn extras_stand_beside_a_record_and_nobody_loses_anothers(f: Fixture) {
    let mut new = artifact("BP001", b"one");
    new.extras.insert("safety".to_owned(), json!({ "risk": 0.25, "band": "low" }));
    let stored = f.library.store(new).await.unwrap();
    assert_eq!(stored.extras["safety"], json!({ "band": "low", "risk": 0.25 }));
    f.library.set_extra(&stored, "execution", &json!("plan")).await.unwrap();
    let other = f.another_process().await;
    other.set_extra(&stored, "difference", &json!(1e-7)).await.unwrap();
    // Stored again without a word about them: they stay.
    let mut again = artifact("BP001", b"one");
    again.extras.insert("execution".to_owned(), json!("interpreter"));
    let again = f.library.store(again).await.unwrap();
    assert_eq!(again.extras["execution"], json!("interpreter"));
    assert_eq!(again.extras["difference"], json!(1e-7));
    assert_eq!(again.extras["safety"]["band"], json!("low"));
    // By an older record of the same artifact, too.
    f.library.set_extra(&stored, "difference", &serde_json::Value::Null).await.unwrap();
    let found = f.library.find(&id("BP001")).await.unwrap().unwrap();
    assert_eq!(found.extras.keys().collect::<Vec<_>>(), ["execution", "safety"]);

    let refused = f.library.set_extra(&stored, "No Name", &json!(1)).await;
    assert!(matches!(refused, Err(StoreError::Extras(_))), "{refused:?}");
    let mut gone = stored.clone();
    gone.digest = Digest::of("never stored");
    let refused = f.library.set_extra(&gone, "safety", &json!(1)).await;
    assert!(matches!(refused, Err(StoreError::Forgotten)), "{refused:?}");
    let mut unnamed = artifact("BP002", b"two");
    unnamed.extras.insert(String::new(), json!(1));
    assert!(matches!(f.library.store(unnamed).await, Err(StoreError::Extras(_))));
}

async fn measurements_are_kept_by_digest_machine_and_engine(f: Fixture) {
    let digest = f.library.store(artifact("BP001", b"one")).await.unwrap().digest;
    let measured = Measurement {
        samples_ms: (1..=25).map(f64::from).chain([f64::NAN, 0.0]).collect(),
        algorithms: json!({ "3": "im2col", "1": "direct" }),
        measured_at_ms: 1_700_000_000_000,
    };
    f.library.set_measurement(&digest, "here", "engine-1", &measured).await.unwrap();
    let found = f.library.measurement(&digest, "here", "engine-1").await.unwrap().unwrap();
    assert_eq!(found.samples_ms, (6..=25).map(f64::from).collect::<Vec<_>>());
    assert_eq!(found.algorithms, measured.algorithms);
    assert_eq!(found.measured_at_ms, measured.measured_at_ms);
    for (machine, engine) in [("there", "engine-1"), ("here", "engine-2")] {
        assert_eq!(f.library.measurement(&digest, machine, engine).await.unwrap(), None);
    }
    let newer = Measurement { samples_ms: vec![0.5], ..Measurement::default() };
    f.library.set_measurement(&digest, "here", "engine-1", &newer).await.unwrap();
    assert_eq!(f.library.measurement(&digest, "here", "engine-1").await.unwrap(), Some(newer));
}
