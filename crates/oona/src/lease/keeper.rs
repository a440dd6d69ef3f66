//! The worker that asks the log about every lease that this process wants.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::term::{Answer, Position, Step};
use super::{Ask, Leases, Told, Wanted};
use crate::bus::Bus;
use crate::error::{BusError, LogError};
use crate::heartbeat::Heartbeat;

/// Leases asked about in one command; the others follow at once.
const ASKS_MAX: usize = 128;
/// After a failure the log is asked again this soon: a holder has little time left.
const RETRY: Duration = Duration::from_millis(100);
/// An outage is reported when it begins, and then this often.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(30);
/// At its end the worker gives back what it can within this.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// Keeps the leases of this process: takes, renews and gives back. One in every process.
///
/// Holds nothing that must outlive it: while it does not run, what is held lapses, and others have it
/// after the time to live.
#[derive(Debug)]
pub struct LeaseKeeper {
    /// Whose leases.
    pub bus: Bus,
    /// The supervisor's view of this worker.
    pub heartbeat: Heartbeat,
}

enum Event {
    Due,
    Stop,
}

/// Whether this process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    Stay,
    Leave,
}

impl LeaseKeeper {
    /// Works until told to stop, then gives back what it has. Outages of the log are waited out.
    ///
    /// # Errors
    /// None so far; the type is what the boot table expects of every worker of the bus.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let leases = self.bus.0.leases.clone();
        let mut outage: Option<Instant> = None;
        // What an outage keeps anybody from seeing.
        let mut released = None;
        loop {
            match self.next_event(&leases, &stop).await {
                Event::Stop => break,
                Event::Due => {}
            }
            self.heartbeat.beat("ask");
            match self.round(&leases, Intent::Stay, &mut released).await {
                Ok(()) => outage = None,
                Err(error) => {
                    if outage.is_none_or(|at| at.elapsed() >= OUTAGE_LOG_INTERVAL) {
                        outage = Some(Instant::now());
                        tracing::warn!(%error, "leases cannot be renewed, duties rest until the log answers");
                    }
                    leases.failed();
                }
            }
            leases.tell();
        }
        self.heartbeat.beat("give back");
        leases.resign_all();
        let giving = self.round(&leases, Intent::Leave, &mut released);
        if !matches!(tokio::time::timeout(RELEASE_TIMEOUT, giving).await, Ok(Ok(()))) {
            tracing::debug!("leases were not given back, they lapse");
        }
        leases.tell();
        Ok(())
    }

    async fn next_event(&self, leases: &Leases, stop: &CancellationToken) -> Event {
        self.heartbeat.beat("wait");
        let due = leases.due().min(leases.now() + Heartbeat::INTERVAL);
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            () = leases.0.nudged.notified() => Event::Due,
            () = tokio::time::sleep_until(leases.0.began + due) => Event::Due,
        }
    }

    /// Asks about everything when anything is due: one command costs less than several.
    async fn round(
        &self,
        leases: &Leases,
        intent: Intent,
        released: &mut Option<u64>,
    ) -> Result<(), LogError> {
        if leases.due() > leases.now() {
            return Ok(());
        }
        let all = leases.asks(intent);
        for asks in all.chunks(ASKS_MAX) {
            let sent = leases.now();
            let patience = leases.0.times.patience();
            let asking = self.bus.0.log.leases(&leases.0.candidate, asks);
            let answered = tokio::time::timeout(patience, asking).await;
            let timed_out = |_| LogError::TimedOut { operation: "leases", after: patience };
            let (answers, count) = answered.map_err(timed_out)??;
            leases.note(sent, asks, answers);
            // Somebody left entries for others since the last look.
            if released.replace(count).is_some_and(|before| before != count) {
                self.bus.look_for_released();
            }
        }
        Ok(())
    }
}

impl Leases {
    /// When the next question is due; never without candidates, nor where there is nobody to ask.
    pub(super) fn due(&self) -> Duration {
        if self.0.alone {
            return Duration::MAX;
        }
        let wanted = self.wanted();
        let next = |one: &Wanted| one.next;
        wanted.values().map(next).min().unwrap_or(Duration::MAX)
    }

    fn asks(&self, intent: Intent) -> Vec<Ask> {
        let now = self.now();
        let ask = |(name, one): (&String, &Wanted)| Ask {
            name: name.clone(),
            step: match intent {
                Intent::Stay if one.leases > 0 => one.term.step(now),
                Intent::Stay | Intent::Leave => Step::Release,
            },
        };
        self.wanted().iter().map(ask).collect()
    }

    fn note(&self, sent: Duration, asks: &[Ask], answers: Vec<Answer>) {
        let now = self.now();
        let mut wanted = self.wanted();
        for (ask, answer) in asks.iter().zip(answers) {
            let Some(one) = wanted.get_mut(&ask.name) else { continue };
            match (ask.step, one.leases) {
                (Step::Release, 0) => drop(wanted.remove(&ask.name)),
                // Wanted again meanwhile, or no longer: that is the next question.
                (Step::Release, _) | (Step::Hold { .. }, 0) => one.next = now,
                (Step::Hold { .. }, _) => {
                    one.term.answered(sent, now, answer);
                    one.next = one.term.next(sent);
                }
            }
        }
    }

    fn failed(&self) {
        let soon = self.now() + RETRY;
        self.wanted().values_mut().for_each(|one| one.next = one.next.max(soon));
    }

    /// The worker ends: from now on this process acts on nothing. A worker that is started again asks
    /// for what is wanted then.
    fn resign_all(&self) {
        if self.0.alone {
            return;
        }
        for one in self.wanted().values_mut() {
            self.resign(one);
        }
    }

    /// Says in log and metrics what has changed, and wakes who waits for it.
    fn tell(&self) {
        if self.0.alone {
            return;
        }
        let now = self.now();
        let mut wanted = self.wanted();
        let mut changed = false;
        for one in wanted.values_mut().filter(|one| one.leases > 0) {
            let stands = match one.term.position(now) {
                Position::Unknown => Told::Nothing,
                Position::Held { fencing, .. } => Told::Held(fencing),
                Position::Standby { holder } => Told::Standby(holder.to_owned()),
            };
            if stands == one.told {
                continue;
            }
            changed = true;
            let before = std::mem::replace(&mut one.told, stands);
            if let Some(duty) = one.duty {
                self.told(duty, &before, &one.told);
            }
        }
        drop(wanted);
        if changed {
            self.0.changed.send_modify(|count| *count += 1);
        }
    }

    fn told(&self, duty: &'static str, before: &Told, now: &Told) {
        self.0.metrics.show_lease(duty, matches!(now, Told::Held(_)));
        match (before, now) {
            (_, Told::Held(fencing)) => {
                self.0.metrics.count_lease_change(duty);
                tracing::info!(lease = duty, fencing, "lease taken");
            }
            (Told::Held(_), Told::Nothing) => {
                self.0.metrics.count_lease_change(duty);
                tracing::warn!(lease = duty, "lease lost: it could not be renewed in time");
            }
            (Told::Held(_), Told::Standby(holder)) => {
                self.0.metrics.count_lease_change(duty);
                tracing::warn!(lease = duty, holder, "lease lost to another process");
            }
            (Told::Nothing | Told::Standby(_), Told::Standby(holder)) => {
                tracing::info!(
                    lease = duty,
                    holder,
                    "standing by, another process holds the lease"
                );
            }
            (Told::Nothing | Told::Standby(_), Told::Nothing) => {}
        }
    }
}
