//! What only Redis has: a server that can vanish, and URLs.

use std::time::{Duration, Instant};

use leyline::wire::MessagePriority;
use oona::{Bus, BusError, Config, LogChoice, LogError, Metrics, PublishError, Stream};

use crate::rig::*;

async fn flush_all(rig: &Rig) {
    let url = rig.server.as_ref().unwrap().url();
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_flushed_server_gets_its_groups_back() {
    let rig = Rig::redis();
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.ack().await.unwrap();
    flush_all(&rig).await;
    publish(&bus, &state("run", 2)).await;
    let delivery = recv(&mut reader).await;
    assert_eq!(epoch(&delivery), 2);
    delivery.ack().await.unwrap();
    assert_eq!(bus.metrics().groups_recreated_total(Stream::Normal), 1);
    // A group that stays away is no hot loop: it is asked for with growing pauses.
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again_at_once() {
    let mut rig = Rig::redis();
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.ack().await.unwrap();

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
    for (url, scheme) in [
        ("rediss://:hunter2@localhost", "rediss"),
        ("redis-sentinel://:hunter2@localhost", "redis-sentinel"),
        ("redis-cluster://:hunter2@localhost", "redis-cluster"),
    ] {
        let error = open(url).await.unwrap_err();
        let BusError::UnsupportedUrl { scheme: found } = &error else { panic!("{error}") };
        assert_eq!(found, scheme);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    assert!(matches!(open("not a url").await, Err(BusError::BadUrl)));
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
