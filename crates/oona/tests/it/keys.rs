//! Rotation of the secret without a stop, and who can see when it is done.

use std::sync::Arc;

use leyline::sign::{Keyring, Secret};
use oona::{Bus, Config, KeyRole, Live, Metrics, Refusal, Stream};
use tokio::sync::watch;

use crate::rig::*;

crate::on_both_logs!(
    rotation_without_a_stop,
    rotation_while_it_works,
    forged_entries_are_no_use_of_a_secret
);

const OLD: &str = "the old secret of all";
const NEW: &str = "the new secret of all";
const NAME: &str = "oona.normal";

async fn open(rig: &Rig, current: &str, previous: Option<&str>) -> Bus {
    let previous = previous.map(Secret::new);
    let ring = Keyring::new(&Secret::new(current), previous.as_ref());
    let config = Config { consumer: Config::default().consumer, ..rig.config.clone() };
    Bus::open(config, ring, Metrics::detached()).await.unwrap()
}

/// A message of a sender that has only this secret.
async fn sent_with(bus: &Bus, secret: &str, epoch: u32) {
    let mut envelope = Envelope::of(&state("run", epoch), NAME);
    envelope.secret = secret.to_owned();
    envelope.append(bus, Stream::Normal).await;
}

async fn handled(bus: &Bus, expected: u32) {
    let delivery = recv(&mut consumer(bus, Stream::Normal)).await;
    assert_eq!(epoch(&delivery), expected);
    delivery.ack().await.unwrap();
}

/// Role, verified entries and whether there was a last use, for each secret in force.
fn used(bus: &Bus) -> Vec<(KeyRole, u64, bool)> {
    let keys = bus.keys();
    assert!(keys.iter().all(|key| key.key.len() == 8), "{keys:?}");
    keys.into_iter().map(|key| (key.role, key.verified, key.last_used_s.is_some())).collect()
}

/// One bus and one consumer from beginning to end; only what their keyring is changes.
async fn rotation_while_it_works(rig: Rig) {
    let ring = |current: &str, previous: Option<&str>| {
        let previous = previous.map(Secret::new);
        Arc::new(Keyring::new(&Secret::new(current), previous.as_ref()))
    };
    let (rotation, keyring) = watch::channel(ring(OLD, None));
    let (_, limits) = watch::channel(rig.config.limits());
    let live = Live { keyring, limits };
    let bus = Bus::open_live(rig.config.clone(), live, Metrics::detached()).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    let mut epochs = Vec::new();
    for (step, in_force) in [(1, ring(OLD, None)), (2, ring(NEW, Some(OLD))), (3, ring(NEW, None))]
    {
        rotation.send_replace(in_force);
        sent_with(&bus, OLD, step * 10).await;
        sent_with(&bus, NEW, step * 10 + 1).await;
        // Signed with what is in force now, so always understood; it ends the step.
        publish(&bus, &state("run", step * 10 + 2)).await;
        loop {
            let delivery = recv(&mut reader).await;
            let found = epoch(&delivery);
            delivery.ack().await.unwrap();
            epochs.push(found);
            if found == step * 10 + 2 {
                break;
            }
        }
    }
    assert_eq!(epochs, [10, 12, 20, 21, 22, 31, 32], "the old secret until 2, the new from 2 on");
    assert_eq!(used(&bus), [(KeyRole::Current, 4, true)], "counted under the new one since 2");
}

async fn rotation_without_a_stop(rig: Rig) {
    // Before: everybody has the old secret.
    let bus = open(&rig, OLD, None).await;
    sent_with(&bus, OLD, 1).await;
    handled(&bus, 1).await;
    assert_eq!(used(&bus), [(KeyRole::Current, 1, true)]);
    sent_with(&bus, OLD, 2).await;
    drop(bus);
    // Both are known, the old one still signs: whoever is ahead with the new one is understood.
    let bus = open(&rig, OLD, Some(NEW)).await;
    sent_with(&bus, NEW, 20).await;
    let mut reader = consumer(&bus, Stream::Normal);
    for expected in [2, 20] {
        let delivery = recv(&mut reader).await;
        assert_eq!(epoch(&delivery), expected);
        delivery.ack().await.unwrap();
    }
    drop(reader);
    assert_eq!(used(&bus), [(KeyRole::Current, 1, true), (KeyRole::Previous, 1, true)]);
    sent_with(&bus, OLD, 2).await;
    drop(bus);

    // Turned round; the senders follow one by one. What was queued before is served.
    let bus = open(&rig, NEW, Some(OLD)).await;
    assert_eq!(used(&bus), [(KeyRole::Current, 0, false), (KeyRole::Previous, 0, false)]);
    handled(&bus, 2).await;
    sent_with(&bus, OLD, 3).await;
    handled(&bus, 3).await;
    sent_with(&bus, NEW, 4).await;
    handled(&bus, 4).await;
    let before = bus.keys()[1].last_used_s.unwrap();
    let now_s = now_ms() / 1000;
    assert!(now_s - before < 60, "a Unix time of just now: {before} at {now_s}");
    assert_eq!(used(&bus), [(KeyRole::Current, 1, true), (KeyRole::Previous, 2, true)]);
    publish(&bus, &state("run", 5)).await;
    handled(&bus, 5).await;
    assert_eq!(bus.keys()[0].verified, 2, "the service itself signs with the new one");
    assert_eq!(bus.keys()[1].verified, 2, "the old one is out of use");
    drop(bus);

    // Removed: a sender that was forgotten is refused, the others are served.
    let bus = open(&rig, NEW, None).await;
    sent_with(&bus, OLD, 6).await;
    sent_with(&bus, NEW, 7).await;
    handled(&bus, 7).await;
    assert_eq!(bus.metrics().refused_total(Stream::Normal, Refusal::BadSignature), 1);
    assert_eq!(used(&bus), [(KeyRole::Current, 1, true)]);
}

async fn forged_entries_are_no_use_of_a_secret(rig: Rig) {
    let bus = open(&rig, NEW, Some(OLD)).await;
    sent_with(&bus, "some other secret", 1).await;
    // Claiming a key id in an attribute is not having the key.
    let previous = bus.keys()[1].key.clone();
    let envelope = Envelope::of(&state("run", 2), NAME);
    let mut claimed = envelope.with(oona::attributes::KEY_ID, previous);
    claimed.secret = "some other secret".to_owned();
    claimed.append(&bus, Stream::Normal).await;
    sent_with(&bus, NEW, 3).await;
    handled(&bus, 3).await;
    assert_eq!(bus.metrics().refused_total(Stream::Normal, Refusal::BadSignature), 2);
    assert_eq!(used(&bus), [(KeyRole::Current, 1, true), (KeyRole::Previous, 0, false)]);
}
