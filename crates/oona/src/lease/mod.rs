//! Leases: of several processes on one log, one does a duty at a time, or one works on a job.
//!
//! [`Bus::duty`] and [`Bus::job`] make this process a candidate for as long as the [`Lease`] lives;
//! the worker [`LeaseKeeper`] asks the log on behalf of all candidates of the process, with one command
//! each time. Whoever acts asks its lease for a [`Tenure`] before every step. Dropping the lease gives
//! it back, and another process has it at its next question.
//!
//! The embedded log has one process, hence every lease of it is held from the beginning.
//!
//! `term` is the arithmetic, `record` what the log does with a step, `keeper` the worker.

mod keeper;
#[cfg(test)]
pub(crate) mod record;
pub(crate) mod term;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use self::keeper::LeaseKeeper;
use self::term::{Position, Step, Term, Times};
use crate::bus::Bus;
use crate::config::LogKind;
use crate::metrics::Metrics;
use crate::sync::{Mutex, MutexGuard};

/// One question about one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) name: String,
    pub(crate) step: Step,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Random, and this process's alone.
    pub(crate) token: String,
    /// `host/pid`, for people.
    pub(crate) holder: String,
}

/// The leases that this process wants. Cheap to clone; part of the bus.
#[derive(Debug, Clone)]
pub(crate) struct Leases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Nobody else can be there.
    alone: bool,
    candidate: Candidate,
    times: Times,
    began: Instant,
    wanted: Mutex<BTreeMap<String, Wanted>>,
    nudged: Notify,
    changed: watch::Sender<u64>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Wanted {
    /// Living [`Lease`]s of that name; at 0 it is given back.
    leases: usize,
    term: Term,
    next: Duration,
    /// Name for the metrics; none for a job.
    duty: Option<&'static str>,
    /// As was last told.
    told: Told,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Nothing,
    Held(u64),
    Standby(String),
}

/// A place among the candidates for one lease; the place is left by dropping it.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    name: String,
    changed: watch::Receiver<u64>,
}

/// The right to act, for a while. Ask for a new one before every step, not before every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// Greater than that of every earlier holder: what is written under it can be told from what a
    /// holder of the past writes late.
    pub fencing: u64,
    /// Until then; `None` where nobody else can be.
    until: Option<Instant>,
}

impl Tenure {
    /// Whether the right lasts still.
    pub fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Where a lease stands for this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not asked yet, or the log does not answer: nobody acts.
    Unknown,
    /// This process acts.
    Held(Tenure),
    /// Somebody else does.
    Standby {
        /// `host/pid` of the holder; empty while it changes hands.
        holder: String,
    },
}

/// A duty as health reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStanding {
    /// The duty.
    pub name: String,
    /// `host/pid` of the holder, empty when nobody is known to be.
    pub holder: String,
    /// Whether this process holds it.
    pub is_ours: bool,
    /// The holder's fencing number; 0 when this process does not hold it.
    pub fencing: u64,
}

impl Bus {
    /// Makes this process a candidate for a duty that one process of all on this log does at a time.
    /// Needs a running [`LeaseKeeper`].
    pub fn duty(&self, name: &'static str) -> Lease {
        self.0.leases.want(name.to_owned(), Some(name))
    }

    /// The same for a duty at a place that not all processes on this log share: one process for each
    /// place does it.
    pub fn duty_at(&self, name: &'static str, place: &str) -> Lease {
        self.0.leases.want(format!("{name}:{place}"), Some(name))
    }

    /// The same for one piece of work, named by its contents: processes that want the same work do it
    /// once. Not shown in health reports and metrics.
    pub fn job(&self, name: impl Into<String>) -> Lease {
        self.0.leases.want(name.into(), None)
    }

    /// Where the duties stand for which this process is a candidate.
    pub fn leases(&self) -> Vec<LeaseStanding> {
        self.0.leases.standings()
    }
}

impl Lease {
    /// The right to act now; `None` when somebody else has it or nobody can tell.
    pub fn tenure(&self) -> Option<Tenure> {
        match self.standing() {
            Standing::Held(tenure) => Some(tenure),
            Standing::Unknown | Standing::Standby { .. } => None,
        }
    }

    /// Where it stands.
    pub fn standing(&self) -> Standing {
        self.leases.standing(&self.name)
    }

    /// Waits until something about the leases of this process may have changed. A tenure that runs
    /// out is noticed within a quarter of the time to live. Cancel safe.
    pub async fn changed(&mut self) {
        // The sender lives in this lease.
        let _ = self.changed.changed().await;
    }

    /// Waits until it is known who holds it, this process or another. Put a time-out around it: while
    /// the log is away nobody knows. Cancel safe.
    pub async fn settled(&mut self) -> Standing {
        loop {
            self.changed.mark_unchanged();
            match self.standing() {
                Standing::Unknown => self.changed().await,
                known => return known,
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.leave(&self.name);
    }
}

impl Leases {
    pub(crate) fn new(kind: LogKind, ttl: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            alone: kind == LogKind::Embedded,
            candidate: Candidate {
                token: format!("{:032x}", rand::random::<u128>()),
                holder: format!("{}/{}", crate::config::host(), std::process::id()),
            },
            times: Times { ttl },
            began: Instant::now(),
            wanted: Mutex::default(),
            nudged: Notify::new(),
            changed: watch::Sender::new(0),
            metrics,
        }))
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<String, Wanted>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process's monotonic clock.
    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    fn want(&self, name: String, duty: Option<&'static str>) -> Lease {
        let changed = self.0.changed.subscribe();
        let now = self.now();
        let mut wanted = self.wanted();
        let one = wanted.entry(name.clone()).or_insert_with(|| Wanted {
            leases: 0,
            term: Term::new(self.0.times),
            next: now,
            duty,
            told: Told::Nothing,
        });
        one.leases += 1;
        if let Some(duty) = duty {
            self.0.metrics.show_lease(duty, self.0.alone);
        }
        drop(wanted);
        self.0.nudged.notify_one();
        Lease { leases: self.clone(), name, changed }
    }

    fn leave(&self, name: &str) {
        let mut wanted = self.wanted();
        let Some(one) = wanted.get_mut(name) else { return };
        one.leases -= 1;
        if one.leases > 0 {
            return;
        }
        self.resign(one);
        if self.0.alone {
            wanted.remove(name);
        }
        drop(wanted);
        self.0.nudged.notify_one();
    }

    /// From now on nobody here acts on it, whether or not the log hears of it.
    fn resign(&self, one: &mut Wanted) {
        one.term.resigned();
        one.next = Duration::ZERO;
        let Some(duty) = one.duty else { return };
        self.0.metrics.show_lease(duty, false);
        if let Told::Held(_) = std::mem::replace(&mut one.told, Told::Nothing) {
            self.0.metrics.count_lease_change(duty);
            tracing::info!(lease = duty, "lease given back");
        }
    }

    fn standing(&self, name: &str) -> Standing {
        if self.0.alone {
            return Standing::Held(Tenure { fencing: 1, until: None });
        }
        let now = self.now();
        let wanted = self.wanted();
        let position = wanted.get(name).map_or(Position::Unknown, |one| one.term.position(now));
        match position {
            Position::Unknown => Standing::Unknown,
            Position::Held { fencing, until } => {
                let until = Some(self.0.began + until);
                Standing::Held(Tenure { fencing, until })
            }
            Position::Standby { holder } => Standing::Standby { holder: holder.to_owned() },
        }
    }

    fn standings(&self) -> Vec<LeaseStanding> {
        let duties: Vec<(String, &'static str)> = {
            let wanted = self.wanted();
            let wanted = wanted.iter().filter(|(_, one)| one.leases > 0);
            wanted.filter_map(|(key, one)| Some((key.clone(), one.duty?))).collect()
        };
        let show = |(key, duty): (String, &'static str)| (duty.to_owned(), self.standing(&key));
        let show = |duty| match show(duty) {
            (name, Standing::Unknown) => {
                LeaseStanding { name, holder: String::new(), is_ours: false, fencing: 0 }
            }
            (name, Standing::Standby { holder }) => {
                LeaseStanding { name, holder, is_ours: false, fencing: 0 }
            }
            (name, Standing::Held(tenure)) => LeaseStanding {
                name,
                holder: self.0.candidate.holder.clone(),
                is_ours: true,
                fencing: tenure.fencing,
            },
        };
        duties.into_iter().map(show).collect()
    }
}
