//! A cluster of three nodes: all streams of the bus share one of them.

use std::time::{Duration, Instant};

use oona::{Bus, BusError, Config, LogChoice, Metrics, Stream, StreamNames};

use crate::connections::everything_else;
use crate::redis_server::{RedisServer, free_port};
use crate::rig::*;

/// Three nodes that share the slots, and know one another.
async fn cluster() -> Vec<RedisServer> {
    let bus_ports: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
    let nodes: Vec<RedisServer> = bus_ports
        .iter()
        .map(|port| {
            RedisServer::start_with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                port,
                "--cluster-node-timeout",
                "2000",
                "--save",
                "",
            ])
        })
        .collect();
    for (node, (first, last)) in
        nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")])
    {
        node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
    }
    for (node, bus_port) in nodes.iter().zip(&bus_ports).skip(1) {
        let port = node.port().to_string();
        nodes[0].ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port, bus_port]).await;
    }
    let begun = Instant::now();
    for node in &nodes {
        while !node.ask::<String>(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
            || !node.ask::<String>(&["CLUSTER", "INFO"]).await.contains("cluster_known_nodes:3")
        {
            assert!(begun.elapsed() < PATIENCE, "the nodes do not find one another");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    nodes
}

fn url(nodes: &[RedisServer]) -> String {
    let hosts: Vec<String> =
        nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    format!("redis-cluster://{}", hosts.join(","))
}

/// The usual names with one hash tag.
fn tagged() -> StreamNames {
    let mut names = StreamNames::default();
    for name in [
        &mut names.normal,
        &mut names.emergency,
        &mut names.telemetry,
        &mut names.policy,
        &mut names.kernel_requests,
        &mut names.kernel_ready,
        &mut names.kernel_errors,
        &mut names.dead_letter,
    ] {
        *name = name.replacen("oona", "{oona}", 1);
    }
    names
}

#[tokio::test]
async fn a_cluster_carries_messages_retries_and_dead_letters() {
    let nodes = cluster().await;
    let usual = quick(LogChoice::Redis { url: url(&nodes) });
    let config = Config {
        streams: tagged(),
        publish_timeout: Duration::from_secs(2),
        durability: "none,policy=wait:1".parse().unwrap(),
        durability_timeout: Duration::from_millis(100),
        ..usual
    };
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    let envelope = Envelope::of(&state("run", 1), "{oona}.normal");
    envelope.append(&bus, Stream::Normal).await;
    recv(&mut reader).await.ack().await.unwrap();
    // The claims of nonces stand on the same node.
    envelope.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, oona::Refusal::Replay).await;
    drop(reader);
    everything_else(&bus).await;
    // A wait for replicas goes to the node that has the stream; there are none.
    let update: leyline::Message = leyline::wire::PolicyUpdate::default().into();
    let priority = leyline::wire::MessagePriority::Normal;
    let error = bus.publish(Stream::Policy, priority, "test", &update).await.unwrap_err();
    let weak = oona::PublishError::Log(oona::LogError::NotDurable {
        entry: oona::EntryId::ZERO,
        class: oona::Durability::Wait { replicas: 1 },
        disks: 0,
        replicas: 0,
        after: Duration::ZERO,
    });
    assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&weak), "{error:?}");
    let mut homes = 0;
    for node in &nodes {
        homes += usize::from(!node.ask::<Vec<String>>(&["KEYS", "*"]).await.is_empty());
    }
    assert_eq!(homes, 1, "one node has everything");
}

#[tokio::test]
async fn names_without_a_common_tag_are_refused_with_better_ones() {
    let log = LogChoice::Redis { url: "redis-cluster://127.0.0.1:1".to_owned() };
    let error = Bus::open(quick(log), keyring(), Metrics::detached()).await.unwrap_err();
    assert!(matches!(error, BusError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("OONA_NORMAL_STREAM={oona}.normal"), "{error}");
}
