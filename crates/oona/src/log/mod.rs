//! What a log has to offer: append, read as a consumer of a group, acknowledge, list pending, claim,
//! trim, length; and beside the entries the claims of nonces and the heartbeats of consumers. Two
//! logs offer it. They know nothing of messages, signatures or retries: that is written once, above.
//!
//! Vocabulary and meaning are those of Redis Streams. An entry delivered to a consumer of a group is
//! pending there until it is acknowledged; claiming moves it to another consumer and counts as a
//! delivery; renewing resets its idle time and does not.

#[cfg(test)]
mod differential;
mod embedded;
mod redis;

use std::time::Duration;

use tokio::sync::watch;

use crate::config::{Config, LogChoice, LogKind};
use crate::durability::Durability;
use crate::entry::{EntryId, Fields, RawEntry};
use crate::error::{BusError, LogError};
use crate::lease::term::Answer;
use crate::lease::{Ask, Candidate};
use crate::live::Limits;

pub(crate) use self::embedded::open_bytes as embedded_files;
use self::embedded::{EmbeddedLog, EmbeddedReader};
pub use self::redis::{About, Capabilities, ServerKind, check_url, probe};
use self::redis::{RedisLog, RedisReader};
pub(crate) use self::redis::{hash_tag, is_cluster};

/// An entry to append: the stream's name in the log, and the fields.
pub(crate) type Append<'a> = (&'a str, [(&'a [u8], &'a [u8]); 2]);

/// The backlog of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupInfo {
    pub(crate) name: String,
    /// Everything up to here has been delivered.
    pub(crate) last_delivered: EntryId,
    /// Delivered and not acknowledged.
    pub(crate) pending: u64,
    /// Not yet delivered.
    pub(crate) lag: u64,
}

impl GroupInfo {
    /// What nobody has acknowledged.
    pub(crate) fn depth(&self) -> u64 {
        self.pending.saturating_add(self.lag)
    }
}

/// How much of a stream a group still needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupLife {
    pub(crate) oldest_pending: Option<EntryId>,
    /// Since its last consumer was heard of. A group never heard of counts from now on.
    pub(crate) silent_for: Duration,
}

/// A consumer as its group sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsumerSeen {
    pub(crate) name: String,
    pub(crate) pending: u64,
    /// Since its last heartbeat; `None` for one that never gave any (another program's).
    pub(crate) beat_age: Option<Duration>,
}

/// An entry delivered and not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingEntry {
    pub(crate) id: EntryId,
    pub(crate) consumer: String,
    pub(crate) idle: Duration,
    pub(crate) deliveries: u32,
}

/// Whose pending entries to list.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PendingOf<'a> {
    /// Those of one consumer.
    Consumer(&'a str),
    /// Those of anyone that have been idle for so long.
    Idle(Duration),
}

/// What the claim of a nonce found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NonceClaim {
    /// It was free.
    First,
    /// It belongs to this very entry: a redelivery.
    Again,
    /// It belongs to another entry: a replayed copy.
    Replay,
}

/// What trimming must leave, whatever the trim point says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spare {
    /// What some group has not acknowledged.
    Unacknowledged,
    /// Nothing: a group is known to be abandoned.
    Nothing,
}

/// One stream as one consumer of one group sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) stream: String,
    pub(crate) group: String,
    pub(crate) consumer: String,
}

impl Seat {
    pub(crate) fn no_group(&self) -> LogError {
        LogError::NoGroup { stream: self.stream.clone(), group: self.group.clone() }
    }
}

/// Why and how often an entry failed, to stand beside it in the dead-letter stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Epitaph {
    pub(crate) reason: String,
    pub(crate) attempts: u32,
}

/// What the replay of a dead letter found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replayed {
    /// It stands here now.
    Appended(EntryId),
    /// It was no longer there; nothing was done.
    Gone,
}

/// Either log. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Log {
    Embedded(EmbeddedLog),
    Redis(RedisLog),
}

/// Calls the method of the same name on whichever log this is.
macro_rules! either {
    ($self:ident, $log:ident => $call:expr) => {
        match $self {
            Log::Embedded($log) => $call,
            Log::Redis($log) => $call,
        }
    };
}

impl Log {
    pub(crate) async fn open(
        config: &Config,
        limits: watch::Receiver<Limits>,
    ) -> Result<Self, BusError> {
        match &config.log {
            LogChoice::Embedded { path } => {
                EmbeddedLog::open(path.clone(), config).await.map(Self::Embedded)
            }
            LogChoice::Redis { url } => RedisLog::open(url, config, limits).await.map(Self::Redis),
        }
    }

    pub(crate) fn kind(&self) -> LogKind {
        match self {
            Self::Embedded(_) => LogKind::Embedded,
            Self::Redis(_) => LogKind::Redis,
        }
    }

    /// The same log by a connection that normal traffic does not use.
    pub(crate) fn urgent(&self) -> Self {
        match self {
            Self::Embedded(log) => Self::Embedded(log.clone()),
            Self::Redis(log) => Self::Redis(log.urgent()),
        }
    }

    /// Appends, durably as far as the log can. `urgent` goes by a connection of its own.
    pub(crate) async fn append(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
        urgent: bool,
    ) -> Result<EntryId, LogError> {
        match self {
            Self::Embedded(log) => log.append(stream, fields).await,
            Self::Redis(log) => log.append(stream, fields, urgent).await,
        }
    }

    /// Appends and looks at the backlogs in the same round trip.
    pub(crate) async fn append_and_sample(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
        urgent: bool,
    ) -> Result<(EntryId, Vec<GroupInfo>), LogError> {
        match self {
            Self::Embedded(log) => {
                let id = log.append(stream, fields).await?;
                Ok((id, log.groups(stream).await?))
            }
            Self::Redis(log) => log.append_and_sample(stream, fields, urgent).await,
        }
    }

    /// Appends all or none, in order. Only what waited in a spool goes this way, hence on Redis.
    pub(crate) async fn append_many(
        &self,
        stream: &str,
        entries: &[[(&[u8], &[u8]); 2]],
        urgent: bool,
    ) -> Result<Vec<EntryId>, LogError> {
        match self {
            Self::Embedded(log) => {
                let mut ids = Vec::with_capacity(entries.len());
                for fields in entries {
                    ids.push(log.append(stream, fields).await?);
                }
                Ok(ids)
            }
            Self::Redis(log) => log.append_many(stream, entries, urgent).await,
        }
    }

    /// Appends answers and acknowledges what they answer, all or nothing.
    pub(crate) async fn answer(
        &self,
        answers: &[Append<'_>],
        seat: &Seat,
        ids: &[EntryId],
    ) -> Result<(), LogError> {
        either!(self, log => log.answer(answers, seat, ids).await)
    }

    /// Makes stream and group, from the stream's beginning. `false` when the group was there.
    pub(crate) async fn create_group(&self, stream: &str, group: &str) -> Result<bool, LogError> {
        either!(self, log => log.create_group(stream, group).await)
    }

    /// Removes a group and forgets its pending entries.
    pub(crate) async fn remove_group(&self, stream: &str, group: &str) -> Result<(), LogError> {
        either!(self, log => log.remove_group(stream, group).await)
    }

    /// The groups of a stream; none for a stream that does not exist.
    pub(crate) async fn groups(&self, stream: &str) -> Result<Vec<GroupInfo>, LogError> {
        either!(self, log => log.groups(stream).await)
    }

    pub(crate) async fn group_life(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<GroupLife, LogError> {
        either!(self, log => log.group_life(stream, group).await)
    }

    /// Claims nonces for the entries of a stream, all in one step.
    pub(crate) async fn claim_nonces(
        &self,
        stream: &str,
        nonces: Vec<(String, EntryId)>,
    ) -> Result<Vec<NonceClaim>, LogError> {
        either!(self, log => log.claim_nonces(stream, nonces).await)
    }

    pub(crate) async fn ack(&self, seat: &Seat, ids: &[EntryId]) -> Result<(), LogError> {
        if ids.is_empty() {
            return Ok(());
        }
        either!(self, log => log.ack(seat, ids).await)
    }

    /// Gives the heartbeat of this consumer (none of a nameless one) and lists all of the group.
    pub(crate) async fn tick(&self, seat: &Seat) -> Result<Vec<ConsumerSeen>, LogError> {
        either!(self, log => log.tick(seat).await)
    }

    /// Gives the heartbeat of this consumer.
    pub(crate) async fn beat(&self, seat: &Seat) -> Result<(), LogError> {
        match self {
            Self::Embedded(log) => log.tick(seat).await.map(drop),
            Self::Redis(log) => log.beat(seat).await,
        }
    }

    /// How many entries each consumer of the group has pending, in one command; those with none
    /// may be left out.
    pub(crate) async fn pending_counts(&self, seat: &Seat) -> Result<Vec<(String, u64)>, LogError> {
        match self {
            Self::Embedded(_) => {
                let seen = self.consumers(&seat.stream, &seat.group).await?;
                Ok(seen.into_iter().map(|one| (one.name, one.pending)).collect())
            }
            Self::Redis(log) => log.pending_counts(seat).await,
        }
    }

    /// The consumers of a group, seen from outside: nobody's heartbeat is given.
    pub(crate) async fn consumers(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<Vec<ConsumerSeen>, LogError> {
        let (stream, group) = (stream.to_owned(), group.to_owned());
        self.tick(&Seat { stream, group, consumer: String::new() }).await
    }

    pub(crate) async fn pending(
        &self,
        seat: &Seat,
        of: PendingOf<'_>,
        count: usize,
    ) -> Result<Vec<PendingEntry>, LogError> {
        either!(self, log => log.pending(seat, of, count).await)
    }

    /// Moves those entries to this consumer that are still as idle as listed. Entries that were
    /// trimmed meanwhile are acknowledged and left out.
    pub(crate) async fn claim(
        &self,
        seat: &Seat,
        entries: &[PendingEntry],
    ) -> Result<Vec<RawEntry>, LogError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        either!(self, log => log.claim(seat, entries).await)
    }

    /// Resets the idle time of the entries that are still this consumer's.
    pub(crate) async fn renew(&self, seat: &Seat, ids: &[EntryId]) -> Result<(), LogError> {
        if ids.is_empty() {
            return Ok(());
        }
        either!(self, log => log.renew(seat, ids).await)
    }

    /// Moves an entry to the dead-letter stream and acknowledges it, both or neither. `false` when
    /// somebody else had acknowledged it.
    pub(crate) async fn bury(
        &self,
        seat: &Seat,
        id: EntryId,
        dead_letter: &str,
        epitaph: &Epitaph,
    ) -> Result<bool, LogError> {
        either!(self, log => log.bury(seat, id, dead_letter, epitaph).await)
    }

    /// Ends a consumer: moves what it has pending to [`RELEASED`](crate::leaving::RELEASED), from whom
    /// others take it at once, and says how many that were. A delivery that is not among `counted` is
    /// no longer counted.
    pub(crate) async fn release(&self, seat: &Seat, counted: &[EntryId]) -> Result<u64, LogError> {
        either!(self, log => log.release(seat, counted).await)
    }

    /// Removes a consumer that has been silent for `silent` and has nothing pending, in one step.
    pub(crate) async fn remove_consumer(
        &self,
        seat: &Seat,
        silent: Duration,
    ) -> Result<bool, LogError> {
        either!(self, log => log.remove_consumer(seat, silent).await)
    }

    /// Moves a dead letter back to a stream under these fields: appends there and removes here, both
    /// or neither.
    pub(crate) async fn replay(
        &self,
        dead_letter: &str,
        id: EntryId,
        origin: &str,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Replayed, LogError> {
        either!(self, log => log.replay(dead_letter, id, origin, fields).await)
    }

    /// The place of the newest entry that stands in a stream.
    pub(crate) async fn newest(&self, stream: &str) -> Result<Option<EntryId>, LogError> {
        either!(self, log => log.newest(stream).await)
    }

    /// Up to `count` entries of each stream after the given place, with the stream's index.
    pub(crate) async fn read_after(
        &self,
        places: &[(&str, EntryId)],
        count: usize,
    ) -> Result<Vec<(usize, EntryId, Fields)>, LogError> {
        either!(self, log => log.read_after(places, count).await)
    }

    /// Removes the entries before `below`; says how many. A log that can sees for itself what is
    /// still needed.
    pub(crate) async fn trim(
        &self,
        stream: &str,
        below: EntryId,
        spare: Spare,
    ) -> Result<u64, LogError> {
        match self {
            Self::Embedded(log) => log.trim(stream, below).await,
            Self::Redis(log) => log.trim(stream, below, spare).await,
        }
    }

    /// What the server can do; the embedded log is none.
    pub(crate) fn capabilities(&self) -> Option<&Capabilities> {
        match self {
            Self::Embedded(_) => None,
            Self::Redis(log) => Some(log.capabilities()),
        }
    }

    /// What an append to this stream waits for.
    pub(crate) fn durability(&self, stream: &str) -> Durability {
        match self {
            Self::Embedded(_) => Durability::Fsync,
            Self::Redis(log) => log.durability(stream),
        }
    }

    /// Takes, renews and gives back leases, all in one step; and a number that changes whenever a
    /// consumer has left entries for others.
    pub(crate) async fn leases(
        &self,
        candidate: &Candidate,
        asks: &[Ask],
    ) -> Result<(Vec<Answer>, u64), LogError> {
        match self {
            // Nobody else can open it.
            Self::Embedded(_) => {
                let holder = candidate.holder.clone();
                let ours = Answer { version: 1, fencing: 1, is_ours: true, holder };
                Ok((vec![ours; asks.len()], 0))
            }
            Self::Redis(log) => log.leases(candidate, asks).await,
        }
    }

    pub(crate) async fn len(&self, stream: &str) -> Result<u64, LogError> {
        either!(self, log => log.len(stream).await)
    }

    /// Up to `count` entries after `after`, oldest first.
    pub(crate) async fn range(
        &self,
        stream: &str,
        after: EntryId,
        count: usize,
    ) -> Result<Vec<(EntryId, Fields)>, LogError> {
        either!(self, log => log.range(stream, after, count).await)
    }

    pub(crate) async fn delete(&self, stream: &str, id: EntryId) -> Result<bool, LogError> {
        either!(self, log => log.delete(stream, id).await)
    }

    /// The log's clock, Unix milliseconds.
    pub(crate) async fn now_ms(&self) -> Result<u64, LogError> {
        either!(self, log => log.now_ms().await)
    }

    /// The time for a message that is sent now, Unix milliseconds: by the log's clock as far as it is known, since readers
    /// judge by that one. A step of this machine's clock then makes nothing stale.
    pub(crate) fn stamp_ms(&self) -> u64 {
        let known = match self {
            // It is the same clock.
            Self::Embedded(_) => None,
            Self::Redis(log) => log.known_ms(),
        };
        known.unwrap_or_else(leyline::time::now_unix_ms)
    }

    /// Waits until everything handed to the log so far is as durable as it gets.
    pub(crate) async fn flush(&self) -> Result<(), LogError> {
        match self {
            Self::Embedded(log) => log.flush().await,
            Self::Redis(_) => Ok(()),
        }
    }

    /// A reader with what a blocking read needs for itself. Connects at the first read.
    pub(crate) fn reader(&self, seat: Seat) -> Reader {
        match self {
            Self::Embedded(log) => Reader::Embedded(log.reader(seat)),
            Self::Redis(log) => Reader::Redis(Box::new(log.reader(seat))),
        }
    }
}

/// Reads new entries for one seat.
#[derive(Debug)]
pub(crate) enum Reader {
    Embedded(EmbeddedReader),
    Redis(Box<RedisReader>),
}

impl Reader {
    /// Up to `count` entries that nobody in the group has got yet; waits up to `block` for the
    /// first. Empty after that time.
    pub(crate) async fn read(
        &mut self,
        count: usize,
        block: Duration,
    ) -> Result<Vec<RawEntry>, LogError> {
        match self {
            Self::Embedded(reader) => reader.read(count, block).await,
            Self::Redis(reader) => reader.read(count, block).await,
        }
    }
}

/// Fields that stand beside a dead letter.
pub(crate) mod dead {
    pub(crate) const REASON: &str = "reason";
    pub(crate) const ATTEMPTS: &str = "attempts";
    pub(crate) const ORIGIN: &str = "origin_stream";
    pub(crate) const ENTRY: &str = "entry_id";
    pub(crate) const GROUP: &str = "group";
}
