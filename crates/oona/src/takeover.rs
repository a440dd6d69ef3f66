//! Entries that were delivered and not handled: what the dead and the silent hold, what was lost on
//! the way here, and what is due for its retry.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::entry::{EntryId, RawEntry};
use crate::error::{BusError, LogError};
use crate::fill::Filler;
use crate::log::{ConsumerSeen, PendingEntry, PendingOf};

impl Filler {
    pub(crate) async fn renew(&self) -> Result<(), LogError> {
        match self.post.renew().await {
            Err(BusError::Log(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Claims what the dead hold at once, what the silent hold after the idle time, and what this
    /// consumer was given without ever seeing it.
    pub(crate) async fn take_over(
        &mut self,
        seen: &[ConsumerSeen],
    ) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let mut wanted: Vec<PendingEntry> = Vec::new();
        let mut others = false;
        let judging = self.judging_from <= Instant::now();
        for consumer in seen.iter().filter(|consumer| consumer.pending > 0) {
            let own = consumer.name == post.seat.consumer;
            let silent = consumer.beat_age.is_some_and(|age| age > self.limits.consumer_ttl);
            let dead = judging && silent;
            let held = u64::try_from(post.work.len()).unwrap_or(u64::MAX);
            if own && consumer.pending <= held {
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
            wanted.extend(post.log.pending(&post.seat, of, self.batch_max).await?);
        }
        wanted.retain(|entry| !post.work.holds(entry.id));
        wanted.sort_by_key(|entry| entry.id);
        wanted.dedup_by_key(|entry| entry.id);
        self.unseen.correct(&mut wanted, &post.seat.consumer);
        if wanted.len() > self.batch_max {
            wanted.truncate(self.batch_max);
            self.next_tick = Instant::now();
        }
        self.claim_entries(wanted).await
    }

    /// Claims, but gives up what has been delivered too often: its handler crashes each time.
    async fn claim_entries(
        &mut self,
        wanted: Vec<PendingEntry>,
    ) -> Result<Vec<RawEntry>, LogError> {
        let post = Arc::clone(&self.post);
        let (hopeless, wanted): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|entry| entry.deliveries >= post.attempts_max);
        for entry in hopeless {
            let reason = "never acknowledged: its handler crashed or hung each time";
            match post.bury(entry.id, entry.deliveries, reason).await {
                Err(BusError::Log(error)) => return Err(error),
                _ => post.work.let_go(entry.id),
            }
        }
        let claimed = post.log.claim(&post.seat, &wanted).await;
        let claimed = claimed.inspect_err(|_| self.unseen.unanswered(&wanted))?;
        if !claimed.is_empty() {
            let entries = u64::try_from(claimed.len()).unwrap_or(u64::MAX);
            post.metrics.count_claimed(post.stream, entries);
            tracing::info!(stream = %post.stream, entries, "entries of a lost consumer taken over");
        }
        Ok(claimed)
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
        mine.retain(|entry| due.contains(&entry.id));
        for id in due.iter().filter(|id| mine.iter().all(|entry| entry.id != **id)) {
            // Taken over by somebody else meanwhile, or trimmed.
            post.work.let_go(*id);
        }
        mine.truncate(self.batch_max);
        self.unseen.correct(&mut mine, &post.seat.consumer);
        for entry in &mut mine {
            entry.idle = Duration::ZERO;
        }
        let claimed = post.log.claim(&post.seat, &mine).await;
        let claimed = claimed.inspect_err(|_| self.unseen.unanswered(&mine))?;
        for entry in &mine {
            if claimed.iter().all(|got| got.id != entry.id) {
                post.work.let_go(entry.id);
            }
        }
        Ok(claimed)
    }
}
