//! How the bus stands: streams, groups, consumers and secrets, seen from outside. Nothing is
//! consumed, and no heartbeat is given.

use std::time::Duration;

use crate::bus::Bus;
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::log::{GroupInfo, PendingOf, Seat};
use crate::stream::Stream;

/// Pending entries looked at for each group; more are not counted as redelivered.
const PENDING_LOOK_MAX: usize = 1000;

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStanding {
    /// Which.
    pub stream: Stream,
    /// Its name in the log.
    pub name: String,
    /// Entries that stand in it.
    pub length: u64,
    /// The oldest of them.
    pub oldest: Option<EntryId>,
    /// The newest of them.
    pub newest: Option<EntryId>,
    /// Who reads it, by name.
    pub groups: Vec<GroupStanding>,
}

/// One group of consumers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStanding {
    /// Its name.
    pub name: String,
    /// Delivered, not yet acknowledged.
    pub pending: u64,
    /// Not yet delivered.
    pub lag: u64,
    /// Pending entries that were delivered more than once; 1000 pending entries are looked at.
    pub redelivered: u64,
    /// The oldest pending entry.
    pub oldest_pending: Option<EntryId>,
    /// Its consumers, by name.
    pub consumers: Vec<ConsumerStanding>,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerStanding {
    /// Its name.
    pub name: String,
    /// What it has not acknowledged yet.
    pub pending: u64,
    /// Since its last heartbeat; `None` for one that gave none to this log since it was opened.
    pub beat_age: Option<Duration>,
}

/// What one group has not acknowledged of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Entries, delivered or not.
    pub depth: u64,
    /// The oldest of them; `None` when there is none, or when it was trimmed.
    pub oldest: Option<EntryId>,
}

/// Which of the secrets in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyRole {
    /// The one that signs.
    Current,
    /// The one that is being rotated out.
    Previous,
}

impl KeyRole {
    /// How it is called where people read it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
        }
    }
}

/// What this process has verified with one secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStanding {
    /// First 8 hex digits of the secret's SHA-256.
    pub key: String,
    /// Which of the secrets it is.
    pub role: KeyRole,
    /// Entries whose signature it made, since the start.
    pub verified: u64,
    /// Unix seconds of the last of them.
    pub last_used_s: Option<u64>,
}

impl Bus {
    /// How every stream stands. The numbers of one stream are read one after the other and may
    /// differ by what happened between.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn standing(&self) -> Result<Vec<StreamStanding>, BusError> {
        let mut standing = Vec::with_capacity(Stream::ALL.len());
        for stream in Stream::ALL {
            standing.push(self.stream_standing(stream).await?);
        }
        Ok(standing)
    }

    /// What a group has not acknowledged yet, and the oldest of it. Without a backlog, and for a group
    /// that does not exist, this is one cheap command of the log; else it is two.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn backlog(&self, stream: Stream, group: &str) -> Result<Backlog, BusError> {
        let (log, name) = (&self.0.log, self.name(stream));
        let groups = log.groups(name).await?;
        let Some(info) = groups.iter().find(|info| info.name == group) else {
            return Ok(Backlog::default());
        };
        let depth = info.depth();
        // What was delivered is older than what was not.
        let oldest = if info.pending > 0 {
            let (stream, group) = (name.to_owned(), group.to_owned());
            let seat = Seat { stream, group, consumer: String::new() };
            let pending = log.pending(&seat, PendingOf::Idle(Duration::ZERO), 1).await?;
            pending.first().map(|entry| entry.id)
        } else if info.lag > 0 {
            let next = log.read_after(&[(name, info.last_delivered)], 1).await?;
            next.first().map(|(_, id, _)| *id)
        } else {
            None
        };
        Ok(Backlog { depth, oldest })
    }

    /// Consumers of a group that have given a heartbeat lately and are not this process's.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn neighbours(&self, stream: Stream, group: &str) -> Result<Vec<String>, BusError> {
        let found = match self.0.log.consumers(self.name(stream), group).await {
            Err(LogError::NoGroup { .. }) => Vec::new(),
            found => found?,
        };
        let (ttl, ours) = (self.0.config.consumer_ttl, &self.0.config.consumer);
        let lives = |age: std::time::Duration| age <= ttl;
        let living = found.into_iter().filter(|one| one.beat_age.is_some_and(lives));
        Ok(living.map(|one| one.name).filter(|name| !name.starts_with(ours.as_str())).collect())
    }

    async fn stream_standing(&self, stream: Stream) -> Result<StreamStanding, BusError> {
        let (log, name) = (&self.0.log, self.name(stream));
        let mut groups = Vec::new();
        for group in log.groups(name).await? {
            match self.group_standing(name, &group).await {
                // Removed since it was listed.
                Err(LogError::NoGroup { .. }) => {}
                found => groups.push(found?),
            }
        }
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(StreamStanding {
            stream,
            name: name.to_owned(),
            length: log.len(name).await?,
            oldest: log.range(name, EntryId::ZERO, 1).await?.first().map(|(id, _)| *id),
            newest: log.newest(name).await?,
            groups,
        })
    }

    async fn group_standing(
        &self,
        stream: &str,
        group: &GroupInfo,
    ) -> Result<GroupStanding, LogError> {
        let log = &self.0.log;
        let seat =
            Seat { stream: stream.to_owned(), group: group.name.clone(), consumer: String::new() };
        let of = PendingOf::Idle(Duration::ZERO);
        let pending = match group.pending {
            0 => Vec::new(),
            _ => log.pending(&seat, of, PENDING_LOOK_MAX).await?,
        };
        let redelivered = pending.iter().filter(|entry| entry.deliveries > 1).count();
        let mut consumers: Vec<ConsumerStanding> = log
            .consumers(stream, &group.name)
            .await?
            .into_iter()
            .map(|seen| ConsumerStanding {
                name: seen.name,
                pending: seen.pending,
                beat_age: seen.beat_age.filter(|age| *age != Duration::MAX),
            })
            .collect();
        consumers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(GroupStanding {
            name: group.name.clone(),
            pending: group.pending,
            lag: group.lag,
            redelivered: u64::try_from(redelivered).unwrap_or(u64::MAX),
            oldest_pending: pending.iter().map(|entry| entry.id).min(),
            consumers,
        })
    }

    /// What this process has verified with each secret in force: a previous secret that is no longer
    /// used can be removed.
    pub fn keys(&self) -> Vec<KeyStanding> {
        let ring = self.0.live.keyring();
        let roles =
            [(KeyRole::Current, Some(ring.current_id())), (KeyRole::Previous, ring.previous_id())];
        let standing = |(role, id): (KeyRole, Option<&leyline::sign::KeyId>)| {
            let used = self.0.metrics.key_use(id?);
            let last_used_s = used.last_used_s();
            let (key, verified) = (id?.to_string(), used.verified());
            Some(KeyStanding { key, role, verified, last_used_s })
        };
        roles.into_iter().filter_map(standing).collect()
    }
}
