//! Durability classes: publishers that wait for replicas or for the disk.

use std::time::Duration;

use leyline::wire::MessagePriority;
use oona::{
    Bus, BusError, Config, Durabilities, Durability, LogChoice, LogError, Metrics, PublishError,
    Stream,
};

use crate::redis_server::{RedisServer, newer, usual, valkey};
use crate::rig::*;

const WITH_AOF: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

fn config(server: &RedisServer, durability: &str) -> Config {
    Config {
        durability: durability.parse::<Durabilities>().unwrap(),
        durability_timeout: Duration::from_secs(2),
        publish_timeout: Duration::from_secs(5),
        ..quick(LogChoice::Redis { url: server.url() })
    }
}

async fn open(config: Config) -> Result<Bus, BusError> {
    Bus::open(config, keyring(), Metrics::detached()).await
}

/// How often the server was asked to do that.
async fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats: String = server.ask(&["INFO", "commandstats"]).await;
    let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let count = line.and_then(|line| line.split_once("calls=")?.1.split_once(','));
    count.map_or(0, |(count, _)| count.parse().unwrap())
}

#[tokio::test]
async fn on_disk_before_a_publish_returns_and_one_wait_for_many() {
    for program in [newer(), valkey()] {
        let server = RedisServer::start_program(program, &WITH_AOF);
        let bus = open(config(&server, "waitaof,telemetry=none")).await.unwrap();
        assert_eq!(bus.durability(Stream::Normal), Durability::WaitAof { replicas: 0 });
        assert_eq!(bus.durability(Stream::Telemetry), Durability::None);
        publish(&bus, &state("run", 0)).await;
        assert_eq!(calls(&server, "waitaof").await, 1);
        let mut publishers = tokio::task::JoinSet::new();
        for number in 1..=200 {
            let bus = bus.clone();
            publishers.spawn(async move { publish(&bus, &state("run", number)).await });
        }
        assert_eq!(publishers.join_all().await.len(), 200);
        let waits = calls(&server, "waitaof").await;
        assert!((2..=40).contains(&waits), "{waits} waits for 200 publishes");
        assert_eq!(bus.len(Stream::Normal).await.unwrap(), 201);
    }
}

/// Whoever drives a batch may give up; the others of the batch get their answers all the same.
#[tokio::test]
async fn a_publisher_that_gives_up_takes_nobody_along() {
    let server = RedisServer::start_program(newer(), &WITH_AOF);
    let bus = open(config(&server, "waitaof")).await.unwrap();
    let message = state("run", 1);
    let send = || bus.publish(Stream::Normal, MessagePriority::Normal, "test", &message);
    let mut first = Box::pin(send());
    let mut second = Box::pin(send());
    // Both have asked once, and the first one goes away.
    std::future::poll_fn(|context| {
        assert!(first.as_mut().poll(context).is_pending());
        assert!(second.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    drop(first);
    assert!(tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().is_sent());
}

#[tokio::test]
async fn what_a_server_cannot_give_is_refused_at_open() {
    let forgetful = RedisServer::start_program(newer(), &["--save", "", "--appendonly", "no"]);
    let error = open(config(&forgetful, "none,policy=waitaof")).await.unwrap_err();
    let BusError::Durability { class, problem, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*class, Durability::WaitAof { replicas: 0 });
    assert!(problem.contains("appendonly yes"), "{error}");

    let usual = RedisServer::start_program(usual(), &WITH_AOF);
    let found = oona::probe(&usual.url(), &oona::RedisAccess::default()).await.unwrap();
    let opened = open(config(&usual, "waitaof")).await;
    match found.capabilities.waitaof {
        true => drop(opened.unwrap()),
        false => {
            let error = opened.unwrap_err();
            assert!(matches!(error, BusError::Durability { .. }), "{error:?}");
            assert!(error.to_string().contains("7.2"), "{error}");
        }
    }
}

#[tokio::test]
async fn replicas_are_waited_for_and_missed() {
    let master = RedisServer::start();
    let bus = open(Config {
        durability_timeout: Duration::from_millis(200),
        ..config(&master, "none,policy=wait:1")
    })
    .await
    .unwrap();
    let update: leyline::Message = leyline::wire::PolicyUpdate::default().into();
    let send = || bus.publish(Stream::Policy, MessagePriority::Normal, "test", &update);
    let error = send().await.unwrap_err();
    let PublishError::Log(LogError::NotDurable { class, replicas, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!((*class, *replicas), (Durability::Wait { replicas: 1 }, 0));
    assert!(error.to_string().contains("not send it again"), "{error}");
    // It stands in the log, and other streams do not wait.
    assert_eq!(bus.len(Stream::Policy).await.unwrap(), 1);
    publish(&bus, &state("run", 1)).await;

    let replica = RedisServer::start_with(&[
        "--save",
        "",
        "--replicaof",
        "127.0.0.1",
        &master.port().to_string(),
    ]);
    let begun = std::time::Instant::now();
    while replica.ask::<u64>(&["XLEN", "oona.policy"]).await < 1 {
        assert!(begun.elapsed() < PATIENCE, "the replica does not follow");
        tokio::task::yield_now().await;
    }
    // Following is one thing, telling the master so another: it does that once a second.
    while let Err(error) = send().await {
        assert!(matches!(error, PublishError::Log(LogError::NotDurable { .. })), "{error:?}");
        assert!(begun.elapsed() < PATIENCE, "never on the replica");
    }
    assert!(replica.ask::<u64>(&["XLEN", "oona.policy"]).await >= 2);
}
