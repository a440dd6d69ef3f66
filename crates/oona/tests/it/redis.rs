//! What only Redis has: a server that can vanish, and URLs.

use std::time::{Duration, Instant};

use leyline::wire::MessagePriority;
use oona::{
    BreakerPosition, Bus, BusError, Config, LogChoice, LogError, Metrics, PublishError, Stream,
};

use crate::redis_server::RedisServer;
use crate::rig::*;

async fn ask<T: redis::FromRedisValue>(rig: &Rig, words: &[&str]) -> T {
    rig.server.as_ref().unwrap().ask(words).await
}

/// Reads everything new as that consumer, and forgets it.
async fn take_away(rig: &Rig, consumer: &str) {
    let words = ["XREADGROUP", "GROUP", GROUP, consumer, "STREAMS", "oona.normal", ">"];
    ask::<redis::Value>(rig, &words).await;
}

/// Loaded from its append-only file, the server no longer knows how far a group has read.
#[tokio::test]
async fn the_backlog_is_known_after_a_restart_of_the_server() {
    let mut rig = Rig::redis();
    rig.server = None;
    let durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start_with(&durable);
    rig.config.log = LogChoice::Redis { url: server.url() };
    let bus = rig.bus().await;
    // More than once: what was wrong after a restart must not be wrong for ever.
    for round in 0..3 {
        for number in 0..3 {
            publish(&bus, &state("run", round * 10 + number)).await;
            let depth = bus.depth(Stream::Normal, GROUP).await.unwrap();
            // There is no group before the first consumer.
            assert_eq!(depth, if round == 0 { 0 } else { u64::from(number) + 1 });
        }
        let mut reader = consumer(&bus, Stream::Normal);
        for number in 0..3 {
            let delivery = recv(&mut reader).await;
            assert_eq!((epoch(&delivery), delivery.attempt), (round * 10 + number, 1));
            delivery.ack().await.unwrap();
        }
        assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
        drop(reader);
        server.restart();
        let begun = Instant::now();
        while bus.ping().await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "never found again");
        }
    }
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again_at_once() {
    let mut rig = Rig::redis();
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.ack().await.unwrap();

    let consuming = format!("consume_normal.{GROUP}");
    assert_eq!(position(&bus, "publish"), BreakerPosition::Closed);
    assert_eq!(position(&bus, &consuming), BreakerPosition::Closed);

    rig.server.as_mut().unwrap().kill();
    let message = state("run", 2);
    let mut failures = 0;
    loop {
        match bus.publish(Stream::Normal, MessagePriority::Normal, "test", &message).await {
            Err(PublishError::Log(LogError::Unreachable { .. } | LogError::TimedOut { .. })) => {
                failures += 1;
            }
            Ok(outcome) if !outcome.is_sent() => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(failures, 3, "the breaker opens after three failures");
    assert_eq!(position(&bus, "publish"), BreakerPosition::Open);
    assert_eq!(position(&bus, "publish_emergency"), BreakerPosition::Closed);
    let points = std::collections::BTreeMap::from_iter(bus.points());
    assert_eq!(points["oona.publish_breaker_state"], 2.0);

    rig.server.as_mut().unwrap().restart();
    let back = Instant::now();
    // The consumer finds the server, and its sign of life lets the breaker try.
    let received = async { recv(&mut reader).await };
    let publishing = async {
        loop {
            match bus.publish(Stream::Normal, MessagePriority::Normal, "test", &message).await {
                Ok(outcome) if outcome.is_sent() => break,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let (delivery, ()) = tokio::join!(received, publishing);
    assert!(back.elapsed() < Duration::from_secs(5), "took {:?}", back.elapsed());
    assert_eq!(epoch(&delivery), 2);
    delivery.ack().await.unwrap();
    assert_eq!(position(&bus, "publish"), BreakerPosition::Closed);
    drop(reader);
    assert!(bus.breakers().iter().all(|breaker| breaker.name != consuming), "it is gone");
}

fn position(bus: &Bus, name: &str) -> BreakerPosition {
    let breakers = bus.breakers();
    breakers.iter().find(|breaker| breaker.name == name).unwrap().position
}

#[tokio::test]
async fn two_processes_share_the_work_and_the_memory_of_nonces() {
    let rig = Rig::redis();
    let (one, two) = (rig.bus().await, rig.bus().await);
    let envelope = Envelope::of(&state("run", 1), "oona.normal");
    envelope.append(&one, Stream::Normal).await;
    recv(&mut consumer(&one, Stream::Normal)).await.ack().await.unwrap();
    envelope.append(&one, Stream::Normal).await;
    expect_refused(&two, Stream::Normal, oona::Refusal::Replay).await;
}

async fn open(url: &str) -> Result<Bus, BusError> {
    let log = LogChoice::Redis { url: url.to_owned() };
    let config = Config { log, ..Config::default() };
    Bus::open(config, keyring(), Metrics::detached()).await
}

#[tokio::test]
async fn unusable_urls_are_typed_errors_without_secrets() {
    let error = open("amqp://:hunter2@localhost").await.unwrap_err();
    assert!(matches!(&error, BusError::UnsupportedUrl { scheme } if scheme == "amqp"), "{error}");
    for url in ["not a url", "redis-sentinel://:hunter2@localhost", "redis://:hunter2@h:port"] {
        let error = open(url).await.unwrap_err();
        assert!(matches!(error, BusError::BadUrl { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn an_absent_server_is_reported_at_once_and_without_the_password() {
    let mut rig = Rig::redis();
    let server = rig.server.as_mut().unwrap();
    server.kill();
    let url = format!("redis://:hunter2@127.0.0.1:{}/0", server.port());
    let error = open(&url).await.unwrap_err();
    assert!(matches!(error, BusError::Log(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

/// The reply to a read was lost with its connection: the server counts the entry as delivered.
#[tokio::test]
async fn entries_lost_in_a_reply_are_fetched_again() {
    let rig = Rig::redis();
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    bus.ensure_groups(&[(Stream::Normal, GROUP)]).await.unwrap();
    publish(&bus, &state("run", 1)).await;
    take_away(&rig, reader.name()).await;
    let delivery = recv(&mut reader).await;
    assert_eq!((epoch(&delivery), delivery.attempt), (1, 2));
    delivery.ack().await.unwrap();
}

/// A consumer that gives no heartbeats (another program's) keeps its entries for the idle time.
#[tokio::test]
async fn a_silent_consumer_loses_its_entries_after_the_idle_time() {
    let rig = Rig::redis();
    let bus = rig.bus_with(|config| config.claim_idle = Duration::from_millis(1_200)).await;
    let mut reader = consumer(&bus, Stream::Normal);
    bus.ensure_groups(&[(Stream::Normal, GROUP)]).await.unwrap();
    publish(&bus, &state("run", 1)).await;
    take_away(&rig, "foreign").await;
    let taken = Instant::now();
    let delivery = recv(&mut reader).await;
    assert!(taken.elapsed() >= Duration::from_millis(1_100), "after {:?}", taken.elapsed());
    delivery.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

/// With its real settings an idle consumer reads once a second and looks at its group once.
#[tokio::test]
async fn an_idle_consumer_is_quiet() {
    let rig = Rig::redis();
    let bus = rig
        .bus_with(|config| {
            let Config { read_block, consumer_ttl, .. } = Config::default();
            (config.read_block, config.consumer_ttl) = (read_block, consumer_ttl);
        })
        .await;
    let mut reader = consumer(&bus, Stream::Normal);
    let wait = |ms| Duration::from_millis(ms);
    assert!(tokio::time::timeout(wait(300), reader.recv()).await.is_err());
    let reads = |stats: String| -> u64 {
        let line =
            stats.lines().find(|line| line.starts_with("total_commands_processed:")).unwrap();
        line.rsplit_once(':').unwrap().1.trim().parse().unwrap()
    };
    let before = reads(ask(&rig, &["INFO", "stats"]).await);
    assert!(tokio::time::timeout(wait(2_000), reader.recv()).await.is_err());
    let after = reads(ask(&rig, &["INFO", "stats"]).await);
    // The script's own commands are counted too, four a tick; and this test's connection: four.
    assert!(after - before <= 2 * (1 + 5) + 8, "{} commands in two seconds", after - before);
}
