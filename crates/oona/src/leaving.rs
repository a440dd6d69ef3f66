//! Consumers of this process that have ended, and what they leave: others shall have it at once, and
//! not after the time by which a silent consumer counts as dead.
//!
//! A consumer ends when it and its last delivery are dropped. What it had not finished stays pending in
//! the log; [`Bus::release_left`] moves that to a consumer that does not exist, [`RELEASED`], from whom
//! every living one takes it at its next look, and tells all processes to look now. The attempt that
//! was broken off is taken back; one that the handler failed counts.

use std::collections::VecDeque;
use std::sync::PoisonError;

use tokio::sync::Notify;

use crate::bus::Bus;
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::log::{Log, Seat};
use crate::stream::Stream;
use crate::sync::{Mutex, MutexGuard};

/// Name of the consumer under which released entries wait. No process has it.
pub(crate) const RELEASED: &str = "released";
/// Ended consumers that wait to be looked after; older ones are left to the search for the dead.
const LEAVING_MAX: usize = 256;

/// A consumer that has ended.
#[derive(Debug)]
pub(crate) struct Leaver {
    pub(crate) log: Log,
    pub(crate) stream: Stream,
    pub(crate) seat: Seat,
    /// Handled; their acknowledgement did not reach the log.
    pub(crate) owed: Vec<EntryId>,
    /// Failed by their handlers: these attempts count.
    pub(crate) failed: Vec<EntryId>,
}

/// Those of this process.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    leavers: Mutex<Leavers>,
    /// One has ended.
    pub(crate) nudged: Notify,
}

#[derive(Debug, Default)]
struct Leavers {
    waiting: VecDeque<Leaver>,
    /// Released once. What the log sends on a connection that is just being closed comes after that;
    /// the last release of the process has it, too.
    done: VecDeque<Leaver>,
}

impl Leaving {
    fn leavers(&self) -> MutexGuard<'_, Leavers> {
        self.leavers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, leaver: Leaver) {
        push(&mut self.leavers().waiting, leaver);
        self.nudged.notify_one();
    }

    fn next(&self) -> Option<Leaver> {
        self.leavers().waiting.pop_front()
    }

    fn put_back(&self, leaver: Leaver) {
        self.leavers().waiting.push_front(leaver);
    }

    fn done(&self, leaver: Leaver) {
        push(&mut self.leavers().done, leaver);
    }

    fn all_again(&self) {
        let mut leavers = self.leavers();
        while let Some(leaver) = leavers.done.pop_front() {
            leavers.waiting.push_back(leaver);
        }
    }
}

/// One for each name.
fn push(queue: &mut VecDeque<Leaver>, leaver: Leaver) {
    queue.retain(|one| one.seat != leaver.seat);
    if queue.len() >= LEAVING_MAX {
        queue.pop_front();
    }
    queue.push_back(leaver);
}

impl Bus {
    /// Leaves to others, at once, what the ended consumers of this process had not finished; says how
    /// many entries that were. Housekeeping does so as soon as a consumer ends.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails; calling it again goes on where it stopped.
    pub async fn release_left(&self) -> Result<u64, BusError> {
        let mut released = 0;
        while let Some(leaver) = self.0.leaving.next() {
            // Somebody here goes by that name again, and finds what is pending under it.
            if !self.0.names.reserve(&leaver.seat) {
                let acked = leaver.log.ack(&leaver.seat, &leaver.owed).await;
                acked.inspect_err(|_| self.0.leaving.put_back(leaver))?;
                continue;
            }
            let outcome = release(&leaver).await;
            self.0.names.give_back(&leaver.seat);
            let count = match outcome {
                // With the group its pending entries are gone.
                Err(LogError::NoGroup { .. }) => continue,
                Err(error) => {
                    self.0.leaving.put_back(leaver);
                    return Err(error.into());
                }
                Ok(count) => count,
            };
            if count > 0 {
                self.0.metrics.count_released(leaver.stream, count);
                tracing::info!(stream = %leaver.stream, consumer = %leaver.seat.consumer, entries = count, "unfinished entries left to others");
                self.look_for_released();
            }
            released += count;
            let (owed, failed) = (Vec::new(), Vec::new());
            self.0.leaving.done(Leaver { owed, failed, ..leaver });
        }
        Ok(released)
    }

    /// The same once more for all that ever ended here, as the last thing that a process does.
    ///
    /// # Errors
    /// As for [`release_left`](Self::release_left).
    pub async fn release_all(&self) -> Result<u64, BusError> {
        self.0.leaving.all_again();
        self.release_left().await
    }
}

async fn release(leaver: &Leaver) -> Result<u64, LogError> {
    leaver.log.ack(&leaver.seat, &leaver.owed).await?;
    leaver.log.release(&leaver.seat, &leaver.failed).await
}
