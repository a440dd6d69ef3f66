//! Faults of the server: killed, stopped, emptied, paused, full, demoted.

use std::time::Duration;

use leyline::wire::MessagePriority;
use oona::{LogError, PublishError, Stream};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::book::{Again, Allowed};
use super::trial::{Over, World, spooled_trial, trial};
use crate::proxy::Fault;
use crate::rig::state;

const ALWAYS: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
const EVERY_SECOND: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"];
/// How far back a server with `appendfsync everysec` may forget.
const FORGETS: Duration = Duration::from_secs(2);
const OUTAGE: Duration = Duration::from_secs(2);

/// All at once: they mostly wait.
#[tokio::test]
async fn nothing_is_lost_while_the_server_fails() {
    tokio::join!(
        trial("kill -9, appendfsync always", &ALWAYS, async |world: &mut World| {
            killed(world).await;
            Over::now()
        }),
        trial("kill -9, appendfsync everysec", &EVERY_SECOND, async |world: &mut World| {
            let killed = killed(world).await;
            let lost_between = Some((killed - FORGETS, killed));
            let allowed = Allowed { lost_between, handled_again: Again::AfterForgetting };
            let lost = world.book.missing(&Allowed::default()).len();
            println!("kill -9, appendfsync everysec: {lost} messages not handled yet");
            Over { at: Instant::now(), allowed }
        }),
        trial("SIGSTOP and SIGCONT", &[], stopped),
        trial("FLUSHALL", &[], async |world: &mut World| {
            let begun = Instant::now();
            world.server.ask::<()>(&["FLUSHALL"]).await;
            // What stood there unhandled is gone, and with it the claims.
            let lost_between = Some((begun - FORGETS, Instant::now()));
            let allowed = Allowed { lost_between, handled_again: Again::AfterForgetting };
            Over { at: Instant::now(), allowed }
        }),
        trial("CLIENT PAUSE WRITE", &[], async |world: &mut World| paused(world, "WRITE").await),
        trial("CLIENT PAUSE ALL", &[], async |world: &mut World| paused(world, "ALL").await),
        trial("read-only replica", &[], demoted),
        trial("maxmemory reached", &[], full),
    );
}

/// What is told to wait on disk is as safe as what is told to be published.
#[tokio::test]
async fn nothing_is_lost_that_waits_in_the_spool() {
    tokio::join!(
        spooled_trial("kill -9, appendfsync always", &ALWAYS, async |world: &mut World| {
            killed(world).await;
            Over::now()
        }),
        spooled_trial("SIGSTOP and SIGCONT", &[], stopped),
        spooled_trial("connections half open", &[], async |world: &mut World| {
            world.proxy.set(Fault::HalfOpen);
            sleep(Duration::from_millis(3_500)).await;
            world.proxy.heal();
            Over::now()
        }),
        spooled_trial("read-only replica", &[], demoted),
    );
}

async fn stopped(world: &mut World) -> Over {
    let pid = Pid::from_raw(world.server.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    sleep(Duration::from_secs(4)).await;
    kill_process(pid, Signal::CONT).unwrap();
    Over::now()
}

/// Replica of a master that does not exist: it keeps its data and takes no writes.
async fn demoted(world: &mut World) -> Over {
    world.server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    sleep(OUTAGE).await;
    world.server.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    Over::now()
}

/// A full server takes nothing new, and the publisher is told so.
async fn full(world: &mut World) -> Over {
    world.server.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let lane = (Stream::Normal, MessagePriority::Normal);
    let refused = world.bus.publish(lane.0, lane.1, "test", &state("full", 1_000_000)).await;
    match refused {
        Err(PublishError::Log(LogError::Refused { source, .. })) => {
            assert!(source.to_string().contains("OOM"), "{source}");
        }
        // The breaker had opened already.
        Ok(outcome) => assert!(!outcome.is_sent(), "{outcome:?}"),
        Err(other) => panic!("{other}"),
    }
    sleep(OUTAGE).await;
    world.server.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    Over::now()
}

/// Says when it was killed.
async fn killed(world: &mut World) -> Instant {
    let killed = Instant::now();
    world.server.kill();
    sleep(OUTAGE).await;
    world.server.restart();
    killed
}

async fn paused(world: &mut World, which: &str) -> Over {
    let time = Duration::from_millis(2_500);
    let begun = Instant::now();
    world.server.ask::<()>(&["CLIENT", "PAUSE", &time.as_millis().to_string(), which]).await;
    tokio::time::sleep_until(begun + time).await;
    Over::now()
}
