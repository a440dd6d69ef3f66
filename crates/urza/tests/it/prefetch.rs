//! The prefetch worker on the embedded bus: the decision table, builds that are waited for, and
//! what happens when the store, the bus or the builder fails.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use leyline::Message;
use leyline::ids::BlueprintId;
use leyline::wire::{KernelArtifactReady, KernelCatalogUpdate, MessagePriority};
use oona::{ConsumerSpec, EntryId, Stream, TraceContext};
use prometheus_client::registry::Registry;
use urza::{
    BuildAnswer, Config, Demand, JobKey, Library, Metrics, Page, RecordState, Role, Unfit,
    Variants, WhyBuild,
};

use crate::support::{artifact, service, service_with};

#[tokio::test]
async fn a_stored_kernel_is_ready_with_digest_guard_and_percentiles() {
    let mut s = service().await;
    let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    let ready = s
        .serve(Demand::nobody(), async |s| {
            s.ask("r1", "BP001").await;
            s.ready().await
        })
        .await;
    let expected = KernelArtifactReady {
        request_id: "r1".to_owned(),
        blueprint_id: "BP001".to_owned(),
        artifact_ref: record.path.to_string_lossy().into_owned(),
        checksum: record.digest.to_hex(),
        guard_digest: record.guard_digest.to_hex(),
        prewarm_p50_ms: 2.5,
        prewarm_p95_ms: 3.85,
    };
    assert_eq!(ready, expected);
    assert_eq!(s.fixture.metric("urza.prefetch.hits"), 1.0);
    assert_eq!(s.bus.depth(Stream::KernelRequests, "weatherlight").await.unwrap(), 0);
}

#[tokio::test]
async fn an_unknown_blueprint_is_missing_at_once() {
    let mut s = service().await;
    let error = s
        .serve(Demand::nobody(), async |s| {
            s.ask("r1", "BP099").await;
            s.error().await
        })
        .await;
    assert_eq!((error.request_id.as_str(), error.blueprint_id.as_str()), ("r1", "BP099"));
    assert_eq!(error.reason, "missing_artifact");
    assert_eq!(s.fixture.metric("urza.prefetch.misses"), 1.0);
}

/// Rows 2 and 3 of the decision table; weakness 31: nothing is deleted, and a rebuild is ordered.
/// What is not rebuilt in time is answered with the reason, and with when to ask again.
async fn check_broken(break_it: fn(&std::path::Path), reason: &str, quarantined: usize) {
    let mut s = service().await;
    s.config.compiling_after = Duration::from_millis(300);
    let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    break_it(&record.path);
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP001").await;
        let (error, attributes) = s.error_with_attributes().await;
        assert_eq!(error.reason, reason);
        let retry_after_ms: u64 = attributes["retry-after-ms"].parse().unwrap();
        assert!((250..=30_000).contains(&retry_after_ms), "{retry_after_ms}");
        let order = orders.recv().await.unwrap();
        assert_eq!(
            (order.request.blueprint.as_str(), order.request.why),
            ("BP001", WhyBuild::Rebuild)
        );
        s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
        s.ask("r2", "BP001").await;
        assert_eq!(s.ready().await.request_id, "r2");
    })
    .await;
    assert_eq!(s.fixture.quarantined(), quarantined);
    assert_eq!(s.fixture.metric("urza.prefetch.errors"), 1.0);
}

#[tokio::test]
async fn a_file_that_is_gone_is_not_found_and_rebuilt() {
    check_broken(|path| fs::remove_file(path).unwrap(), "artifact_not_found", 0).await;
}

#[tokio::test]
async fn a_file_that_changed_is_a_mismatch_and_rebuilt() {
    check_broken(|path| fs::write(path, b"KERNEL").unwrap(), "checksum_mismatch", 1).await;
}

fn remove(path: &std::path::Path) {
    fs::remove_file(path).unwrap();
}

fn corrupt(path: &std::path::Path) {
    fs::write(path, b"KERNEL").unwrap();
}

/// Whoever finds the damage waits like everybody after: all are answered when the artifact is back.
#[tokio::test]
async fn requests_for_a_broken_artifact_are_answered_when_it_is_back() {
    for break_it in [remove, corrupt] {
        let mut s = service().await;
        let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
        break_it(&record.path);
        let (demand, mut orders) = Demand::channel();
        s.serve(demand, async |s| {
            s.ask("first", "BP001").await;
            let order = orders.recv().await.unwrap();
            assert_eq!(order.request.why, WhyBuild::Rebuild);
            assert!(!record.path.exists(), "nobody is handed what is corrupt");
            s.ask("second", "BP001").await;
            let rebuilt = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
            drop(order.answer.send(BuildAnswer::Built(Box::new(rebuilt))));
            let mut answered = Vec::new();
            for _ in 0..2 {
                let ready = s.ready().await;
                assert_eq!(ready.checksum, record.digest.to_hex());
                answered.push(ready.request_id);
            }
            answered.sort();
            assert_eq!(answered, ["first", "second"]);
            assert!(orders.try_recv().is_err(), "one order for both");
        })
        .await;
        assert_eq!(s.fixture.metric("urza.prefetch.errors"), 0.0);
    }
}

/// The reason is told by what was found, whatever keeps the rebuild away; a deadline of one's own goes first.
#[tokio::test]
async fn a_rebuild_that_does_not_happen_is_answered_with_what_was_found() {
    let failed = || BuildAnswer::Failed { reason: "no room".to_owned() };
    let refused = || BuildAnswer::Refused { reason: "incompatible".to_owned() };
    let answers: [fn() -> BuildAnswer; 3] = [failed, refused, || BuildAnswer::Unknown];
    for answer in answers {
        let mut s = service().await;
        let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
        corrupt(&record.path);
        let (demand, mut orders) = Demand::channel();
        s.serve(demand, async |s| {
            s.ask("r1", "BP001").await;
            drop(orders.recv().await.unwrap().answer.send(answer()));
            assert_eq!(s.error().await.reason, "checksum_mismatch");
        })
        .await;
    }
    let mut s = service().await;
    let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    remove(&record.path);
    s.serve(Demand::nobody(), async |s| {
        s.ask("r1", "BP001").await;
        assert_eq!(s.error().await.reason, "artifact_not_found");
    })
    .await;
    let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    corrupt(&record.path);
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask_with("r2", "BP001", &[("kernel-deadline-ms", "300")]).await;
        let _unanswered = orders.recv().await.unwrap();
        assert_eq!(s.error().await.reason, "deadline_exceeded");
    })
    .await;
}

/// A rebuild that comes out broken is no reason to build for ever.
#[tokio::test]
async fn a_rebuild_that_is_broken_as_well_is_said_so() {
    let mut s = service().await;
    let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    corrupt(&record.path);
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP001").await;
        // Of a process that shares the catalogue, and by mistake not the directory.
        let artifact_dir = s.fixture.dir.path().join("elsewhere");
        let config = Config { artifact_dir, ..s.fixture.config.clone() };
        let elsewhere = Library::open(config, s.fixture.metrics.clone()).await.unwrap();
        let rebuilt = elsewhere.store(artifact("BP001", b"kernel")).await.unwrap();
        for _ in 0..3 {
            let order = orders.recv().await.unwrap();
            drop(order.answer.send(BuildAnswer::Built(Box::new(rebuilt.clone()))));
        }
        assert_eq!(s.error().await.reason, "checksum_mismatch");
        assert!(orders.try_recv().is_err());
    })
    .await;
}

/// As with a request that comes between the store of an artifact and the end of its build: the order joins a build that
/// brings nothing any more, and another is due.
#[tokio::test]
async fn an_order_that_joined_an_earlier_build_is_given_again() {
    let mut s = service().await;
    let record = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    corrupt(&record.path);
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP001").await;
        let joined = orders.recv().await.unwrap();
        drop(joined.answer.send(BuildAnswer::Built(Box::new(record.clone()))));
        let order = orders.recv().await.unwrap();
        assert_eq!(order.request.why, WhyBuild::Rebuild);
        let rebuilt = s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
        drop(order.answer.send(BuildAnswer::Built(Box::new(rebuilt))));
        assert_eq!(s.ready().await.checksum, record.digest.to_hex());
    })
    .await;
}

#[tokio::test]
async fn a_request_waits_for_its_build_and_blocks_nobody() {
    let mut s = service().await;
    s.fixture.library.store(artifact("BP001", b"here")).await.unwrap();
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("slow 1", "BP002").await;
        s.ask("slow 2", "BP002").await;
        let order = orders.recv().await.unwrap();
        assert_eq!(order.request.why, WhyBuild::Missing);
        for n in 0..100 {
            s.ask(&format!("fast {n}"), "BP001").await;
        }
        for _ in 0..100 {
            assert!(s.ready().await.request_id.starts_with("fast"));
        }
        let built = s.fixture.library.store(artifact("BP002", b"built")).await.unwrap();
        drop(order.answer.send(BuildAnswer::Built(Box::new(built))));
        let mut answered = [s.ready().await.request_id, s.ready().await.request_id];
        answered.sort();
        assert_eq!(answered, ["slow 1", "slow 2"]);
        assert!(orders.try_recv().is_err(), "one order for both");
    })
    .await;
}

#[tokio::test]
async fn a_build_of_another_process_is_noticed() {
    let mut s = service().await;
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP002").await;
        let _unanswered = orders.recv().await.unwrap();
        let elsewhere = s.fixture.another_process().await;
        elsewhere.store(artifact("BP002", b"built")).await.unwrap();
        assert_eq!(s.ready().await.request_id, "r1");
    })
    .await;
}

async fn check_build_answer(answer: BuildAnswer, reason: &str) {
    let mut s = service().await;
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP043").await;
        drop(orders.recv().await.unwrap().answer.send(answer));
        assert_eq!(s.error().await.reason, reason);
    })
    .await;
}

#[tokio::test]
async fn a_build_that_does_not_happen_is_answered_at_once() {
    check_build_answer(BuildAnswer::Unknown, "missing_artifact").await;
    let reason = "no such operator".to_owned();
    check_build_answer(BuildAnswer::Failed { reason }, "missing_artifact").await;
    let reason = "quarantined_blueprint".to_owned();
    check_build_answer(BuildAnswer::Refused { reason }, "quarantined_blueprint").await;
}

#[tokio::test]
async fn waiting_ends_and_a_restarted_builder_is_asked_again() {
    let mut s = service().await;
    s.config.compiling_after = Duration::from_millis(1500);
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP002").await;
        drop(orders.recv().await.unwrap());
        let _again = orders.recv().await.unwrap();
        let (error, attributes) = s.error_with_attributes().await;
        assert_eq!(error.reason, "compiling");
        let retry_after_ms: u64 = attributes["retry-after-ms"].parse().unwrap();
        assert!((250..=30_000).contains(&retry_after_ms), "{retry_after_ms}");
    })
    .await;
}

/// Weakness 36, cascade 2: an outage of the store culled seeds.
#[tokio::test]
async fn an_outage_of_the_store_is_unavailable_not_missing() {
    let mut s = service().await;
    s.fixture.library.close().await;
    s.serve(Demand::nobody(), async |s| {
        s.ask("r1", "BP001").await;
        assert_eq!(s.error().await.reason, "unavailable");
    })
    .await;
}

#[tokio::test]
async fn what_was_not_answered_before_a_stop_is_answered_after_the_restart() {
    let mut s = service().await;
    let (demand, mut orders) = Demand::channel();
    s.serve(demand.clone(), async |s| {
        s.ask("r1", "BP002").await;
        orders.recv().await.unwrap();
    })
    .await;
    assert_eq!(s.bus.depth(Stream::KernelRequests, "weatherlight").await.unwrap(), 1);
    s.fixture.library.store(artifact("BP002", b"built")).await.unwrap();
    let ready = s.serve(demand, async |s| s.ready().await).await;
    assert_eq!(ready.request_id, "r1");
}

#[tokio::test]
async fn the_same_request_twice_gets_the_same_answer() {
    let mut s = service().await;
    s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    let (first, second) = s
        .serve(Demand::nobody(), async |s| {
            s.ask("r1", "BP001").await;
            let first = s.ready().await;
            s.ask("r1", "BP001").await;
            (first, s.ready().await)
        })
        .await;
    assert_eq!(first, second);
}

/// Cascade 5: recompiling while requests are served must never give an error.
#[tokio::test]
async fn recompiling_during_fetches_gives_no_error() {
    let mut s = service().await;
    s.fixture.library.store(artifact("BP001", b"kernel 0")).await.unwrap();
    s.serve(Demand::nobody(), async |s| {
        for round in 1..20 {
            for n in 0..5 {
                s.ask(&format!("{round}/{n}"), "BP001").await;
            }
            let mut new = artifact("BP001", format!("kernel {round}").as_bytes());
            new.job.engine = round.to_string();
            s.fixture.library.store(new).await.unwrap();
            for _ in 0..5 {
                s.ready().await;
            }
        }
    })
    .await;
    assert_eq!(s.fixture.metric("urza.prefetch.errors"), 0.0);
    let records = s.fixture.library.list(Page::FIRST).await.unwrap();
    assert_eq!(records.len(), 20);
    assert!(records.iter().all(|record| record.state == RecordState::Active));
}

#[tokio::test]
async fn the_library_tells_blueprints_apart() {
    let mut s = service().await;
    let mut expected = Vec::new();
    for n in 1..=8 {
        let id = format!("BP00{n}");
        let record = s.fixture.library.store(artifact(&id, id.as_bytes())).await.unwrap();
        expected.push((BlueprintId::new(id), record.digest.to_hex()));
    }
    let mut answers = s
        .serve(Demand::nobody(), async |s| {
            let mut answers = Vec::new();
            for (blueprint, _) in &expected {
                s.ask(blueprint.as_str(), blueprint.as_str()).await;
            }
            for _ in &expected {
                let ready = s.ready().await;
                assert_eq!(ready.request_id, ready.blueprint_id);
                answers.push((BlueprintId::new(ready.blueprint_id), ready.checksum));
            }
            answers
        })
        .await;
    answers.sort();
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn requests_left_by_others_than_trainers_do_not_stop_the_worker() {
    let mut s = service().await;
    s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    s.serve(Demand::nobody(), async |s| {
        for blueprint in ["", "../../etc/passwd", "BP001'; DROP TABLE records; --"] {
            s.ask(&format!("odd {blueprint}"), blueprint).await;
            assert_eq!(s.error().await.reason, "missing_artifact");
        }
        s.bus.append_raw(Stream::KernelRequests, &[("init", b"1")]).await.unwrap();
        s.ask("r1", "BP001").await;
        assert!(matches!(Message::from(s.ready().await), Message::PrefetchReady(_)));
    })
    .await;
}

/// One trace spans request and answer; what cannot be read as a trace is ignored.
#[tokio::test]
async fn an_answer_goes_on_with_the_trace_of_its_request() {
    let mut s = service().await;
    s.fixture.library.store(artifact("BP001", b"kernel")).await.unwrap();
    let asked = TraceContext::begin();
    s.serve(Demand::nobody(), async |s| {
        s.ask_within("r1", "BP001", &asked.to_string()).await;
        let answered = s.trace_of_ready().await.expect("the answer belongs to a trace");
        assert_eq!(answered.trace_id(), asked.trace_id());
        assert_ne!(answered.span_id(), asked.span_id(), "a step of its own");
        assert!(answered.is_sampled());
        for (request, nonsense) in [("r2", "nonsense"), ("r3", ""), ("r4", "00-00-00-00")] {
            s.ask_within(request, "BP001", nonsense).await;
            assert_eq!(s.trace_of_ready().await, None, "{nonsense:?} is no trace, and no error");
        }
        s.ask("r5", "BP001").await;
        assert_eq!(s.trace_of_ready().await, None);
    })
    .await;
}

/// The builder learns for which trace it builds.
#[tokio::test]
async fn an_order_goes_on_with_the_trace_of_its_request() {
    let mut s = service().await;
    let asked = TraceContext::begin();
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask_within("r1", "BP001", &asked.to_string()).await;
        let order = orders.recv().await.unwrap();
        let trace = order.request.trace.expect("the order belongs to the trace");
        assert_eq!(trace.trace_id(), asked.trace_id());
        assert_ne!(trace.span_id(), asked.span_id(), "the step of serving the request");
        order.answer.send(BuildAnswer::Unknown).unwrap();
        assert_eq!(s.error().await.request_id, "r1");
    })
    .await;
}

/// Longer than an entry has attempts: the request must not end as a dead letter for it.
#[tokio::test]
async fn an_answer_that_the_bus_does_not_take_is_offered_until_it_does() {
    let mut registry = Registry::default();
    let mut service = service_with(|config| {
        let depth_sample_interval = Duration::ZERO;
        oona::Config { depth_max: 4, attempts_max: 2, depth_sample_interval, ..config }
            .with_bands_of_depth()
    })
    .await;
    service.fixture.metrics = Metrics::register(&mut registry);
    service.config.offer_pause = Duration::from_millis(5);
    service.fixture.library.store(artifact("BP001", b"one")).await.unwrap();
    // The service's own group has so much to read on the stream of answers that nothing more is taken.
    service.bus.ensure_groups(&[(Stream::KernelReady, "weatherlight")]).await.unwrap();
    for number in 0..3 {
        let update = Message::CatalogUpdate(KernelCatalogUpdate {
            blueprint_id: format!("BP{number}"),
            checksum: "00".to_owned(),
            ..KernelCatalogUpdate::default()
        });
        service.publish(Stream::KernelReady, &update).await;
    }
    let (demand, _orders) = Demand::channel();
    service
        .serve(demand, async |service| {
            service.ask("request", "BP001").await;
            while unsent(&registry) < 5 {
                tokio::task::yield_now().await;
            }
            let spec = ConsumerSpec::new(Stream::KernelReady, "weatherlight");
            let mut reader = service.bus.consumer(spec);
            for _ in 0..3 {
                reader.recv().await.unwrap().ack().await.unwrap();
            }
            let answer = reader.recv().await.unwrap();
            let Message::PrefetchReady(ready) = &answer.message else { panic!("{answer:?}") };
            assert_eq!(ready.request_id, "request");
        })
        .await;
    let dead = service.bus.dead_letters(EntryId { ms: 0, seq: 0 }, 10).await.unwrap();
    assert!(dead.is_empty(), "{dead:?}");
}

fn unsent(registry: &Registry) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find(|line| line.contains("prefetch_unsent_total"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
}

/// A shop whose only variant is `BP002` at `vector[64]`.
fn variants() -> Variants {
    Variants::new(|want| {
        if want.blueprint.as_str() != "BP002" {
            return Err(Unfit::Unknown);
        }
        match want.site.as_deref() {
            Some("vector[64]") => {
                Ok(JobKey { site: "vector[64]".to_owned(), ..artifact("BP002", b"").job })
            }
            _ => Err(Unfit::Refused {
                reason: "incompatible".to_owned(),
                detail: "only vector[64] is known".to_owned(),
            }),
        }
    })
}

#[tokio::test]
async fn a_variant_is_found_by_its_job_and_built_on_demand() {
    let mut s = service().await;
    s.variants = variants();
    s.fixture.library.store(artifact("BP002", b"default")).await.unwrap();
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask_with("r1", "BP002", &[("kernel-priority", "high"), ("kernel-site", "vector[64]")])
            .await;
        let order = orders.recv().await.unwrap();
        assert_eq!(order.request.site.as_deref(), Some("vector[64]"));
        assert_eq!(order.request.priority, MessagePriority::High);
        let mut variant = artifact("BP002", b"variant");
        (variant.job.site, variant.role) = ("vector[64]".to_owned(), Role::Variant);
        let record = s.fixture.library.store(variant).await.unwrap();
        assert_eq!(s.ready().await.checksum, record.digest.to_hex());
        s.ask_with("r2", "BP002", &[("kernel-site", "vector[64]")]).await;
        assert_eq!(s.ready().await.checksum, record.digest.to_hex());
        s.ask("r3", "BP002").await;
        assert_ne!(s.ready().await.checksum, record.digest.to_hex(), "the default is another");
        for (request, attributes) in [
            ("r4", [("kernel-site", "vector[65]")]),
            ("r5", [("kernel-parameters", "not JSON")]),
            ("r6", [("kernel-deadline-ms", "soon")]),
        ] {
            s.ask_with(request, "BP002", &attributes).await;
            let error = s.error().await;
            assert_eq!(
                (error.request_id.as_str(), error.reason.as_str()),
                (request, "incompatible")
            );
        }
        s.ask_with("r7", "BP003", &[("kernel-site", "vector[64]")]).await;
        assert_eq!(s.error().await.reason, "missing_artifact");
    })
    .await;
}

#[tokio::test]
async fn a_deadline_that_is_over_is_said_so_at_once_and_ends_a_wait() {
    let mut s = service().await;
    s.fixture.library.store(artifact("BP001", b"here")).await.unwrap();
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask_with("over", "BP001", &[("kernel-deadline-ms", "0")]).await;
        let error = s.error().await;
        assert_eq!(
            (error.request_id.as_str(), error.reason.as_str()),
            ("over", "deadline_exceeded")
        );
        s.ask_with("waits", "BP002", &[("kernel-deadline-ms", "300")]).await;
        let order = orders.recv().await.unwrap();
        assert!(order.request.deadline_ms.is_some());
        let error = s.error().await;
        assert_eq!(
            (error.request_id.as_str(), error.reason.as_str()),
            ("waits", "deadline_exceeded")
        );
        // The build goes on, and whoever asks next finds it.
        s.fixture.library.store(artifact("BP002", b"built")).await.unwrap();
        s.ask_with("next", "BP002", &[("kernel-deadline-ms", "60000")]).await;
        assert_eq!(s.ready().await.request_id, "next");
    })
    .await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_compiling_and_finds_it_later() {
    let mut s = service().await;
    s.config.compiling_after = Duration::from_millis(50);
    s.config.public_url = Some("https://kernels.example/".to_owned());
    let (demand, mut orders) = Demand::channel();
    s.serve(demand, async |s| {
        s.ask("r1", "BP002").await;
        s.ask("r2", "BP002").await;
        let order = orders.recv().await.unwrap();
        for _ in 0..2 {
            let (error, attributes) = s.error_with_attributes().await;
            assert_eq!(error.reason, "compiling");
            let retry_after_ms: u64 = attributes["retry-after-ms"].parse().unwrap();
            assert!((250..=30_000).contains(&retry_after_ms), "{retry_after_ms}");
        }
        assert!(orders.try_recv().is_err(), "one order for both");
        let record = s.fixture.library.store(artifact("BP002", b"built")).await.unwrap();
        let digest = record.digest.to_hex();
        order.answer.send(BuildAnswer::Built(Box::new(record))).unwrap();
        s.ask("r3", "BP002").await;
        let (ready, attributes) = s.ready_with_attributes().await;
        assert_eq!(ready.request_id, "r3");
        assert_eq!(attributes["kernel-url"], format!("https://kernels.example/kernels/{digest}"));
    })
    .await;
    assert_eq!(s.fixture.metric("urza.prefetch.compiling"), 2.0);
}

/// A trainer is told what the forge found out: a plan that is not its graph is used nowhere.
#[tokio::test]
async fn what_the_interpreter_must_run_is_said_so() {
    let mut s = service().await;
    let with = |blueprint: &str, execution: Option<serde_json::Value>| {
        let extras = execution.map(|said| (urza::EXECUTION.to_owned(), said));
        urza::NewArtifact { extras: extras.into_iter().collect(), ..artifact(blueprint, b"kernel") }
    };
    let reason = serde_json::json!({ "kind": "asked", "reason": "no time" });
    let interpreter = serde_json::json!({ "by": "interpreter", "reason": reason });
    for (blueprint, execution) in [
        ("BP001", Some(interpreter)),
        ("BP002", Some(serde_json::json!({ "by": "plan" }))),
        ("BP003", Some(serde_json::json!("interpreter"))),
        ("BP004", None),
    ] {
        s.fixture.library.store(with(blueprint, execution)).await.unwrap();
    }
    let said = s
        .serve(Demand::nobody(), async |s| {
            let mut said = Vec::new();
            for blueprint in ["BP001", "BP002", "BP003", "BP004", "BP001"] {
                s.ask(&format!("r{}", said.len()), blueprint).await;
                let (_, attributes) = s.ready_with_attributes().await;
                said.push(attributes.get(urza::KERNEL_EXECUTION).cloned());
            }
            said
        })
        .await;
    let interpreter = Some("interpreter".to_owned());
    assert_eq!(said, [interpreter.clone(), None, None, None, interpreter]);
}

/// A thousand requests for one artifact that was never verified: one hash, a thousand answers.
#[tokio::test]
async fn equal_requests_share_one_verification() {
    let mut registry = Registry::default();
    let mut s = service().await;
    s.fixture.metrics = Metrics::register(&mut registry);
    let path = s.fixture.dir.path().to_owned();
    s.fixture.library = Library::open(Config::at(&path), s.fixture.metrics.clone()).await.unwrap();
    s.fixture.library.store(artifact("BP001", &vec![7; 1 << 20])).await.unwrap();
    for n in 0..200 {
        s.ask(&format!("r{n}"), "BP001").await;
    }
    let answered = s
        .serve(Demand::nobody(), async |s| {
            let mut answered = BTreeSet::new();
            while answered.len() < 200 {
                answered.insert(s.ready().await.request_id);
            }
            answered
        })
        .await;
    assert_eq!(answered.len(), 200);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let count = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
    };
    assert_eq!(count("urza_library_verifications_total"), 1);
    assert!(count("urza_prefetch_coalesced_total") >= 150, "{text}");
}
