//! What all clones of a bus share beside the log: last seen backlogs, the breakers of publishing,
//! the consumer names in use.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{Breaker, BreakerStanding, Limits};
use crate::log::Seat;
use crate::metrics::{BreakerName, Metrics};
use crate::stream::Stream;

/// The last known backlog of every stream, and when it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Depths([Mutex<(Option<Instant>, u64)>; Stream::ALL.len()]);

impl Depths {
    fn of(&self, stream: Stream) -> MutexGuard<'_, (Option<Instant>, u64)> {
        let index = Stream::ALL.iter().position(|one| *one == stream).unwrap_or(0);
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backlog as last seen, and whether the caller shall look again. Of several callers only
    /// one is told to.
    pub(crate) fn look(&self, stream: Stream, interval: Duration) -> (u64, bool) {
        let mut known = self.of(stream);
        let due = known.0.is_none_or(|at| at.elapsed() >= interval);
        if due {
            known.0 = Some(Instant::now());
        }
        (known.1, due)
    }

    /// The backlog as last seen.
    pub(crate) fn last(&self, stream: Stream) -> u64 {
        self.of(stream).1
    }

    pub(crate) fn note(&self, stream: Stream, depth: u64) {
        self.of(stream).1 = depth;
    }
}

/// The breakers of publishing, which any sign of life from the log shortens.
#[derive(Debug)]
pub(crate) struct Pulse {
    publish: Mutex<Breaker>,
    urgent: Mutex<Breaker>,
    metrics: Metrics,
}

impl Pulse {
    pub(crate) fn new(limits: Limits, metrics: Metrics) -> Self {
        let breaker = || Mutex::new(Breaker::new(limits));
        Self { publish: breaker(), urgent: breaker(), metrics }
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
        if breaker.position() != before {
            self.metrics.show_breaker(name, breaker.position());
        }
        done
    }

    /// Where both breakers stand.
    pub(crate) fn standings(&self) -> [BreakerStanding; 2] {
        [("publish", false), ("publish_emergency", true)].map(|(name, urgent)| BreakerStanding {
            name: name.to_owned(),
            position: self.breaker(urgent, |breaker| breaker.position()),
        })
    }

    pub(crate) fn log_is_alive(&self) {
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

    pub(crate) fn give_back(&self, seat: &Seat) {
        let name = (seat.stream.clone(), seat.group.clone(), seat.consumer.clone());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
    }
}
