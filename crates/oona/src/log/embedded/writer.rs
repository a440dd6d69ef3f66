//! The one writer: takes what has been queued, commits it as one frame of the journal, answers the
//! tickets, and ends when nothing is left. It runs on a blocking thread only while there is work.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::absorb::ABSORB_BYTES;
use super::codec::{put_change, put_claim};
use super::journal::HEAD_BYTES;
use super::nonces::Claim;
use super::state::{Change, Core, Flight, Ticket, Waiting};
use super::{EmbeddedLog, Shared};
use crate::error::LogError;

/// How long acknowledgements and claims wait for a commit to share; a crash within repeats them.
const LINGER: Duration = Duration::from_millis(5);
/// How long the writer stays for more work: a thread that waits is faster than one that starts.
const STAY: Duration = Duration::from_millis(1);
/// Pause after a failed commit.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Frames that the store has not taken in; they are in memory as well. The writer waits beyond it,
pub(super) const FLIGHT_BYTES_MAX: u64 = 64 << 20;
/// but no longer than this.
const ROOM_WAIT: Duration = Duration::from_secs(2);

/// What goes into one frame, and who waits for it.
struct Batch {
    changes: Vec<Change>,
    claims: Vec<Claim>,
    tickets: Vec<Ticket>,
}

impl Shared {
    /// Sees that the queue gets written, and waits for the ticket.
    pub(super) async fn commit(
        self: &Arc<Self>,
        ticket: oneshot::Receiver<Result<(), LogError>>,
    ) -> Result<(), LogError> {
        self.kick();
        ticket.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Starts the writer unless it is at work.
    pub(super) fn kick(self: &Arc<Self>) {
        self.wake_writer(&mut self.core());
    }

    pub(super) fn wake_writer(self: &Arc<Self>, core: &mut Core) {
        if !core.writing {
            core.writing = true;
            let shared = Arc::clone(self);
            // Nobody waits for the thread: it answers by the tickets.
            drop(tokio::task::spawn_blocking(move || shared.write_all()));
        } else if core.waiting == Waiting::ForWork
            || core.waiting == Waiting::ForCompany && core.is_urgent()
        {
            core.waiting = Waiting::No;
            self.urgent.notify_one();
        }
    }

    fn write_all(self: &Arc<Self>) {
        let mut frame = Vec::new();
        while let Some(batch) = self.next_batch() {
            let Batch { changes, claims, tickets } = batch;
            if changes.is_empty() && claims.is_empty() {
                // All that was there before has been written.
                answer(tickets, &Ok(()));
                continue;
            }
            match self.write(&mut frame, &changes, &claims) {
                Ok(number) => {
                    let bytes = u64::try_from(frame.len()).unwrap_or(u64::MAX);
                    self.written(Flight { number, bytes, changes, claims });
                    answer(tickets, &Ok(()));
                }
                Err(error) => self.give_back(Batch { changes, claims, tickets }, &error),
            }
        }
    }

    /// Waits for work; `None` when there was none for a while.
    fn next_batch(&self) -> Option<Batch> {
        let mut core = self.core();
        if core.journal_failure.is_some() {
            core = self.wait(core, Waiting::No, RETRY_PAUSE, |core| core.closing);
        } else {
            core = self.wait(core, Waiting::ForWork, STAY, |core| core.has_work() || core.closing);
        }
        if !core.has_work() || core.closing && core.journal_failure.is_some() {
            core.writing = false;
            return None;
        }
        // What nobody waits for shares the next commit that somebody does wait for.
        core = self.wait(core, Waiting::ForCompany, LINGER, |core| core.is_urgent());
        let (changes, tickets) =
            (std::mem::take(&mut core.queue), std::mem::take(&mut core.tickets));
        drop(core);
        // Taken after the changes: an acknowledgement on disk has its claim on disk as well.
        Some(Batch { changes, claims: self.nonces().take_fresh(), tickets })
    }

    fn wait<'a>(
        &self,
        mut core: MutexGuard<'a, Core>,
        waiting: Waiting,
        time: Duration,
        until: fn(&Core) -> bool,
    ) -> MutexGuard<'a, Core> {
        core.waiting = waiting;
        let waited = self.urgent.wait_timeout_while(core, time, |core| !until(core));
        let mut core = waited.unwrap_or_else(PoisonError::into_inner).0;
        core.waiting = Waiting::No;
        core
    }

    fn write(
        &self,
        frame: &mut Vec<u8>,
        changes: &[Change],
        claims: &[Claim],
    ) -> Result<u64, LogError> {
        frame.clear();
        frame.resize(HEAD_BYTES, 0);
        changes.iter().for_each(|change| put_change(frame, change));
        claims.iter().for_each(|claim| put_claim(frame, claim));
        self.wait_for_room()?;
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let absorbed = self.absorbed.load(Ordering::Acquire);
        journal.append(frame, absorbed).map_err(|error| self.not_stored(error))
    }

    /// The store may lie behind only so far.
    fn wait_for_room(&self) -> Result<(), LogError> {
        let core = self.core();
        let waited = self.room.wait_timeout_while(core, ROOM_WAIT, |core| {
            core.flight_bytes > FLIGHT_BYTES_MAX && core.store_failure.is_none() && !core.closing
        });
        let core = waited.unwrap_or_else(PoisonError::into_inner).0;
        if core.flight_bytes <= FLIGHT_BYTES_MAX {
            return Ok(());
        }
        let source = match &core.store_failure {
            Some(failure) => io::Error::other(Arc::clone(failure)),
            None => io::Error::new(io::ErrorKind::TimedOut, "the disk is too slow"),
        };
        drop(core);
        Err(self.not_stored(source))
    }

    /// Lets memory follow what is in the journal now, and the store after it.
    fn written(self: &Arc<Self>, flight: Flight) {
        let mut core = self.core();
        if core.journal_failure.take().is_some() {
            tracing::info!(path = %self.path.display(), "the embedded log can write again");
        }
        core.journaled(flight);
        let start = !std::mem::replace(&mut core.absorbing, true);
        if core.flight_bytes >= ABSORB_BYTES {
            self.absorb_wake.notify_one();
        }
        drop(core);
        if start {
            self.start_absorbing();
        }
    }

    /// The frame is not in the journal. What publishers wanted is given up and they are told; what
    /// happened in memory already is written later.
    fn give_back(&self, batch: Batch, error: &LogError) {
        let Batch { changes, claims, tickets } = batch;
        let mut core = self.core();
        let changes = core.give_up(changes);
        core.queue.splice(..0, changes);
        if core.journal_failure.is_none() {
            tracing::error!(%error, "the embedded log cannot write");
        }
        core.journal_failure = Some(error.clone());
        drop(core);
        self.nonces().give_back(claims);
        answer(tickets, &Err(error.clone()));
    }
}

fn answer(tickets: Vec<Ticket>, answer: &Result<(), LogError>) {
    for ticket in tickets {
        // Whoever stopped waiting does not want it.
        let _ = ticket.send(answer.clone());
    }
}

impl EmbeddedLog {
    /// Waits until everything so far is on disk.
    pub(crate) async fn flush(&self) -> Result<(), LogError> {
        let ticket = self.shared().core().ticket();
        self.shared().commit(ticket).await
    }
}
