//! Streams, groups, consumers and secrets in numbers.

use oona::{Bus, BusError, EntryId, GroupStanding, LogKind, StreamStanding};
use serde::{Deserialize, Serialize};

use crate::health::KeyHealth;

/// How the bus stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandingView {
    /// Which log: `embedded` or `redis`.
    pub log: String,
    /// What the server is and what it can do beyond Redis 7.0; absent for the embedded log.
    #[serde(default)]
    pub server: Option<String>,
    /// Unix milliseconds by the log's clock, against which ages are told.
    pub now_ms: u64,
    /// Every stream.
    pub streams: Vec<StreamView>,
    /// The secrets in force, and what the asked process has verified with each.
    pub keys: Vec<KeyHealth>,
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamView {
    /// By its purpose.
    pub stream: String,
    /// Its name in the log.
    pub name: String,
    /// How durable a message is once its publisher was told: `none`, `wait:N`, `waitaof:N`, `fsync`.
    #[serde(default)]
    pub durability: String,
    /// Entries that stand in it, acknowledged or not.
    pub length: u64,
    /// Age of the oldest of them.
    pub oldest_age_ms: Option<u64>,
    /// Age of the newest of them.
    pub newest_age_ms: Option<u64>,
    /// Who reads it.
    pub groups: Vec<GroupView>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// Delivered, not yet acknowledged.
    pub pending: u64,
    /// Not yet delivered.
    pub lag: u64,
    /// Pending and delivered more than once.
    pub redelivered: u64,
    /// Age of the oldest pending entry.
    pub oldest_pending_age_ms: Option<u64>,
    /// Its consumers.
    pub consumers: Vec<ConsumerView>,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsumerView {
    /// Its name.
    pub name: String,
    /// What it has not acknowledged.
    pub pending: u64,
    /// Since its last heartbeat; absent for one that gave none.
    pub heartbeat_age_ms: Option<u64>,
}

/// Looks at everything.
///
/// # Errors
/// [`BusError::Log`] when the log fails.
pub async fn standing(bus: &Bus) -> Result<StandingView, BusError> {
    let now_ms = bus.log_time_ms().await?;
    let streams = bus.standing().await?;
    Ok(StandingView {
        log: match bus.log_kind() {
            LogKind::Embedded => "embedded",
            LogKind::Redis => "redis",
        }
        .to_owned(),
        server: bus.capabilities().map(ToString::to_string),
        now_ms,
        streams: streams.into_iter().map(|stream| stream_view(bus, stream, now_ms)).collect(),
        keys: keys(bus),
    })
}

/// What this process has verified with each secret.
pub fn keys(bus: &Bus) -> Vec<KeyHealth> {
    let view = |key: oona::KeyStanding| KeyHealth {
        key: key.key,
        role: key.role.label().to_owned(),
        verified: key.verified,
        last_used_s: key.last_used_s,
    };
    bus.keys().into_iter().map(view).collect()
}

fn stream_view(bus: &Bus, stream: StreamStanding, now_ms: u64) -> StreamView {
    let age = |id: Option<EntryId>| id.map(|id| now_ms.saturating_sub(id.ms));
    StreamView {
        stream: stream.stream.label().to_owned(),
        durability: bus.durability(stream.stream).to_string(),
        name: stream.name,
        length: stream.length,
        oldest_age_ms: age(stream.oldest),
        newest_age_ms: age(stream.newest),
        groups: stream.groups.into_iter().map(|group| group_view(group, now_ms)).collect(),
    }
}

fn group_view(group: GroupStanding, now_ms: u64) -> GroupView {
    let consumer = |consumer: oona::ConsumerStanding| ConsumerView {
        name: consumer.name,
        pending: consumer.pending,
        heartbeat_age_ms: consumer
            .beat_age
            .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    };
    GroupView {
        name: group.name,
        pending: group.pending,
        lag: group.lag,
        redelivered: group.redelivered,
        oldest_pending_age_ms: group.oldest_pending.map(|id| now_ms.saturating_sub(id.ms)),
        consumers: group.consumers.into_iter().map(consumer).collect(),
    }
}
