//! The worker that keeps a log small and this process's consumers alive.
//!
//! What concerns this process is done in every process: heartbeats, what ended consumers leave, the
//! backlogs that admission goes by. What concerns the log is done by whoever has the lease
//! [`Housekeeping::LEASE`]: trimming and the removal of dead consumers.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::breaker::BreakerPosition;
use crate::bus::Bus;
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::heartbeat::Heartbeat;
use crate::lease::Lease;
use crate::log::{GroupInfo, PendingOf, Seat, Spare};
use crate::stream::Stream;

/// Between two rounds of trimming and of looking for dead consumers.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Entries looked at in one step while counting, and steps in one round; the rest waits.
const PAGE: usize = 1000;
const PAGES_MAX: usize = 20;

/// Gives the heartbeats of this process's consumers while their handlers are busy and leaves to others
/// what ended consumers had not finished; in one process of all, trims what every live group has
/// acknowledged, and removes consumers that are dead and empty.
///
/// Holds nothing: a restart loses at most one round. Every process with slow handlers runs one. On
/// Redis a [`LeaseKeeper`](crate::LeaseKeeper) runs beside it, else nobody trims.
#[derive(Debug)]
pub struct Housekeeping {
    /// The bus to keep.
    pub bus: Bus,
    /// The supervisor's view of this worker.
    pub heartbeat: Heartbeat,
}

enum Event {
    Beat,
    Stop,
}

impl Housekeeping {
    /// The lease of what one process of all does.
    pub const LEASE: &str = "oona.housekeeping";

    /// Works until told to stop. Outages of the log are waited out.
    ///
    /// # Errors
    /// [`BusError::Log`] when the embedded log has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let lease = self.bus.duty(Self::LEASE);
        let mut swept: Option<Instant> = None;
        loop {
            match self.next_event(&lease, &stop).await {
                Event::Stop => return Ok(()),
                Event::Beat => {}
            }
            let sweep = swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
            if sweep {
                swept = Some(Instant::now());
            }
            match self.round(&lease, sweep).await {
                Err(BusError::Log(error)) if !error.is_final() => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "housekeeping has to wait for the log"
                    );
                }
                other => other?,
            }
        }
    }

    async fn next_event(&self, lease: &Lease, stop: &CancellationToken) -> Event {
        self.heartbeat.beat(if lease.tenure().is_some() { "wait" } else { "standby" });
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            () = self.bus.0.leaving.nudged.notified() => Event::Beat,
            () = tokio::time::sleep(Heartbeat::INTERVAL) => Event::Beat,
        }
    }

    async fn round(&self, lease: &Lease, sweep: bool) -> Result<(), BusError> {
        self.heartbeat.beat("consumers");
        self.bus.release_left().await?;
        for post in self.bus.posts() {
            // One that holds nothing is given its heartbeat by its own reading.
            if post.work.len() > 0 {
                if post.beat_age() >= Heartbeat::INTERVAL * 3 / 4 {
                    match post.beat().await {
                        // The consumer will find that out and make the group again.
                        Err(LogError::NoGroup { .. }) => continue,
                        beaten => beaten?,
                    }
                }
                post.renew().await?;
            }
        }
        // A breaker that is not closed waits for a sign of life; otherwise now and then will do.
        let standings = self.bus.0.pulse.standings();
        if sweep || standings.iter().any(|one| one.position != BreakerPosition::Closed) {
            self.bus.ping().await?;
        }
        if sweep {
            for stream in Stream::ALL {
                self.heartbeat.beat_about("sweep", stream);
                let groups = self.bus.look_at_groups(stream).await?;
                // Asked for every stream: a round may take longer than the lease.
                if lease.tenure().is_some() {
                    self.bus.tidy(stream, groups).await?;
                }
            }
        }
        Ok(())
    }
}

/// How far a stream may be trimmed, and for whom that goes too far.
struct TrimPlan {
    below: EntryId,
    abandoned: Vec<GroupInfo>,
}

impl Bus {
    /// One round over one stream: shows the backlogs, removes dead consumers, trims. Housekeeping
    /// calls it; it is public so that a test or a command can ask for a round now.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn sweep(&self, stream: Stream) -> Result<(), BusError> {
        let groups = self.look_at_groups(stream).await?;
        self.tidy(stream, groups).await
    }

    /// What admission and metrics of this process go by.
    async fn look_at_groups(&self, stream: Stream) -> Result<Vec<GroupInfo>, BusError> {
        let groups = self.0.log.groups(self.name(stream)).await?;
        self.note_depth(stream, &groups);
        for group in &groups {
            self.0.metrics.show_backlog(stream, &group.name, group.pending, group.lag);
        }
        Ok(groups)
    }

    /// Removes dead consumers and trims. Done twice at once it harms nothing: each step looks at what
    /// is there when it is made.
    async fn tidy(&self, stream: Stream, groups: Vec<GroupInfo>) -> Result<(), BusError> {
        let name = self.name(stream);
        for group in &groups {
            self.remove_dead_consumers(stream, &group.name).await?;
        }
        let Some(plan) = self.plan_trim(stream, groups).await? else { return Ok(()) };
        let mut unread = 0;
        for group in &plan.abandoned {
            unread += self.count_unread(name, group, plan.below).await?;
        }
        let spare = match plan.abandoned.is_empty() {
            true => Spare::Unacknowledged,
            false => Spare::Nothing,
        };
        let trimmed = self.0.log.trim(name, plan.below, spare).await?;
        self.0.metrics.count_trimmed(stream, trimmed, unread);
        if unread > 0 {
            tracing::warn!(%stream, unread, "entries trimmed that an abandoned group had not read");
        }
        Ok(())
    }

    /// The safe trim point: old enough or beyond the length, and acknowledged by every live group.
    async fn plan_trim(
        &self,
        stream: Stream,
        groups: Vec<GroupInfo>,
    ) -> Result<Option<TrimPlan>, BusError> {
        let (name, config) = (self.name(stream), &self.0.config);
        let ttl = match stream {
            Stream::DeadLetter => config.dead_letter_ttl,
            _ => config.message_ttl,
        };
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.0.log.range(name, EntryId::ZERO, 1).await?;
        let Some((oldest, _)) = oldest.first() else { return Ok(None) };
        let now_ms = self.0.log.now_ms().await?;
        let by_age = EntryId { ms: now_ms.saturating_sub(ttl_ms), seq: 0 };
        let mut below = by_age.max(self.beyond_length(stream).await?);
        if below <= *oldest {
            return Ok(None);
        }
        let mut abandoned = Vec::new();
        for group in groups {
            let life = self.0.log.group_life(name, &group.name).await?;
            if life.silent_for > config.message_ttl {
                abandoned.push(group);
                continue;
            }
            let unread = group.last_delivered.next();
            below = below.min(life.oldest_pending.map_or(unread, |pending| pending.min(unread)));
        }
        Ok((*oldest < below).then_some(TrimPlan { below, abandoned }))
    }

    /// The id before which entries exceed the length, as far as one round counts.
    async fn beyond_length(&self, stream: Stream) -> Result<EntryId, BusError> {
        let name = self.name(stream);
        let excess = self.0.log.len(name).await?.saturating_sub(self.0.config.stream_len_max);
        let mut excess = usize::try_from(excess).unwrap_or(usize::MAX).min(PAGE * PAGES_MAX);
        let mut last = EntryId::ZERO;
        while excess > 0 {
            let page = self.0.log.range(name, last, excess.min(PAGE)).await?;
            let Some((id, _)) = page.last() else { break };
            last = *id;
            excess -= page.len().min(excess);
        }
        Ok(if last == EntryId::ZERO { last } else { last.next() })
    }

    /// Entries before `below` that a group has not acknowledged, as far as one round counts.
    async fn count_unread(
        &self,
        stream: &str,
        group: &GroupInfo,
        below: EntryId,
    ) -> Result<u64, BusError> {
        let seat =
            Seat { stream: stream.to_owned(), group: group.name.clone(), consumer: String::new() };
        let of = PendingOf::Idle(Duration::ZERO);
        let pending = self.0.log.pending(&seat, of, PAGE * PAGES_MAX).await?;
        let mut count = pending.iter().filter(|entry| entry.id < below).count();
        let mut last = group.last_delivered;
        for _ in 0..PAGES_MAX {
            let page = self.0.log.range(stream, last, PAGE).await?;
            let before = page.iter().take_while(|(id, _)| *id < below).count();
            count += before;
            match page.last() {
                Some((id, _)) if before == PAGE => last = *id,
                _ => break,
            }
        }
        Ok(u64::try_from(count).unwrap_or(u64::MAX))
    }

    /// Dead for long and empty: only then is a consumer's name of no use any more.
    async fn remove_dead_consumers(&self, stream: Stream, group: &str) -> Result<(), BusError> {
        let silent = self.0.config.consumer_ttl * 4;
        let name = self.name(stream);
        for consumer in self.0.log.consumers(name, group).await? {
            let dead = consumer.beat_age.is_some_and(|age| age >= silent);
            if !dead || consumer.pending > 0 {
                continue;
            }
            let seat =
                Seat { stream: name.to_owned(), group: group.to_owned(), consumer: consumer.name };
            if self.0.log.remove_consumer(&seat, silent).await? {
                self.0.metrics.count_consumer_removed(stream);
                tracing::info!(%stream, consumer = %seat.consumer, "dead consumer removed");
            }
        }
        Ok(())
    }
}
