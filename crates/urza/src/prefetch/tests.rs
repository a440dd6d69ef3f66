//! A request that panics its handler, injected here since none is known that does.

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{KernelPrefetchRequest, MessagePriority};
use oona::{EntryId, LogChoice};
use prometheus_client::registry::Registry;

use super::*;
use crate::library::Library;

const ATTEMPTS: u32 = 3;

/// The injected fault.
pub(super) fn panic_on_poison(request: &KernelPrefetchRequest) {
    assert_ne!(request.request_id, "poison", "this request is poison");
}

fn request(id: &str, blueprint: &str) -> Message {
    Message::PrefetchRequest(KernelPrefetchRequest {
        request_id: id.to_owned(),
        blueprint_id: blueprint.to_owned(),
        training_run_id: "run".to_owned(),
        issued_at: Some(timestamp(now_unix_ms())),
    })
}

#[tokio::test]
async fn a_poison_request_ends_among_the_dead_letters_and_the_worker_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let library = Library::open(crate::Config::at(dir.path()), metrics.clone()).await.unwrap();
    let config = oona::Config {
        log: LogChoice::Embedded { path: dir.path().join("log.redb") },
        attempts_max: ATTEMPTS,
        retry_delay_min: Duration::from_millis(10),
        retry_delay_max: Duration::from_millis(20),
        ..oona::Config::default()
    };
    let keyring = Keyring::new(&Secret::new("a secret of some length"), None);
    let bus = Bus::open(config, keyring, oona::Metrics::detached()).await.unwrap();
    let group = PrefetchConfig::default().group;
    bus.ensure_groups(&[
        (Stream::KernelRequests, group.as_str()),
        (Stream::KernelErrors, "trainer"),
    ])
    .await
    .unwrap();
    let mut answers = bus.consumer(ConsumerSpec::new(Stream::KernelErrors, "trainer"));
    // Nobody builds, so each honest request is answered at once that its artifact is missing.
    for (id, blueprint) in [("poison", "BP001"), ("r1", "BP001"), ("r2", "BP002")] {
        let outcome = bus
            .publish(
                Stream::KernelRequests,
                MessagePriority::Normal,
                "test",
                &request(id, blueprint),
            )
            .await
            .unwrap();
        assert!(outcome.is_sent());
    }

    let heartbeat = Heartbeat::detached();
    let worker = Prefetcher {
        bus: bus.clone(),
        library,
        demand: Demand::nobody(),
        variants: Variants::none(),
        config: PrefetchConfig::default(),
        metrics,
        heartbeat: heartbeat.clone(),
    };
    let stop = CancellationToken::new();
    let watching = async {
        let mut answered = Vec::new();
        while answered.len() < 2 {
            let delivery = answers.recv().await.unwrap();
            if let Message::PrefetchError(error) = &delivery.message {
                answered.push(error.request_id.clone());
            }
            delivery.ack().await.unwrap();
        }
        let letters = loop {
            let letters = bus.dead_letters(EntryId::ZERO, 10).await.unwrap();
            if !letters.is_empty() {
                break letters;
            }
            tokio::task::yield_now().await;
        };
        stop.cancel();
        (answered, letters)
    };
    // One run: it would have ended with the first panic, and the join with it.
    let both = async { tokio::join!(worker.run(stop.clone()), watching) };
    let (ended, (mut answered, letters)) =
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    ended.unwrap();
    answered.sort();
    assert_eq!(answered, ["r1", "r2"]);
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!(letter.attempts, ATTEMPTS);
    assert!(
        letter.reason.starts_with("its handler panicked: ")
            && letter.reason.contains("this request is poison"),
        "{}",
        letter.reason
    );
    assert_eq!(bus.depth(Stream::KernelRequests, &group).await.unwrap(), 0);
}
