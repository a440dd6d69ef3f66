//! A training run keeps its kernel in the library without anybody's doing.

use std::time::Duration;

use kernel::Digest;
use urza::{
    CollectMode, Config, LeaseJudge, Library, NewArtifact, Prewarm, Record, RemovalReason,
    Retention, Role,
};

use crate::bed::Bed;

const PATIENCE: Duration = Duration::from_secs(60);

async fn served(library: &Library, blueprint: &str) -> Record {
    library.find(&blueprint.into()).await.unwrap().unwrap()
}

/// Stores what takes a kernel's place, as a newer forge would.
async fn replace(library: &Library, record: &Record) {
    let mut job = record.job.clone();
    job.engine = "a newer one".to_owned();
    let new = NewArtifact {
        job,
        role: Role::Default,
        bytes: format!("in the place of {}", record.digest).into_bytes(),
        guard_digest: Digest::of("guard"),
        guard_spec: "[]".to_owned(),
        guard_summary: String::new(),
        compile_ms: 1.0,
        prewarm: Prewarm::new("this machine", [1.0]),
        strategy: "standard".to_owned(),
        tier: record.tier,
        extras: urza::Extras::default(),
    };
    library.store(new).await.unwrap();
}

#[tokio::test]
async fn a_kernel_of_a_running_trainer_survives_a_collection_that_wants_all_room() {
    let bed = Bed::new();
    let mut demo = bed.command(&["demo", "--task", "xor", "--no-compare", "--stay"]);
    let running = bed.start_until(&mut demo, "BP009  training");
    let metrics = urza::Metrics::register(&mut Default::default());
    let library = Library::open(Config::at(&bed.path().join("var/urza")), metrics).await.unwrap();
    let (used, unused) = (served(&library, "BP009").await, served(&library, "BP001").await);
    let leased = async {
        while library.leases(Some(&used.digest)).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, leased).await.unwrap();
    // Newer ones have taken the place of both, nothing has room, and what was used a moment ago counts as idle.
    for record in [&used, &unused] {
        replace(&library, record).await;
    }
    let retention = Retention {
        superseded: Some(Duration::ZERO),
        bytes_max: Some(0),
        idle_min: Duration::ZERO,
        ..Retention::default()
    };
    let mut judge = LeaseJudge::ByClock;
    let collected = library.collect(&retention, &mut judge, CollectMode::Remove).await.unwrap();
    let gone: Vec<_> = collected.removals.iter().map(|gone| (gone.digest, gone.reason)).collect();
    assert!(gone.contains(&(unused.digest, RemovalReason::Superseded)), "{gone:?}");
    assert!(gone.iter().all(|(digest, _)| *digest != used.digest), "{gone:?}");
    assert!(used.path.exists() && !unused.path.exists());
    library.close().await;

    // The command says who holds it, and removes as little.
    let collected = bed.run(&["kernels", "gc"]);
    assert_eq!(collected.status.code(), Some(0));
    let digest = used.digest.to_hex();
    let shown = bed.run(&["kernels", "show", &digest, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let [lease] = shown["leases"].as_array().unwrap().as_slice() else { panic!("{shown}") };
    let holder = lease["holder"].as_str().unwrap();
    assert!(holder.starts_with("demo-"), "{lease}");
    assert_eq!((&lease["purpose"], &lease["ttl_s"]), (&"training run".into(), &3600.0.into()));
    let (_, metrics) = bed.get("/metrics");
    assert!(metrics.contains("urza_prefetch_leases_written_total"), "{metrics}");
    drop(running);
}
