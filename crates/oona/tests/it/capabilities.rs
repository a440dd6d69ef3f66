//! What servers of several versions can do, and that the bus works on each of them.

use std::path::PathBuf;

use oona::{Bus, Capabilities, LogChoice, Metrics, ServerKind, Stream};

use crate::connections::everything_else;
use crate::redis_server::{RedisServer, newer, usual, valkey};
use crate::rig::*;

/// Opens a bus on that server, runs messages, retries, dead letters and trimming on it, and gives
/// what it found out about the server.
async fn works_on(program: PathBuf) -> Capabilities {
    let server = RedisServer::start_program(program, &["--save", "", "--appendonly", "no"]);
    let config = quick(LogChoice::Redis { url: server.url() });
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.ack().await.unwrap();
    drop(reader);
    everything_else(&bus).await;
    let about = oona::probe(&server.url(), &oona::RedisAccess::default()).await.unwrap();
    assert_eq!(Some(&about.capabilities), bus.capabilities());
    assert_eq!((about.aof, about.is_replica, about.replicas), (Some(false), Some(false), Some(0)));
    assert_eq!((about.appendfsync.as_deref(), about.eviction), (Some("everysec"), None));
    about.capabilities
}

#[tokio::test]
async fn the_usual_server() {
    let found = works_on(usual()).await;
    assert!(found.version >= (7, 0, 0), "{found}");
    let waits = found.server == ServerKind::Valkey || found.version >= (7, 2, 0);
    assert_eq!(found.waitaof, waits, "{found}");
}

#[tokio::test]
async fn a_newer_redis() {
    let found = works_on(newer()).await;
    assert_eq!(found.server, ServerKind::Redis);
    assert!(found.version >= (7, 2, 0) && found.waitaof, "{found}");
    assert_eq!(found.acked_trim, found.version >= (8, 2, 0), "{found}");
}

#[tokio::test]
async fn valkey_is_known_by_its_own_name() {
    let found = works_on(valkey()).await;
    assert_eq!(found.server, ServerKind::Valkey);
    assert!(found.waitaof && !found.acked_trim, "{found}");
    assert!(found.to_string().starts_with("Valkey "), "{found}");
}
