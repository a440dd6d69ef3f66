//! What the durable queue has to do with a shift: tickets that are found become jobs, orders and given-up jobs become
//! tickets. The files are touched beside the runtime, never by the loop.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use leyline::time::now_unix_ms;
use leyline::wire::MessagePriority;
use tokio::sync::oneshot;
use tokio::time::Instant;
use urza::Queued;

use super::Shift;
use crate::backlog::{Admission, Urgency};
use crate::events::Event;
use crate::job::Job;
use crate::queue::{Look, QueueError, Standing, Ticket};

/// Work on the queue's files.
pub(super) type Filing = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A look into it.
pub(super) type Looking = Pin<Box<dyn Future<Output = Look> + Send>>;

impl Shift {
    /// Has the queue looked through beside the runtime, for what this process does not know.
    pub(super) fn look(&self) -> Looking {
        let (queue, known) = (self.workshop.queue.clone(), self.backlog.keys());
        Box::pin(async move {
            let looking = tokio::task::spawn_blocking(move || {
                queue.look(|key| known.contains(key) || queue.owes(key))
            });
            match looking.await {
                Ok(Ok(look)) => look,
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "durable queue not read, looked at again soon"
                    );
                    Look::default()
                }
                Err(_) => Look::default(),
            }
        })
    }

    /// Takes in what a look has found.
    pub(super) fn found(&mut self, look: Look) {
        self.workshop.metrics.set_aside.inc_by(look.set_aside);
        let resumed = look.tickets.into_iter().filter(|ticket| self.resume(ticket)).count();
        if resumed > 0 {
            tracing::info!(resumed, "jobs taken up from the durable queue");
        }
    }

    /// Whether the ticket is an open job, and was taken in.
    fn resume(&mut self, ticket: &Ticket) -> bool {
        let queue = self.workshop.queue.clone();
        if self.backlog.knows(&ticket.key) || queue.owes(&ticket.key) {
            return false; // It came meanwhile.
        }
        let Some(job) = ticket.job(&self.workshop.config) else {
            let blueprint = &ticket.blueprint;
            tracing::warn!(
                blueprint,
                site = ticket.site,
                "queued job no longer fits its blueprint, dropped"
            );
            self.settle(ticket.key);
            return false;
        };
        let key = job.key().digest();
        if key != ticket.key {
            // An older engine's: what is wanted now is this one's artifact, under a name of its own.
            self.settle(ticket.key);
        }
        match &ticket.standing {
            Standing::Open => self.take_up(job, key, ticket),
            Standing::Parked { until_ms, reason } => {
                let now_ms = now_unix_ms();
                let left = Duration::from_millis(until_ms.saturating_sub(now_ms));
                // A clock that was set back makes nobody wait longer.
                let left = left.min(self.workshop.config.parked_for);
                if left.is_zero() || key != ticket.key {
                    self.settle(ticket.key);
                } else {
                    self.backlog.park(job, Instant::now() + left, reason.clone());
                }
                false
            }
        }
    }

    fn take_up(&mut self, job: Job, key: kernel::Digest, ticket: &Ticket) -> bool {
        let urgency = Urgency::ordered(ticket.priority, ticket.deadline_ms);
        let renewed = Ticket::of(&job, ticket.priority, ticket.deadline_ms);
        match self.backlog.add(job, urgency, None, Instant::now()) {
            // Full: it stands where it is, for a later look. Parked cannot be, the job is unknown.
            Admission::Full { .. } | Admission::Parked { .. } => false,
            Admission::Queued | Admission::Joined => {
                self.workshop.queue.owe(key);
                if key != ticket.key {
                    self.file(renewed, None);
                }
                true
            }
        }
    }

    /// Writes an order's ticket, and tells whoever asks that it stands.
    pub(super) fn enqueue(
        &self,
        job: &Job,
        urgency: Urgency,
        told: Option<oneshot::Sender<Queued>>,
    ) {
        let (priority, deadline_ms) = urgency.of_ticket();
        self.file(Ticket::of(job, priority, deadline_ms), told);
    }

    /// Writes down that a job was given up.
    pub(super) fn write_parked(&self, job: &Job, reason: &str) {
        let parked_for = self.workshop.config.parked_for.as_millis();
        let until_ms = now_unix_ms().saturating_add(u64::try_from(parked_for).unwrap_or(u64::MAX));
        self.file(Ticket::parked(job, until_ms, reason), None);
    }

    fn file(&self, ticket: Ticket, told: Option<oneshot::Sender<Queued>>) {
        let (queue, metrics) = (self.workshop.queue.clone(), self.workshop.metrics.clone());
        let reporter = self.workshop.reporter.clone();
        queue.owe(ticket.key);
        self.filing.push(Box::pin(async move {
            let blueprint = ticket.blueprint.clone();
            let written = tokio::task::spawn_blocking(move || queue.write(&ticket)).await;
            let queued = match written {
                Ok(Ok(())) => Queued::Durably,
                Ok(Err(error)) => {
                    metrics.unwritten.inc();
                    tracing::warn!(
                        blueprint,
                        error = &error as &dyn std::error::Error,
                        "order kept in memory only"
                    );
                    let full = matches!(error, QueueError::Full { .. });
                    let reason = if full { "full" } else { "file" };
                    reporter
                        .push(Event::warning("tezzeret.queue_unwritten").with("reason", reason));
                    Queued::InMemory
                }
                Err(_) => Queued::InMemory,
            };
            // Whoever asks may have gone.
            let _ = told.map(|told| told.send(queued));
        }));
    }

    /// Removes a ticket beside the runtime.
    pub(super) fn settle(&self, key: kernel::Digest) {
        let queue = self.workshop.queue.clone();
        self.filing.push(Box::pin(async move {
            let _ = tokio::task::spawn_blocking(move || queue.settle(&key)).await;
        }));
    }
}

/// The urgency of an order given within this process.
pub(super) fn usual() -> Urgency {
    Urgency::ordered(MessagePriority::Normal, None)
}
