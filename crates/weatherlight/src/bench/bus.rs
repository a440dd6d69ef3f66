//! Round trips over the bus, on a log that nothing else uses.

use std::io;

use leyline::sign::{Keyring, Secret};
use oona::{Bus, LogChoice};

use super::{Figure, milliseconds, prefetch};

const ROUNDS: usize = 500;
/// A telemetry packet of ordinary size.
const PAYLOAD_BYTES: usize = 512;

/// Why a measurement over the bus ended early.
#[derive(Debug, thiserror::Error)]
pub enum BusBenchError {
    /// The directory for the measurement.
    #[error("cannot make a directory for the measurement")]
    Directory(#[from] io::Error),
    /// The bus.
    #[error("the bus fails")]
    Bus(#[from] oona::BusError),
    /// A message could not be published.
    #[error("a message was not published")]
    Publish(#[from] oona::PublishError),
    /// A round trip.
    #[error("the round trip cannot be measured")]
    RoundTrip(#[from] oona::bench::BenchError),
    /// The library.
    #[error("the library does not open")]
    Library(#[from] urza::OpenError),
    /// The kernel that is asked for.
    #[error("the library does not store")]
    Store(#[from] urza::StoreError),
    /// No answer.
    #[error("a request was not answered within {0:?}")]
    Unanswered(std::time::Duration),
}

pub(super) async fn measure(redis_url: Option<&str>) -> Result<Vec<Figure>, BusBenchError> {
    let directory = Scratch::new()?;
    let (log, kind) = match redis_url {
        Some(url) => (LogChoice::Redis { url: url.to_owned() }, "redis"),
        None => (LogChoice::Embedded { path: directory.0.join("log.redb") }, "embedded"),
    };
    let config = oona::Config { log, ..oona::Config::default() };
    let secret = Secret::new(uuid::Uuid::new_v4().to_string());
    let bus = Bus::open(config, Keyring::new(&secret, None), oona::Metrics::detached()).await?;
    let bare = oona::bench::round_trips(&bus, ROUNDS, PAYLOAD_BYTES).await?;
    let bare_ms = milliseconds(bare.round_trip_baseline);
    let prefetch_ms = milliseconds(prefetch::measure(&bus, &directory.0).await?);
    let name = |what: &str| format!("{what}_{kind}");
    Ok(vec![
        Figure::new(
            name("bus_publish"),
            "ms",
            milliseconds(bare.publish),
            milliseconds(bare.publish_baseline),
            25.0,
        ),
        Figure::new(name("bus_round_trip"), "ms", milliseconds(bare.round_trip), bare_ms, 100.0),
        // A request and its answer are two bare round trips of the log, without any work between.
        Figure::new(name("prefetch_round_trip_warm"), "ms", prefetch_ms, 2.0 * bare_ms, 100.0),
    ])
}

/// A directory of our own below the system's temporary one, removed when dropped.
pub(crate) struct Scratch(pub(crate) std::path::PathBuf);

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let name = format!("weatherlight-bench-{}", uuid::Uuid::new_v4());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is the system's to clear away.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
