//! The worker that keeps and publishes field reports.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leyline::Message;
use leyline::wire::{FieldReport, MessagePriority};
use oona::{Bus, Heartbeat, Outcome, PublishError, Stream};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::queue::ReportInbox;
use super::store::{Recovered, Store};
use crate::config::Reports as Settings;
use crate::error::StoreError;
use crate::metrics::{Dropped, Metrics};

/// Reports taken from the queue, stored and published in one step.
const BATCH_LEN_MAX: usize = 64;
/// Longest wait for one publish; the bus itself gives up earlier.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stopping worker goes on publishing what is new.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often old reports leave the disk.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);

/// Stores the reports that come from the queue, then publishes them on the normal stream.
///
/// A report is on disk before it is published and noted there afterwards, so a restart goes on
/// where this stopped; one that was sent and not yet noted is sent again under the same id. When
/// the disk refuses, reports are published all the same.
#[derive(Debug)]
pub struct FieldReports {
    /// Where reports go.
    pub bus: Bus,
    /// Retention, retries, bounds.
    pub settings: Settings,
    /// Where they are kept (`TAMIYO_FIELD_REPORT_DIR`).
    pub dir: PathBuf,
    /// Where they come from.
    pub inbox: ReportInbox,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Arrived(Vec<FieldReport>),
    /// A report is due, or it is time to look around.
    Tick,
    Stop,
}

/// A report that is not yet published.
#[derive(Debug)]
struct Pending {
    report: FieldReport,
    attempts: u32,
    due: Instant,
}

/// What the running worker holds.
struct Desk {
    store: Arc<Mutex<Store>>,
    inbox: OwnedMutexGuard<mpsc::Receiver<FieldReport>>,
    /// Whether every sender is gone.
    closed: bool,
    pending: Vec<Pending>,
    next_expiry: Instant,
}

impl FieldReports {
    /// Publishes until `stop`, then once more what is new.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be opened, or the disk hangs.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut desk = self.open().await?;
        loop {
            self.metrics.reports_pending(desk.pending.len());
            self.heartbeat.beat("waiting for reports");
            match self.next_event(&mut desk, &stop).await {
                Event::Arrived(reports) => self.take(&mut desk, reports).await?,
                Event::Tick => {}
                Event::Stop => break,
            }
            self.publish_due(&mut desk).await?;
            self.expire(&mut desk).await?;
        }
        self.drain(desk).await
    }

    async fn open(&self) -> Result<Desk, StoreError> {
        let (dir, retention) = (self.dir.clone(), self.settings.retention);
        let now = leyline::time::now_unix_ms();
        let opening = tokio::task::spawn_blocking(move || Store::open(&dir, retention, now));
        let (store, Recovered { pending, torn_bytes, expired }) = self.in_time(opening).await??;
        if torn_bytes > 0 {
            self.metrics.reports_torn(torn_bytes);
        }
        if !pending.is_empty() || expired > 0 {
            tracing::info!(pending = pending.len(), expired, "field reports recovered");
        }
        let (now, inbox) = (Instant::now(), Arc::clone(&self.inbox.0).lock_owned().await);
        let due = |report| Pending { report, attempts: 0, due: now };
        Ok(Desk {
            store: Arc::new(Mutex::new(store)),
            inbox,
            closed: false,
            pending: pending.into_iter().map(due).collect(),
            next_expiry: now + EXPIRE_INTERVAL,
        })
    }

    /// Waits for the next event. Only receives, so losing the race loses nothing.
    async fn next_event(&self, desk: &mut Desk, stop: &CancellationToken) -> Event {
        let beat = Instant::now() + Heartbeat::INTERVAL;
        let due =
            desk.pending.iter().map(|pending| pending.due).min().map_or(beat, |d| d.min(beat));
        let room = self.settings.pending_len_max.saturating_sub(desk.pending.len());
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            count = desk.inbox.recv_many(&mut batch, room.min(BATCH_LEN_MAX)),
                if room > 0 && !desk.closed =>
            {
                desk.closed = count == 0;
                Event::Arrived(batch)
            }
            () = tokio::time::sleep_until(due) => Event::Tick,
        }
    }

    /// Stores reports and lets them be published.
    async fn take(&self, desk: &mut Desk, reports: Vec<FieldReport>) -> Result<(), StoreError> {
        if reports.is_empty() {
            return Ok(());
        }
        let batch = reports.clone();
        match self.with_store(desk, move |store| store.append(&batch)).await {
            Err(error @ StoreError::TimedOut { .. }) => return Err(error),
            Err(error) => self.metrics.reports_unsaved(reports.len(), &error),
            Ok(()) => self.metrics.reports_stored(reports.len()),
        }
        let due = Instant::now();
        let pending = |report| Pending { report, attempts: 0, due };
        desk.pending.extend(reports.into_iter().map(pending));
        Ok(())
    }

    /// Publishes what is due, and notes on disk what needs no more publishing.
    async fn publish_due(&self, desk: &mut Desk) -> Result<(), StoreError> {
        let now = Instant::now();
        let (mut settled, mut kept) = (Vec::new(), Vec::new());
        let mut tried = 0;
        for mut pending in std::mem::take(&mut desk.pending) {
            if pending.due > now || tried == BATCH_LEN_MAX {
                kept.push(pending);
                continue;
            }
            tried += 1;
            self.heartbeat.beat_about("publishing a report", &pending.report.report_id);
            match self.publish(&pending.report).await {
                Sent::Yes => {
                    self.metrics.report_published();
                    settled.push(pending.report.report_id);
                }
                Sent::Never(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a field report cannot be published; it stays on disk"
                    );
                    self.metrics.report_dropped(Dropped::Unsendable, &pending.report.report_id);
                    settled.push(pending.report.report_id);
                }
                Sent::NotNow(wait) => {
                    pending.attempts += 1;
                    if pending.attempts > self.settings.retries_max {
                        // It stays on disk, unpublished: the next start tries again.
                        self.metrics
                            .report_dropped(Dropped::RetriesUsedUp, &pending.report.report_id);
                        continue;
                    }
                    self.metrics.report_retried();
                    let delay = delay(&self.settings, pending.attempts).max(wait);
                    pending.due = Instant::now() + delay;
                    kept.push(pending);
                }
            }
        }
        kept.append(&mut desk.pending);
        desk.pending = kept;
        if settled.is_empty() {
            return Ok(());
        }
        match self.with_store(desk, move |store| store.mark_published(&settled)).await {
            Err(error @ StoreError::TimedOut { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "published reports could not be noted; they may be sent again"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn publish(&self, report: &FieldReport) -> Sent {
        let message = Message::from(report.clone());
        let sending =
            self.bus.publish(Stream::Normal, MessagePriority::Normal, crate::ISSUED_BY, &message);
        match timeout(PUBLISH_TIMEOUT, sending).await {
            // On disk it is as safe as in this publisher's own store, and keeps its place there.
            Ok(Ok(
                Outcome::Published { .. } | Outcome::Rerouted { .. } | Outcome::Spooled { .. },
            )) => Sent::Yes,
            Ok(Ok(Outcome::Refused { retry_after, .. })) => Sent::NotNow(retry_after),
            Ok(Err(error @ (PublishError::Oversize { .. } | PublishError::WrongStream { .. }))) => {
                Sent::Never(error)
            }
            Ok(Err(_)) | Err(_) => Sent::NotNow(Duration::ZERO),
        }
    }

    async fn expire(&self, desk: &mut Desk) -> Result<(), StoreError> {
        if Instant::now() < desk.next_expiry {
            return Ok(());
        }
        desk.next_expiry = Instant::now() + EXPIRE_INTERVAL;
        let (retention, now) = (self.settings.retention, leyline::time::now_unix_ms());
        match self.with_store(desk, move |store| store.expire(retention, now)).await {
            Err(error @ StoreError::TimedOut { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "old field reports could not be removed"
                );
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Stores what still stands in the queue and publishes what has not been tried yet.
    async fn drain(&self, mut desk: Desk) -> Result<(), StoreError> {
        let mut rest = Vec::new();
        while let Ok(report) = desk.inbox.try_recv() {
            rest.push(report);
        }
        self.take(&mut desk, rest).await?;
        desk.pending.retain(|pending| pending.attempts == 0);
        // What is not sent in time stands on disk, and is sent after the next start.
        timeout(DRAIN_TIMEOUT, self.publish_due(&mut desk)).await.unwrap_or(Ok(()))
    }

    /// Does something with the store on a thread for blocking work.
    async fn with_store<R: Send + 'static>(
        &self,
        desk: &Desk,
        work: impl FnOnce(&mut Store) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let store = Arc::clone(&desk.store);
        let working = tokio::task::spawn_blocking(move || {
            work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        self.in_time(working).await?
    }

    async fn in_time<R>(&self, work: tokio::task::JoinHandle<R>) -> Result<R, StoreError> {
        let after = self.settings.store_timeout;
        self.heartbeat.beat_within("writing to disk", after + Heartbeat::INTERVAL);
        match timeout(after, work).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(failed)) => match failed.try_into_panic() {
                // A panic in there is one of this worker; the supervisor reports it.
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(StoreError::TimedOut { after }),
            },
            Err(_) => Err(StoreError::TimedOut { after }),
        }
    }
}

/// What became of one try.
enum Sent {
    Yes,
    NotNow(Duration),
    Never(PublishError),
}

/// `backoff · factor^attempts`, at most the longest delay: 2, 4, 8 s by default.
fn delay(settings: &Settings, attempts: u32) -> Duration {
    let factor = settings.backoff_factor.powi(i32::try_from(attempts).unwrap_or(i32::MAX));
    let seconds = settings.backoff.as_secs_f64() * factor;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(settings.backoff_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_bound() {
        let settings = Settings::default();
        let delays: Vec<u64> =
            (1..=6).map(|attempts| delay(&settings, attempts).as_secs()).collect();
        assert_eq!(delays, [2, 4, 8, 16, 30, 30]);
        assert_eq!(delay(&settings, u32::MAX), settings.backoff_max);
    }
}
