//! Versions, lineage, tags, pins, filters; many writers; what a row that cannot be read does.

use std::collections::BTreeSet;
use std::time::Duration;

use kernel::Digest;
use leyline::ids::BlueprintId;
use leyline::wire::BlueprintTier;
use prometheus_client::registry::Registry;
use serde_json::json;
use sqlx::Connection as _;
use urza::{
    CatalogueUrl, Config, Filter, Library, Metrics, NewArtifact, Page, Record, Role, StateFilter,
    StoreError,
};

use crate::support::{Fixture, artifact, fixture, on_both};

on_both!(
    versions_are_numbered_for_ever_and_know_what_they_replaced,
    tags_are_found_in_any_case_and_move_with_their_record,
    every_filter_finds_its_records_in_pages,
    writers_of_the_same_and_of_different_jobs_lose_nothing,
    two_processes_write_at_once_and_every_count_is_exact,
);

fn of_engine(blueprint: &str, engine: &str) -> NewArtifact {
    let mut new = artifact(blueprint, format!("{blueprint} by {engine}").as_bytes());
    new.job.engine = engine.to_owned();
    new
}

async fn versions_are_numbered_for_ever_and_know_what_they_replaced(f: Fixture) {
    let first = f.library.store(of_engine("BP001", "1")).await.unwrap();
    let second = f.library.store(of_engine("BP001", "2")).await.unwrap();
    let mut elsewhere = of_engine("BP001", "2");
    elsewhere.job.site = "vector[64]".to_owned();
    elsewhere.bytes = b"for another site".to_vec();
    elsewhere.role = Role::Variant;
    let elsewhere = f.library.store(elsewhere).await.unwrap();
    let other = f.library.store(of_engine("BP002", "1")).await.unwrap();
    let versions = [&first, &second, &elsewhere, &other].map(|record| record.version);
    assert_eq!(versions, [1, 2, 3, 1]);
    assert_eq!((&first.parent, &elsewhere.parent, &other.parent), (&None, &None, &None));
    let parent = second.parent.clone().unwrap();
    assert_eq!((parent.digest, parent.engine.as_str()), (first.digest, "1"));
    // Going back to an earlier engine offers the earlier version again: the same number, the same parent.
    let again = f.library.store(of_engine("BP001", "1")).await.unwrap();
    assert_eq!((again.version, &again.parent), (1, &None));
    assert_eq!(f.library.find(&"BP001".into()).await.unwrap(), Some(again.clone()));
    assert_eq!(f.library.children(&again).await.unwrap(), [second]);
    assert_eq!(f.library.by_id(again.id).await.unwrap(), Some(again));
    assert_eq!(f.library.by_id(first.id).await.unwrap(), None, "a row is never used twice");
}

async fn tags_are_found_in_any_case_and_move_with_their_record(f: Fixture) {
    let one = f.library.store(of_engine("BP001", "1")).await.unwrap();
    let two = f.library.store(of_engine("BP002", "1")).await.unwrap();
    f.library.add_tag(&one, "Grün").await.unwrap();
    f.library.add_tag(&one, "nightly").await.unwrap();
    f.library.add_tag(&two, "NIGHTLY").await.unwrap();
    let tagged = async |tag: &str| {
        let filter = Filter { tag: Some(tag.to_owned()), ..Filter::default() };
        let found = f.library.select(&filter, Page::FIRST).await.unwrap();
        found.into_iter().map(|record| record.digest).collect::<Vec<_>>()
    };
    assert_eq!(tagged("GRÜN").await, [one.digest]);
    assert_eq!(tagged("Nightly").await, [one.digest, two.digest]);
    assert_eq!(tagged("night").await, []);
    assert_eq!(tagged("not a tag").await, []);
    // One that differs in case takes its place, and storing again keeps them.
    f.library.add_tag(&one, "Nightly").await.unwrap();
    let again = f.library.store(of_engine("BP001", "1")).await.unwrap();
    let tags = f.library.tags(&[again.clone(), two.clone()]).await.unwrap();
    assert_eq!(tags[&again.id], ["Grün", "Nightly"]);
    assert_eq!(tags[&two.id], ["NIGHTLY"]);
    // By the record of before, too.
    assert!(f.library.remove_tag(&one, "nightLY").await.unwrap());
    assert!(!f.library.remove_tag(&one, "nightly").await.unwrap());
    assert_eq!(tagged("nightly").await, [two.digest]);
    for refused in ["", "two words", "a,b", &"x".repeat(65)] {
        let refused = f.library.add_tag(&one, refused).await;
        assert!(matches!(refused, Err(StoreError::Tag(_))), "{refused:?}");
    }
    let gone = Record { digest: Digest::of("never stored"), ..one };
    assert!(matches!(f.library.add_tag(&gone, "x").await, Err(StoreError::Forgotten)));
    assert!(matches!(f.library.pin(&gone).await, Err(StoreError::Forgotten)));
}

async fn every_filter_finds_its_records_in_pages(f: Fixture) {
    let mut stored = Vec::new();
    for n in 0..6 {
        let mut new =
            artifact(if n % 2 == 0 { "BP001" } else { "BP002" }, format!("{n}").as_bytes());
        new.job.site = format!("vector[{}]", 32 << (n / 3));
        new.job.parameters.insert("width".to_owned(), f64::from(n));
        new.tier = if n < 2 { BlueprintTier::Experimental } else { BlueprintTier::Safe };
        new.extras.insert("safety".to_owned(), json!({ "stage": n % 3 }));
        stored.push(f.library.store(new).await.unwrap());
    }
    let fault = urza::FetchError::NotFound { path: stored[5].path.clone() };
    std::fs::remove_file(&stored[5].path).unwrap();
    f.library.quarantine(&stored[5], &fault).await.unwrap();
    let found = async |filter: Filter| {
        let mut numbers = Vec::new();
        let mut page = Some(Page { after: None, limit: 2 });
        while let Some(wanted) = page {
            let records = f.library.select(&filter, wanted).await.unwrap();
            page = wanted.next(&records);
            numbers.extend(records.iter().map(|record| {
                stored.iter().position(|stored| stored.digest == record.digest).unwrap()
            }));
        }
        numbers
    };
    let all = Filter::default();
    assert_eq!(found(all.clone()).await, [0, 1, 2, 3, 4, 5]);
    let filter = Filter { blueprint: Some("BP002".into()), ..all.clone() };
    assert_eq!(found(filter).await, [1, 3, 5]);
    let filter = Filter { site: Some("vector[64]".to_owned()), ..all.clone() };
    assert_eq!(found(filter).await, [3, 4, 5]);
    let filter = Filter { tier: Some(BlueprintTier::Experimental), ..all.clone() };
    assert_eq!(found(filter).await, [0, 1]);
    let filter = Filter { stage: Some(2), ..all.clone() };
    assert_eq!(found(filter).await, [2, 5]);
    let filter = Filter { state: Some(StateFilter::Quarantined), ..all.clone() };
    assert_eq!(found(filter).await, [5]);
    let filter = Filter { engine: Some("2".to_owned()), ..all.clone() };
    assert!(found(filter).await.is_empty());
    let parameters = Some(stored[3].job.parameters.clone());
    assert_eq!(found(Filter { parameters, ..all.clone() }).await, [3]);
    let filter = Filter {
        blueprint: Some("BP001".into()),
        site: Some("vector[32]".to_owned()),
        tier: Some(BlueprintTier::Safe),
        state: Some(StateFilter::Active),
        ..all.clone()
    };
    assert_eq!(found(filter).await, [2]);
    for (n, record) in stored.iter().enumerate() {
        let digest = Some(record.digest.to_hex()[..16].to_ascii_uppercase());
        assert_eq!(found(Filter { digest, ..all.clone() }).await, [n]);
    }
}

/// Jobs that several write at once, and jobs of one writer each.
async fn write(library: &Library, writer: u32, rounds: u32) {
    for round in 0..rounds {
        library.store(of_engine("BP001", &format!("shared {round}"))).await.unwrap();
        let own = library.store(of_engine("BP002", &format!("{writer} {round}"))).await.unwrap();
        library.set_extra(&own, "difference", &json!(writer)).await.unwrap();
        library.add_tag(&own, &format!("writer-{writer}")).await.unwrap();
        // Everybody adds to the same record.
        let shared = library.store(of_engine("BP003", "1")).await.unwrap();
        library.set_extra(&shared, &format!("writer-{writer}"), &json!(round)).await.unwrap();
        let holder = format!("writer-{writer}");
        library.lease(&shared.digest, &holder, "test", Duration::from_secs(60)).await.unwrap();
    }
}

async fn counted(library: &Library, writers: u32, rounds: u32) {
    let of = async |blueprint: &str| {
        let filter = Filter {
            blueprint: Some(BlueprintId::from(blueprint.to_owned())),
            ..Filter::default()
        };
        library.select(&filter, Page { after: None, limit: 1000 }).await.unwrap()
    };
    let versions =
        |records: &[Record]| records.iter().map(|record| record.version).collect::<BTreeSet<u64>>();
    let shared = of("BP001").await;
    assert_eq!(shared.len() as u32, rounds, "one record for each job that all of them store");
    assert_eq!(versions(&shared), (1..=u64::from(rounds)).collect());
    let own = of("BP002").await;
    assert_eq!(own.len() as u32, writers * rounds);
    assert_eq!(versions(&own), (1..=u64::from(writers * rounds)).collect());
    assert!(own.iter().all(|record| record.extras.contains_key("difference")));
    let tags = library.tags(&own).await.unwrap();
    assert_eq!(tags.len() as u32, writers * rounds);
    let [one] = &of("BP003").await[..] else { panic!("one record for one job") };
    for writer in 0..writers {
        assert_eq!(one.extras[&format!("writer-{writer}")], json!(rounds - 1), "no update is lost");
    }
    assert_eq!(library.leases(Some(&one.digest)).await.unwrap().len() as u32, writers);
}

async fn writers_of_the_same_and_of_different_jobs_lose_nothing(f: Fixture) {
    const WRITERS: u32 = 6;
    const ROUNDS: u32 = 5;
    let mut config = f.config.clone();
    // A machine that is busy with other tests is no fault of the catalogue.
    config.busy_timeout = Duration::from_secs(60);
    config.query_timeout = Duration::from_secs(60);
    let mut libraries = Vec::new();
    for _ in 0..WRITERS {
        let metrics = Metrics::register(&mut Registry::default());
        libraries.push(Library::open(config.clone(), metrics).await.unwrap());
    }
    let writing = libraries.iter().zip(0..).map(|(library, writer)| write(library, writer, ROUNDS));
    futures_util::future::join_all(writing).await;
    counted(&f.library, WRITERS, ROUNDS).await;
}

const WRITER: &str = "URZA_TEST_WRITER";

async fn two_processes_write_at_once_and_every_count_is_exact(f: Fixture) {
    const ROUNDS: u32 = 5;
    let catalogue = match &f.config.catalogue {
        CatalogueUrl::Sqlite(path) => format!("sqlite:////{}", path.display()),
        CatalogueUrl::Postgres(_) => crate::postgres::url_of(&f.config),
    };
    let spawn = |writer: u32| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "catalogue::a_writer_of_another_process", "--nocapture"])
            .env(WRITER, format!("{writer} {ROUNDS} {} {catalogue}", f.dir.path().display()))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [spawn(0), spawn(1)];
    for child in children {
        let ended =
            tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    counted(&f.library, 2, ROUNDS).await;
}

/// Does nothing but in a process that the test above has started.
#[tokio::test]
async fn a_writer_of_another_process() {
    let Ok(told) = std::env::var(WRITER) else { return };
    let [writer, rounds, dir, catalogue] = told.split(' ').collect::<Vec<_>>()[..] else {
        panic!()
    };
    let config = Config {
        catalogue: CatalogueUrl::parse(catalogue).unwrap(),
        busy_timeout: Duration::from_secs(60),
        query_timeout: Duration::from_secs(60),
        ..Config::at(std::path::Path::new(dir))
    };
    let metrics = Metrics::register(&mut Registry::default());
    let library = Library::open(config, metrics).await.unwrap();
    write(&library, writer.parse().unwrap(), rounds.parse().unwrap()).await;
    library.close().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_goes_and_the_one_before_it_serves() {
    let f = fixture().await;
    let before = f.library.store(of_engine("BP001", "1")).await.unwrap();
    let broken = f.library.store(of_engine("BP001", "2")).await.unwrap();
    let path = f.dir.path().join("catalog.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("UPDATE records SET parameters = 'no JSON' WHERE digest = ?")
        .bind(broken.digest.to_hex())
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let reader = f.another_process().await;
    assert_eq!(reader.find(&"BP001".into()).await.unwrap().as_ref(), Some(&before));
    assert_eq!(reader.list(Page::FIRST).await.unwrap(), [before]);
}
