//! How a consumer reads, and what stops it.

use std::time::{Duration, Instant};

use oona::{Bus, Config, Consumer, Metrics, Refusal, Stream};

use crate::rig::*;

crate::on_both_logs!(
    a_missing_group_is_made_again_and_is_no_hot_loop,
    a_blocking_read_holds_nobody_up,
    a_blocked_reader_is_not_killed_by_the_response_time_out,
    undecodable_entries_do_not_stop_the_consumer,
);

/// Pitfall: the group is missing after a flush or a failover.
/// Elsewhere: every read fails with `NOGROUP`; the consumer ends, or asks again as fast as it can.
/// Oona: the group is made again from the stream's beginning and counted, with pauses that grow while it keeps vanishing.
async fn a_missing_group_is_made_again_and_is_no_hot_loop(rig: Rig) {
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.ack().await.unwrap();
    if let Some(server) = &rig.server {
        server.ask::<()>(&["FLUSHALL"]).await;
    }
    bus.remove_group(Stream::Normal, GROUP).await.unwrap();
    publish(&bus, &state("run", 2)).await;
    // From the beginning again: what still stands there comes as well.
    while handled(&mut reader).await != 2 {}
    assert_eq!(bus.metrics().groups_recreated_total(Stream::Normal), 1);
    // It vanishes again and again for a second.
    let before = reads(&rig).await;
    let (since, mut vanished) = (Instant::now(), 0);
    let destroyer = async {
        while since.elapsed() < Duration::from_secs(1) {
            bus.remove_group(Stream::Normal, GROUP).await.unwrap();
            vanished += 1;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = destroyer => {}
        // What comes again is handled again, without an end.
        () = async { loop { handled(&mut reader).await; } } => {}
    }
    let recreated = bus.metrics().groups_recreated_total(Stream::Normal);
    assert!(vanished > 200, "the test was too slow to show anything: {vanished}");
    assert!(recreated < 80, "made again {recreated} times in a second");
    let reads = reads(&rig).await - before;
    assert!(reads < 160, "{reads} reads in a second");
    publish(&bus, &state("run", 3)).await;
    while handled(&mut reader).await != 3 {}
}

async fn handled(reader: &mut Consumer) -> u32 {
    let delivery = recv(reader).await;
    let number = epoch(&delivery);
    // The group may be gone again.
    delivery.ack().await.ok();
    number
}

/// `XREADGROUP` calls that the server has counted; none for the embedded log.
async fn reads(rig: &Rig) -> u64 {
    let Some(server) = &rig.server else { return 0 };
    let stats: String = server.ask(&["INFO", "commandstats"]).await;
    let line = stats.lines().find(|line| line.starts_with("cmdstat_xreadgroup:"));
    let calls = line.and_then(|line| line.split_once("calls=")?.1.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

/// Pitfall: a blocking read shares its connection.
/// Elsewhere: a connection answers in order, so every other command on it waits until the read has ended: publishing is as slow as the stream is idle.
/// Oona: every reader has a connection of its own; what publishes and acknowledges never waits behind it.
async fn a_blocking_read_holds_nobody_up(rig: Rig) {
    let block = Duration::from_secs(8);
    let bus = rig
        .bus_with(|config| {
            config.read_block = block;
            config.consumer_ttl = 30 * block;
            config.publish_timeout = block;
            config.command_timeout = block;
        })
        .await;
    let mut idle = consumer(&bus, Stream::Policy);
    let mut reader = consumer(&bus, Stream::Normal);
    let since = Instant::now();
    let work = async {
        // The idle reader has come to its blocking read by then: looking for the lost comes first.
        for number in 0..50 {
            publish(&bus, &state("run", number)).await;
            recv(&mut reader).await.ack().await.unwrap();
        }
    };
    tokio::select! {
        biased;
        _ = idle.recv() => unreachable!("nothing was sent there"),
        () = work => {}
    }
    // On a shared connection each of a hundred commands could wait that long.
    assert!(since.elapsed() < block, "took {:?}", since.elapsed());
}

/// Pitfall: a response time-out kills a blocked reader.
/// Elsewhere: the client's time-out for answers is shorter than the block, so every idle read ends as an error and a new connection, and entries delivered to the old one are lost.
/// Oona: a read may take as long as it blocks, and one second more.
async fn a_blocked_reader_is_not_killed_by_the_response_time_out(rig: Rig) {
    let mut registry = prometheus_client::registry::Registry::default();
    let config = Config {
        command_timeout: Duration::from_millis(200),
        read_block: Duration::from_secs(1),
        consumer_ttl: Duration::from_secs(5),
        ..rig.config.clone()
    };
    let bus = Bus::open(config, keyring(), Metrics::register(&mut registry)).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    let idle = tokio::time::timeout(Duration::from_millis(1_500), reader.recv()).await;
    assert!(idle.is_err());
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.ack().await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("oona_log_failures_total 0"), "{text}");
}

/// Pitfall: one undecodable entry stops the consumer.
/// Elsewhere: the error ends the loop, the entry stays pending, and the restarted consumer meets it first.
/// Oona: it is refused with its reason, acknowledged and counted; the rest of its batch is handled.
async fn undecodable_entries_do_not_stop_the_consumer(rig: Rig) {
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    for number in 0..5 {
        let bytes = vec![0xff_u8; 64];
        let signature = keyring().sign(&bytes);
        let fields = [("payload", bytes.as_slice()), ("signature", signature.as_bytes())];
        bus.append_raw(Stream::Normal, &fields).await.unwrap();
        publish(&bus, &state("run", number)).await;
    }
    for number in 0..5 {
        let delivery = recv(&mut reader).await;
        assert_eq!(epoch(&delivery), number);
        delivery.ack().await.unwrap();
    }
    assert_eq!(bus.metrics().refused_total(Stream::Normal, Refusal::Malformed), 5);
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}
