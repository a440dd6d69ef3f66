//! What a consumer does with what it holds while the server is away.

use std::time::Duration;

use oona::{ConsumerSpec, Stream};
use rustix::process::{Pid, Signal, kill_process};

use crate::redis_server::RedisServer;
use crate::rig::*;

/// As many acknowledgements as a consumer may hold entries did not arrive. It must not wait for a
/// handler to make room: there is none left.
#[tokio::test]
async fn a_desk_full_of_owed_acknowledgements_is_cleared() {
    let mut rig = Rig::redis();
    let lasting = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
    rig.server = Some(RedisServer::start_with(&lasting));
    rig.config.log = oona::LogChoice::Redis { url: rig.server.as_ref().unwrap().url() };
    let bus = rig.bus_with(|config| config.command_timeout = Duration::from_millis(200)).await;
    let spec = ConsumerSpec::new(Stream::Normal, GROUP);
    let mut reader = bus.consumer(ConsumerSpec { batch_max: 2, in_work_max: 2, ..spec });
    for number in 0..2 {
        publish(&bus, &state("run", number)).await;
    }
    let (first, second) = (recv(&mut reader).await, recv(&mut reader).await);
    rig.server.as_mut().unwrap().kill();
    assert!(first.ack().await.is_err() && second.ack().await.is_err());
    rig.server.as_mut().unwrap().restart();
    let third = async {
        while !matches!(
            bus.publish(
                Stream::Normal,
                leyline::wire::MessagePriority::Normal,
                "test",
                &state("run", 2)
            )
            .await,
            Ok(outcome) if outcome.is_sent()
        ) {
            tokio::task::yield_now().await;
        }
    };
    let (delivery, ()) = tokio::join!(recv(&mut reader), third);
    assert_eq!((epoch(&delivery), delivery.attempt), (2, 1), "the first two are not repeated");
    delivery.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

/// While the server stood still nobody could give a heartbeat. Whoever is first to ask afterwards
/// must not take the silence of the others for their death.
#[tokio::test]
async fn after_an_outage_the_living_keep_their_entries() {
    let mut rig = Rig::redis();
    rig.config.consumer_ttl = Duration::from_millis(1_500);
    let (one, two) = (rig.bus().await, rig.bus().await);
    let mut holder = consumer(&one, Stream::Normal);
    let mut other = consumer(&two, Stream::Normal);
    publish(&one, &state("run", 1)).await;
    let held = recv(&mut holder).await;
    let moment = Duration::from_millis(200);
    let (a, b) = tokio::join!(
        tokio::time::timeout(moment, holder.recv()),
        tokio::time::timeout(moment, other.recv())
    );
    assert!(a.is_err() && b.is_err());
    let pid = Pid::from_raw(rig.server.as_ref().unwrap().pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // Longer than consumer_ttl, claim_idle and a blocked read.
    let outage = Duration::from_millis(3_000);
    let (a, b) = tokio::join!(
        tokio::time::timeout(outage, holder.recv()),
        tokio::time::timeout(outage, other.recv())
    );
    kill_process(pid, Signal::CONT).unwrap();
    assert!(a.is_err() && b.is_err());
    // The other one asks first; the holder's heartbeat is 3 s old then, its limit 1.5 s.
    let taken = tokio::time::timeout(Duration::from_millis(400), other.recv()).await;
    assert!(taken.is_err(), "taken away from a living consumer");
    let silence = Duration::from_millis(1_000);
    let (a, b) = tokio::join!(
        tokio::time::timeout(silence, holder.recv()),
        tokio::time::timeout(silence, other.recv())
    );
    assert!(a.is_err() && b.is_err(), "taken away from a living consumer");
    held.ack().await.unwrap();
    assert_eq!(two.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

/// A server that has reached `maxmemory` takes nothing new. What it has must be handled all the same,
/// or it would never have room again: claims of nonces, heartbeats and dead letters still go through.
#[tokio::test]
async fn a_full_server_is_drained() {
    let rig = Rig::redis();
    let server = rig.server.as_ref().unwrap();
    let bus = rig.bus_with(|config| (config.attempts_max, config.stream_len_max) = (1, 1)).await;
    for number in 0..100 {
        publish(&bus, &state("run", number)).await;
    }
    let mut reader = consumer(&bus, Stream::Normal);
    bus.ensure_groups(&[(Stream::Normal, GROUP)]).await.unwrap();
    server.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for number in 0..100 {
        let delivery = recv(&mut reader).await;
        assert_eq!((epoch(&delivery), delivery.attempt), (number, 1));
        match number {
            50 => delivery.fail("cannot be handled").await.unwrap(),
            _ => delivery.ack().await.unwrap(),
        }
    }
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    assert_eq!(bus.dead_letters(oona::EntryId::ZERO, 10).await.unwrap().len(), 1);
    bus.sweep(Stream::Normal).await.unwrap();
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 1, "trimmed");
}
