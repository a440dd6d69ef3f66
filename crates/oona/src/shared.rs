//! What all clones of a bus share beside the log: last seen backlogs and modes, the breakers of
//! publishing, the consumer names in use. The state machines are pure; here stand only their locks.

use std::collections::HashSet;
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::breaker::{Breaker, BreakerPosition, BreakerStanding, Limits};
use crate::conservative::{self, Event, Lane};
use crate::live;
use crate::log::Seat;
use crate::metrics::{BreakerName, Metrics};
use crate::spool::Spool;
use crate::stream::Stream;
use crate::sync::{Mutex, MutexGuard};

/// Every stream's backlog as last seen, its mode, and when it was looked at.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: [Mutex<Looked>; Stream::ALL.len()],
    limits: watch::Receiver<live::Limits>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Looked {
    at: Option<Instant>,
    lane: Lane,
}

impl Lanes {
    fn of(&self, stream: Stream) -> MutexGuard<'_, Looked> {
        let index = Stream::ALL.iter().position(|one| *one == stream).unwrap_or(0);
        self.lanes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the mode begins and ends, as in force now.
    pub(crate) fn limits(&self) -> conservative::Limits {
        conservative::Limits::of(&self.limits.borrow())
    }

    /// The lane as last seen, and whether the caller shall look again. Of several callers only one
    /// is told to.
    pub(crate) fn look(&self, stream: Stream, interval: Duration) -> (Lane, bool) {
        let mut known = self.of(stream);
        let due = known.at.is_none_or(|at| at.elapsed() >= interval);
        if due {
            known.at = Some(Instant::now());
        }
        (known.lane, due)
    }

    /// The lane as last seen.
    pub(crate) fn last(&self, stream: Stream) -> Lane {
        self.of(stream).lane
    }

    /// Takes note of a look, and says in log and metrics when the mode changes by it.
    pub(crate) fn note(&self, stream: Stream, depth: u64) -> Lane {
        let mut known = self.of(stream);
        let before = known.lane.because();
        known.lane.note(Event::Depth(depth), Instant::now(), &self.limits());
        let lane = known.lane;
        // Shown under the lane's lock: else of two looks the earlier might be shown last, and stay.
        match (before, lane.because()) {
            (None, Some(_)) => {
                tracing::warn!(%stream, depth, "conservative mode begins, NORMAL and LOW messages pause");
                self.metrics.show_conservative(stream, true);
            }
            (Some(_), None) => {
                tracing::info!(%stream, depth, "conservative mode ends");
                self.metrics.show_conservative(stream, false);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        lane
    }

    /// The breaker of publishing has moved between closed and not closed.
    fn log_moved(&self, event: Event) {
        for stream in Stream::ALL {
            let mut known = self.of(stream);
            known.lane.note(event, Instant::now(), &self.limits());
            self.metrics.show_conservative(stream, known.lane.because().is_some());
        }
        match event {
            Event::LogLeft => {
                tracing::warn!("conservative mode begins on all streams, the log is away")
            }
            Event::Depth(_) | Event::LogReturned => {
                tracing::info!("the log is back, conservative mode ends where the backlog is low")
            }
        }
    }
}

/// The breakers of publishing, which any sign of life from the log shortens, and the lanes, which
/// follow them.
#[derive(Debug)]
pub(crate) struct Pulse {
    publish: Mutex<Breaker>,
    urgent: Mutex<Breaker>,
    pub(crate) lanes: Lanes,
    /// Has something to send as soon as the log lives.
    spool: OnceLock<Spool>,
    metrics: Metrics,
}

impl Pulse {
    pub(crate) fn new(
        limits: Limits,
        admission: watch::Receiver<live::Limits>,
        metrics: Metrics,
    ) -> Self {
        let breaker = || Mutex::new(Breaker::new(limits));
        let lanes =
            Lanes { lanes: Default::default(), limits: admission, metrics: metrics.clone() };
        Self { publish: breaker(), urgent: breaker(), lanes, spool: OnceLock::new(), metrics }
    }

    /// Acts on the breaker of one lane and shows where it stands then.
    pub(crate) fn breaker<T>(&self, urgent: bool, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let (lane, name) = match urgent {
            true => (&self.urgent, BreakerName::PublishUrgent),
            false => (&self.publish, BreakerName::Publish),
        };
        let mut breaker = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaker.position();
        let done = act(&mut breaker);
        let now = breaker.position();
        if now != before {
            self.metrics.show_breaker(name, now);
        }
        let closed = BreakerPosition::Closed;
        if !urgent && (before == closed) != (now == closed) {
            // Still under the breaker's lock, so that the lanes see its moves in their order.
            self.lanes.log_moved(if now == closed { Event::LogReturned } else { Event::LogLeft });
        }
        done
    }

    /// What shows where breakers and lanes stand.
    #[cfg(all(test, feature = "shuttle"))]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where both breakers stand.
    pub(crate) fn standings(&self) -> [BreakerStanding; 2] {
        [("publish", false), ("publish_emergency", true)].map(|(name, urgent)| BreakerStanding {
            name: name.to_owned(),
            position: self.breaker(urgent, |breaker| breaker.position()),
        })
    }

    /// From now on the spool hears of every sign of life. Once.
    pub(crate) fn tell(&self, spool: Spool) {
        self.spool.get_or_init(|| spool);
    }

    pub(crate) fn log_is_alive(&self) {
        if let Some(spool) = self.spool.get() {
            spool.log_is_alive();
        }
        for urgent in [false, true] {
            self.breaker(urgent, |breaker| breaker.log_is_alive(Instant::now()));
        }
    }
}

/// Consumer names in use in this process: two consumers of one group must not share one.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashSet<(String, String, String)>>);

impl Names {
    /// `base`, or `base-2` and so on when that is taken.
    pub(crate) fn take(&self, stream: &str, group: &str, base: &str) -> Seat {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut number = 1;
        loop {
            let consumer = if number == 1 { base.to_owned() } else { format!("{base}-{number}") };
            if taken.insert((stream.to_owned(), group.to_owned(), consumer.clone())) {
                return Seat { stream: stream.to_owned(), group: group.to_owned(), consumer };
            }
            number += 1;
        }
    }

    /// Takes exactly this name, unless somebody has it.
    pub(crate) fn reserve(&self, seat: &Seat) -> bool {
        let name = (seat.stream.clone(), seat.group.clone(), seat.consumer.clone());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name)
    }

    pub(crate) fn give_back(&self, seat: &Seat) {
        let name = (seat.stream.clone(), seat.group.clone(), seat.consumer.clone());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
    }
}
