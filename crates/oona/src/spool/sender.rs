//! The worker that sends what waits.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use leyline::wire::BusEnvelope;
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::file::{File, Place};
use super::{Own, Shared, Spool, lane, record};
use crate::bus::Bus;
use crate::error::{BusError, LogError};
use crate::heartbeat::Heartbeat;
use crate::seal::Sealed;
use crate::stream::Stream;

/// Messages, and about that many bytes, sent in one round trip.
const BATCH_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Between two looks for files that dead processes left.
const ADOPT_INTERVAL: Duration = Duration::from_secs(5);
/// First and longest pause after a failure: a log that is back is found well within a second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Sends what waits on disk as soon as the log answers: emergency messages first, each stream in its
/// order, many in one round trip. A message leaves the disk once the log has it.
///
/// Every process that publishes with a spool runs one. Holds nothing: what it did not send waits for
/// its next start, or for the next process.
#[derive(Debug)]
pub struct SpoolSender {
    /// The bus whose spool it is; without one it has nothing to do.
    pub bus: Bus,
    /// The supervisor's view of this worker.
    pub heartbeat: Heartbeat,
}

/// What was read from one file, to be sent in one step.
struct Batch {
    file: Arc<File>,
    records: Vec<(Place, Vec<u8>)>,
}

/// Why sending paused.
#[derive(Debug, thiserror::Error)]
enum Halt {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the spool cannot be read")]
    Disk(#[source] redb::Error),
}

enum Event {
    Woken,
    Stop,
}

impl SpoolSender {
    /// Works until told to stop. Outages of the log are waited out.
    ///
    /// # Errors
    /// None; the type is that of the other workers of the bus.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let Some(spool) = self.bus.0.spool.clone() else {
            self.heartbeat.during("no spool", stop.cancelled()).await;
            return Ok(());
        };
        let mut adopted: Option<Instant> = None;
        let mut pause = PAUSE_MIN;
        let mut complained = false;
        loop {
            if adopted.is_none_or(|at| at.elapsed() >= ADOPT_INTERVAL) {
                adopted = Some(Instant::now());
                self.heartbeat.during("look for files", spool.adopt()).await;
            }
            let wait = match self.send_all(&spool, &stop).await {
                Ok(()) => {
                    if std::mem::take(&mut complained) {
                        tracing::info!("all that waited on disk was sent");
                    }
                    pause = PAUSE_MIN;
                    ADOPT_INTERVAL
                }
                Err(halt) => {
                    if !std::mem::replace(&mut complained, true) {
                        let waiting = spool.standing().messages;
                        tracing::warn!(error = %halt, waiting, "messages wait on disk");
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                    pause
                }
            };
            match self.next_event(&spool, wait, &stop).await {
                Event::Woken => {}
                Event::Stop => return Ok(()),
            }
        }
    }

    async fn next_event(&self, spool: &Spool, wait: Duration, stop: &CancellationToken) -> Event {
        let next = async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Event::Stop,
                () = spool.0.wake.notified() => Event::Woken,
                () = tokio::time::sleep(wait) => Event::Woken,
            }
        };
        self.heartbeat.during("wait", next).await
    }

    /// Sends until nothing waits, the log fails, or a stop is asked for. A stream that the log
    /// refuses holds up no other.
    async fn send_all(&self, spool: &Spool, stop: &CancellationToken) -> Result<(), Halt> {
        let mut refused: Vec<(Stream, LogError)> = Vec::new();
        while !stop.is_cancelled() {
            // Looked for anew after every batch: an emergency does not wait for a long queue.
            let waits = |stream: &Stream| {
                spool.waiting(*stream) > 0 && refused.iter().all(|(one, _)| one != stream)
            };
            let rest = Stream::ALL.into_iter().filter(|stream| *stream != Stream::Emergency);
            let Some(stream) = std::iter::once(Stream::Emergency).chain(rest).find(waits) else {
                break;
            };
            self.heartbeat.beat("read");
            let Some(batch) = spool.batch(stream).await.map_err(Halt::Disk)? else { break };
            match self.send(spool, stream, batch).await {
                Ok(()) => {}
                Err(error) if error.is_absence() => return Err(error.into()),
                Err(error) => refused.push((stream, error)),
            }
        }
        self.heartbeat.beat("tidy");
        spool.tidy().await;
        match refused.pop() {
            Some((_, error)) => Err(error.into()),
            None => Ok(()),
        }
    }

    async fn send(&self, spool: &Spool, stream: Stream, batch: Batch) -> Result<(), LogError> {
        self.heartbeat.beat("send");
        let (sealed, aside) = self.seal_anew(spool, stream, &batch.records);
        let (pulse, urgent) = (&self.bus.0.pulse, stream == Stream::Emergency);
        if !sealed.is_empty() {
            let entries: Vec<_> = sealed.iter().map(Sealed::fields).collect();
            let name = self.bus.name(stream);
            let answer = self.bus.0.log.append_many(name, &entries, urgent).await;
            // What waits is what asks whether the log is back; the breaker only hears of it.
            pulse.breaker(urgent, |breaker| match &answer {
                Err(error) if error.is_failure() => breaker.failed(Instant::now()),
                _ => breaker.succeeded(),
            });
            answer.inspect_err(|_| self.bus.0.metrics.count_log_failure())?;
            pulse.log_is_alive();
            self.bus.0.metrics.spool_sent.inc_by(sealed.len() as u64);
        }
        self.heartbeat.beat("remove");
        spool.settle(stream, batch, aside).await;
        Ok(())
    }

    /// The same messages, signed for now: a message that waited is late, not stale. What cannot be
    /// authenticated is left out.
    fn seal_anew(
        &self,
        spool: &Spool,
        stream: Stream,
        records: &[(Place, Vec<u8>)],
    ) -> (Vec<Sealed>, Vec<Place>) {
        let (mut sealed, mut aside) = (Vec::with_capacity(records.len()), Vec::new());
        let keyring = spool.0.live.keyring();
        for (place, value) in records {
            let envelope = record::open(&keyring, *place, value)
                .ok()
                .and_then(|bytes| BusEnvelope::decode(bytes).ok());
            match envelope {
                Some(envelope) => sealed.push(self.bus.stamp(envelope, stream)),
                None => aside.push(*place),
            }
        }
        (sealed, aside)
    }
}

impl Spool {
    /// Takes over what dead processes left; it is sent before this process's own.
    async fn adopt(&self) {
        self.blocking(|shared| {
            for (file, totals) in File::adopt_all(&shared.config.directory) {
                let mut adopted = shared.adopted.lock().unwrap_or_else(PoisonError::into_inner);
                adopted.push(Arc::new(file));
                let mut desk = shared.desk();
                for (lane, (messages, bytes)) in totals.into_iter().enumerate() {
                    desk.book.adopt(u8::try_from(lane).unwrap_or(0), messages, bytes);
                }
                shared.show(&desk.book);
            }
        })
        .await;
    }

    /// The oldest messages that wait for a stream.
    async fn batch(&self, stream: Stream) -> Result<Option<Batch>, redb::Error> {
        let lane = lane(stream);
        self.blocking(move |shared| {
            let adopted = shared.adopted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for file in adopted.into_iter().chain(shared.own_file()?) {
                let records = file.batch(lane, BATCH_MAX, BATCH_BYTES_MAX)?;
                if !records.is_empty() {
                    return Ok(Some(Batch { file, records }));
                }
            }
            // What waits is being written; whoever writes it wakes the sender.
            Ok(None)
        })
        .await
    }

    /// The log has these: they wait no longer, and leave the disk.
    async fn settle(&self, stream: Stream, batch: Batch, aside: Vec<Place>) {
        let lane = lane(stream);
        self.blocking(move |shared| {
            let Batch { file, records } = batch;
            file.was_sent(&records);
            if !aside.is_empty() {
                shared.metrics.spool_set_aside.inc_by(aside.len() as u64);
                tracing::error!(%stream, messages = aside.len(), path = %file.path().display(), "messages in the spool were tampered with, or signed with a secret that is no longer known; they are set aside");
            }
            if let Err(error) = file.remove(&records, &aside) {
                tracing::error!(error = &error as &dyn std::error::Error, path = %file.path().display(), "what was sent cannot be removed from the spool; a later process sends it again, and readers refuse it as a replay");
            }
            let bytes = records.iter().map(|(_, value)| value.len() as u64).sum();
            let mut desk = shared.desk();
            desk.book.settle(lane, records.len() as u64, bytes);
            shared.show(&desk.book);
        })
        .await;
    }

    /// Removes files in which nothing waits any more.
    async fn tidy(&self) {
        self.blocking(|shared| {
            let done = |file: &File| match file.remove_if_empty() {
                Ok(done) => done,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, path = %file.path().display(), "an empty spool cannot be removed");
                    false
                }
            };
            let mut adopted = shared.adopted.lock().unwrap_or_else(PoisonError::into_inner);
            adopted.retain(|file| !done(file));
            drop(adopted);
            // Under its lock, so that nobody stores into a file that is going.
            let mut own = shared.own.lock().unwrap_or_else(PoisonError::into_inner);
            if let Own::Open(file) = &*own
                && done(file)
            {
                *own = Own::None;
            }
        })
        .await;
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> T {
        let shared = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

impl Shared {
    /// This process's file, if it has one; opened again after a failure.
    fn own_file(&self) -> Result<Option<Arc<File>>, redb::Error> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Own::None => Ok(None),
            Own::Open(file) => Ok(Some(Arc::clone(file))),
            Own::Broken(path) => {
                let file = File::open(path)
                    .map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
                let file = Arc::new(file);
                *own = Own::Open(Arc::clone(&file));
                Ok(Some(file))
            }
        }
    }
}
