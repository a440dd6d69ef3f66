//! The records in memory: bounded, least recently used goes first. Decides without a clock.

use std::collections::HashMap;
use std::time::Duration;

use leyline::ids::BlueprintId;
use tokio::time::Instant;

use crate::record::Record;

#[derive(Debug)]
struct Entry {
    record: Record,
    read_at: Instant,
    used: u64,
}

/// What a lookup found.
#[derive(Debug, PartialEq)]
pub(crate) enum Cached {
    /// Good to hand out.
    Fresh(Record),
    /// To be read again; good enough while the store cannot be asked.
    Aged(Record),
    /// Older than the TTL; dropped.
    Expired,
    /// Not here.
    Absent,
}

/// Newest default records by blueprint.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: HashMap<BlueprintId, Entry>,
    len_max: usize,
    fresh: Duration,
    ttl: Option<Duration>,
    uses: u64,
}

impl Cache {
    pub(crate) fn new(len_max: usize, fresh: Duration, ttl: Option<Duration>) -> Self {
        Self { entries: HashMap::new(), len_max: len_max.max(1), fresh, ttl, uses: 0 }
    }

    pub(crate) fn get(&mut self, blueprint: &BlueprintId, now: Instant) -> Cached {
        let Some(entry) = self.entries.get_mut(blueprint) else { return Cached::Absent };
        let age = now.saturating_duration_since(entry.read_at);
        if self.ttl.is_some_and(|ttl| ttl < age) {
            self.entries.remove(blueprint);
            return Cached::Expired;
        }
        self.uses += 1;
        entry.used = self.uses;
        let record = entry.record.clone();
        if age <= self.fresh { Cached::Fresh(record) } else { Cached::Aged(record) }
    }

    /// Keeps a record as just read, and says whether another had to go.
    pub(crate) fn put(&mut self, record: Record, now: Instant) -> bool {
        let blueprint = record.job.blueprint.clone();
        let full = self.entries.len() >= self.len_max && !self.entries.contains_key(&blueprint);
        if full {
            // At most 128 entries, so looking at each costs less than keeping them in order.
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(blueprint, _)| blueprint.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.uses += 1;
        self.entries.insert(blueprint, Entry { record, read_at: now, used: self.uses });
        full
    }

    pub(crate) fn remove(&mut self, blueprint: &BlueprintId) {
        self.entries.remove(blueprint);
    }

    pub(crate) fn remove_digest(&mut self, digest: &kernel::Digest) {
        self.entries.retain(|_, entry| entry.record.digest != *digest);
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Drops what is older than the TTL, and says how many that were.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let Some(ttl) = self.ttl else { return 0 };
        let before = self.entries.len();
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.read_at) <= ttl);
        (before - self.entries.len()) as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
