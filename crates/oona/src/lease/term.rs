//! The arithmetic of one lease, as one process sees it. Decides without clock and I/O: it is told what
//! was asked when, and what was answered when, on this process's monotonic clock.
//!
//! The log knows no time of expiry. It keeps a number that grows with every renewal, and whoever has
//! seen the same number for the time to live takes the lease over, provided that it still stands there.
//! So neither a step of the server's clock nor one of ours makes two holders.
//!
//! With the time to live T: a holder renews every T/4, and acts until 2T/3 after it *sent* the last
//! renewal that was answered. Another may take the lease T after it was *told* of a number, hence later
//! than T after the renewal that wrote it. Between the end of the one and the beginning of the other
//! lies T/3, so clocks may run apart: a holder's clock slower by a fifth and another's faster by a fifth
//! just meet, since (1 + 1/5) / (1 - 1/5) = T / (2T/3).

use std::time::Duration;

/// The times that follow from the time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// So long the same number must have stood before another takes the lease.
    pub(crate) ttl: Duration,
}

impl Times {
    /// Between two renewals, and between two looks at another's lease.
    pub(crate) fn interval(self) -> Duration {
        self.ttl / 4
    }

    /// How long a holder acts on an answer, counted from the question.
    pub(crate) fn acting(self) -> Duration {
        self.ttl * 2 / 3
    }

    /// How long an answer is waited for: two questions fit in before a holder stops acting.
    pub(crate) fn patience(self) -> Duration {
        self.ttl / 6
    }
}

/// What to ask of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Take it if it is free, renew it if it is ours; take it from whoever has it if it stands at
    /// `lapsed` still.
    Hold {
        /// The number that has stood for too long.
        lapsed: Option<u64>,
    },
    /// Give it back, if it is ours.
    Release,
}

/// How the log answers: how the lease stands after the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Grows with every renewal and every change of holder.
    pub(crate) version: u64,
    /// The version at which the present holder took it.
    pub(crate) fencing: u64,
    pub(crate) is_ours: bool,
    /// Who has it, in words; empty when nobody does.
    pub(crate) holder: String,
}

/// What this process knows of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Term {
    times: Times,
    known: Known,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Nothing,
    Ours { fencing: u64, until: Duration },
    Theirs { holder: String, version: u64, since: Duration, told: Duration },
}

/// Where a lease stands, as far as this process may act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position<'a> {
    /// Not asked yet, or the log gives no answer.
    Unknown,
    /// This process may act, until then.
    Held { fencing: u64, until: Duration },
    /// Somebody else has it.
    Standby { holder: &'a str },
}

impl Term {
    pub(crate) fn new(times: Times) -> Self {
        Self { times, known: Known::Nothing }
    }

    /// What to ask now.
    pub(crate) fn step(&self, now: Duration) -> Step {
        let lapsed = match &self.known {
            Known::Theirs { version, since, .. }
                if now.saturating_sub(*since) >= self.times.ttl =>
            {
                Some(*version)
            }
            Known::Nothing | Known::Ours { .. } | Known::Theirs { .. } => None,
        };
        Step::Hold { lapsed }
    }

    /// Takes note of the answer to a question sent at `sent` and answered at `now`.
    pub(crate) fn answered(&mut self, sent: Duration, now: Duration, answer: Answer) {
        let Answer { version, fencing, is_ours, holder } = answer;
        self.known = if is_ours {
            Known::Ours { fencing, until: sent + self.times.acting() }
        } else {
            let since = match &self.known {
                Known::Theirs { version: seen, since, .. } if *seen == version => *since,
                Known::Nothing | Known::Ours { .. } | Known::Theirs { .. } => now,
            };
            Known::Theirs { holder, version, since, told: now }
        };
    }

    /// This process gives the lease up: it does not act on it from now on.
    pub(crate) fn resigned(&mut self) {
        self.known = Known::Nothing;
    }

    pub(crate) fn position(&self, now: Duration) -> Position<'_> {
        match &self.known {
            Known::Ours { fencing, until } if now < *until => {
                Position::Held { fencing: *fencing, until: *until }
            }
            Known::Theirs { holder, told, .. } if now.saturating_sub(*told) < self.times.ttl => {
                Position::Standby { holder }
            }
            Known::Nothing | Known::Ours { .. } | Known::Theirs { .. } => Position::Unknown,
        }
    }

    /// When to ask again after a question at `asked`: another's lease is taken as soon as it may be.
    pub(crate) fn next(&self, asked: Duration) -> Duration {
        let usual = asked + self.times.interval();
        match &self.known {
            Known::Theirs { since, .. } if *since + self.times.ttl > asked => {
                usual.min(*since + self.times.ttl)
            }
            Known::Nothing | Known::Ours { .. } | Known::Theirs { .. } => usual,
        }
    }
}
