//! Faults of the way between client and server. The server itself is well throughout.

use std::time::Duration;

use tokio::time::sleep;

use super::trial::{Over, World, trial};
use crate::proxy::Fault;

/// Longer than a publisher's patience and a blocked read, so that everything runs into the fault.
const LONG: Duration = Duration::from_millis(3_500);
const SHORT: Duration = Duration::from_millis(1_500);

/// All at once: they mostly wait.
#[tokio::test]
async fn nothing_is_lost_while_connections_fail() {
    tokio::join!(
        trial("connections cut", &[], cut),
        trial("connections refused", &[], async |world: &mut World| {
            during(world, Fault::Refuse, SHORT).await
        }),
        trial("connections half open", &[], async |world: &mut World| {
            during(world, Fault::HalfOpen, LONG).await
        }),
        trial("delay and jitter", &[], async |world: &mut World| {
            let (fixed, jitter) = (Duration::from_millis(40), Duration::from_millis(80));
            during(world, Fault::Delay { fixed, jitter }, SHORT).await
        }),
        trial("delay beyond every patience", &[], async |world: &mut World| {
            let (fixed, jitter) = (Duration::from_millis(2_600), Duration::from_millis(800));
            during(world, Fault::Delay { fixed, jitter }, LONG).await
        }),
        trial("answers drip", &[], async |world: &mut World| {
            let interval = Duration::from_millis(10);
            during(world, Fault::Drip { bytes: 16, interval }, SHORT).await
        }),
        trial("reset in mid-reply", &[], async |world: &mut World| {
            during(world, Fault::ResetAfter { bytes: 700 }, LONG).await
        }),
    );
}

async fn cut(world: &mut World) -> Over {
    for _ in 0..5 {
        world.proxy.cut();
        sleep(Duration::from_millis(150)).await;
    }
    world.proxy.cut();
    Over::now()
}

async fn during(world: &mut World, fault: Fault, time: Duration) -> Over {
    world.proxy.set(fault);
    sleep(time).await;
    world.proxy.heal();
    Over::now()
}
