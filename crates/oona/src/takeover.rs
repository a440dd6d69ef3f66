//! Entries that were delivered and not handled: what the dead and the silent hold, what was lost on
//! the way here, and what is due for its retry.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::dead_letter::NEVER_ACKNOWLEDGED;
use crate::entry::{EntryId, RawEntry};
use crate::error::{BusError, LogError};
use crate::fill::Filler;
use crate::log::{ConsumerSeen, PendingEntry, PendingOf};

/// What nobody can say the end of is looked at again after this.
const LOOK_SOON: Duration = Duration::from_secs(1);

impl Filler {
    pub(crate) async fn renew(&self) -> Result<(), LogError> {
        match self.post.renew().await {
            Err(BusError::Log(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Looks for what lost consumers hold. Where nobody else has anything pending, which is nearly
    /// always, this is one cheap command.
    pub(crate) async fn look(&mut self) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let pending = post.log.pending_counts(&post.seat).await?;
        self.next_look = Instant::now() + self.limits.consumer_ttl;
        if pending.iter().all(|(name, count)| *name == post.seat.consumer && !self.misses(*count)) {
            return Ok(Vec::new());
        }
        let seen = post.log.consumers(&post.seat.stream, &post.seat.group).await?;
        let others = |one: &&ConsumerSeen| one.pending > 0 && one.name != post.seat.consumer;
        for other in seen.iter().filter(others) {
            // One that is silent from now on is dead then; what other programs hold has no such
            // time and is looked at again soon.
            let left = other.beat_age.and_then(|age| self.limits.consumer_ttl.checked_sub(age));
            let again = left.map_or(LOOK_SOON, |left| left + Duration::from_millis(1));
            let again = again.max(LOOK_SOON.min(self.limits.consumer_ttl / 10));
            self.next_look = self.next_look.min(Instant::now() + again);
        }
        self.take_over(&seen).await
    }

    /// Whether this consumer has been given more than it holds. Of a read in flight nobody knows
    /// yet what it was given.
    fn misses(&self, pending: u64) -> bool {
        let held = u64::try_from(self.post.work.len()).unwrap_or(u64::MAX);
        !self.reading.is_in_flight() && pending > held
    }

    /// Of entries that have lain unseen in this process, those that nobody has taken over meanwhile.
    pub(crate) async fn still_mine(
        &mut self,
        mut read: Vec<RawEntry>,
    ) -> Result<Vec<RawEntry>, LogError> {
        let Some(last) = read.last().map(|entry| entry.id) else { return Ok(read) };
        let post = Arc::clone(&self.post);
        let ids: Vec<EntryId> = read.iter().map(|entry| entry.id).collect();
        post.log.renew(&post.seat, &ids).await?;
        let of = PendingOf::Consumer(&post.seat.consumer);
        let count = ids.len() + post.work.len() + self.limits.in_work_max;
        let mine = post.log.pending(&post.seat, of, count).await?;
        let mine: HashSet<EntryId> = mine.into_iter().map(|entry| entry.id).collect();
        read.retain(|entry| mine.contains(&entry.id));
        tracing::debug!(stream = %post.stream, %last, kept = read.len(), "a read was looked at late");
        Ok(read)
    }

    /// Claims what the dead hold at once, what the silent hold after the idle time, and what this
    /// consumer was given without ever seeing it.
    async fn take_over(&mut self, seen: &[ConsumerSeen]) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let mut wanted: Vec<PendingEntry> = Vec::new();
        let mut others = false;
        let judging = self.judging_from <= Instant::now();
        for consumer in seen.iter().filter(|consumer| consumer.pending > 0) {
            let own = consumer.name == post.seat.consumer;
            let silent = consumer.beat_age.is_some_and(|age| age > self.limits.consumer_ttl);
            let dead = judging && silent;
            if own && !self.misses(consumer.pending) {
                continue;
            }
            if own || dead {
                let of = PendingOf::Consumer(&consumer.name);
                // Own entries that are held come first in the list: look past them.
                let count = self.batch_max + if own { post.work.len() } else { 0 };
                wanted.extend(post.log.pending(&post.seat, of, count).await?);
            } else {
                others = true;
            }
        }
        if others && judging {
            let of = PendingOf::Idle(post.claim_idle);
            let idle = post.log.pending(&post.seat, of, self.batch_max).await?;
            // What a read in flight has been given is neither lost nor idle.
            let own = |entry: &PendingEntry| entry.consumer == post.seat.consumer;
            let unknown = self.reading.is_in_flight();
            wanted.extend(idle.into_iter().filter(|entry| !(unknown && own(entry))));
        }
        wanted.retain(|entry| !post.work.holds(entry.id));
        wanted.sort_by_key(|entry| entry.id);
        wanted.dedup_by_key(|entry| entry.id);
        self.unseen.correct(&mut wanted, &post.seat.consumer);
        // A full list may have been cut off.
        if wanted.len() >= self.batch_max {
            wanted.truncate(self.batch_max);
            self.next_look = Instant::now();
        }
        self.claim_entries(wanted).await
    }

    /// Claims, but gives up what has been delivered too often: its handler crashes each time.
    async fn claim_entries(
        &mut self,
        wanted: Vec<PendingEntry>,
    ) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let wanted = self.bury_hopeless(wanted).await?;
        let claimed = post.log.claim(&post.seat, &wanted).await;
        let claimed = claimed.inspect_err(|_| self.unseen.unanswered(&wanted))?;
        if !claimed.is_empty() {
            let entries = u64::try_from(claimed.len()).unwrap_or(u64::MAX);
            post.metrics.count_claimed(post.stream, entries);
            tracing::info!(stream = %post.stream, entries, "entries of a lost consumer taken over");
        }
        Ok(claimed)
    }

    /// Gives up what has been delivered too often, and returns the rest.
    async fn bury_hopeless(
        &self,
        entries: Vec<PendingEntry>,
    ) -> Result<Vec<PendingEntry>, LogError> {
        let post = &self.post;
        let (hopeless, rest): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.deliveries >= post.attempts_max);
        for entry in hopeless {
            match post.bury(entry.id, entry.deliveries, NEVER_ACKNOWLEDGED).await {
                Err(BusError::Log(error)) => return Err(error),
                _ => post.work.let_go(entry.id),
            }
        }
        Ok(rest)
    }

    /// Entries before `first` that this consumer was given in a reply that never arrived.
    pub(crate) async fn fetch_lost(&mut self, first: EntryId) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let of = PendingOf::Consumer(&post.seat.consumer);
        let count = self.batch_max + post.work.len();
        let mut lost = post.log.pending(&post.seat, of, count).await?;
        lost.retain(|entry| entry.id < first && !post.work.holds(entry.id));
        lost.truncate(self.batch_max);
        self.unseen.correct(&mut lost, &post.seat.consumer);
        self.claim_entries(lost).await
    }

    /// Fetches entries of this consumer once more; the log counts the delivery.
    pub(crate) async fn retry(&mut self, due: &[EntryId]) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let count = self.batch_max + post.work.len();
        let of = PendingOf::Consumer(&post.seat.consumer);
        let mut mine = post.log.pending(&post.seat, of, count).await?;
        let wanted: HashSet<EntryId> = due.iter().copied().collect();
        mine.retain(|entry| wanted.contains(&entry.id));
        let found: HashSet<EntryId> = mine.iter().map(|entry| entry.id).collect();
        for id in due.iter().filter(|id| !found.contains(id)) {
            // Taken over by somebody else meanwhile, or trimmed.
            post.work.let_go(*id);
        }
        mine.truncate(self.batch_max);
        self.unseen.correct(&mut mine, &post.seat.consumer);
        let mine = self.bury_hopeless(mine).await?;
        // As idle as listed, or not at all: what somebody else took over since is not taken back. What
        // was only renewed meanwhile is still due, and listed again at once.
        let claimed = post.log.claim(&post.seat, &mine).await;
        let claimed = claimed.inspect_err(|_| self.unseen.unanswered(&mine))?;
        Ok(claimed)
    }
}
