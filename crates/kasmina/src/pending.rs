//! The table of fetches in progress: what was asked, how often, until when. Decides without a
//! clock and without the bus.

use std::collections::BTreeMap;
use std::time::Duration;

use leyline::ids::{BlueprintId, RequestId};
use tokio::time::Instant;

use crate::fetch::{FetchFailure, FetchOrder};

/// How long and how often a kernel is asked for. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// 30 s for one answer; longer than the library waits for a build.
    pub reply_timeout: Duration,
    /// 3 times the same request is sent at most.
    pub attempts_max: u32,
    /// 500 ms before the first repetition; doubled for each further one.
    pub retry_delay: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            reply_timeout: Duration::from_secs(30),
            attempts_max: 3,
            retry_delay: Duration::from_millis(500),
        }
    }
}

/// Where one fetch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Recorded, to be sent when its time comes.
    Due { at: Instant },
    /// Sent, or being sent; the answer is waited for until then.
    Asked { until: Instant },
    /// Answered with a kernel, which is being opened.
    Opening,
}

#[derive(Debug)]
struct Pending {
    order: FetchOrder,
    ordered: Instant,
    attempts: u32,
    phase: Phase,
    last: Option<FetchFailure>,
    /// Asked for the slot's own shape: what is offered for the blueprint did not fit.
    by_site: bool,
}

/// What to do with a fetch that did not succeed yet.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It will be sent again when it is due.
    Again,
    /// It has ended.
    Over(FetchOrder, FetchFailure),
    /// It is not pending.
    Unknown,
}

/// Whether an answer is for one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// It is, and it is waited for.
    Awaited,
    /// It is for somebody else's request, or for one that is done.
    Foreign,
    /// Our request, but about another blueprint.
    WrongBlueprint,
}

/// Every fetch in progress, by its request.
#[derive(Debug)]
pub(crate) struct Table {
    pending: BTreeMap<RequestId, Pending>,
    patience: Patience,
}

impl Table {
    pub(crate) fn new(patience: Patience) -> Self {
        Self { pending: BTreeMap::new(), patience }
    }

    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Records an order, due at once. Recorded before it is sent, so that no answer is too early.
    pub(crate) fn record(&mut self, order: FetchOrder, now: Instant) {
        let phase = Phase::Due { at: now };
        let pending =
            Pending { ordered: now, attempts: 0, phase, last: None, by_site: false, order };
        self.pending.insert(pending.order.request.clone(), pending);
    }

    /// Makes what was being opened by a run that has ended due again.
    pub(crate) fn restart(&mut self, now: Instant) {
        for pending in self.pending.values_mut() {
            if pending.phase == Phase::Opening {
                pending.phase = Phase::Due { at: now };
            }
        }
    }

    /// Takes the orders that are due, marking them as asked.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<FetchOrder> {
        let mut due = Vec::new();
        for pending in self.pending.values_mut() {
            if matches!(pending.phase, Phase::Due { at } if at <= now) {
                pending.attempts += 1;
                pending.phase = Phase::Asked { until: now + self.patience.reply_timeout };
                due.push(pending.order.clone());
            }
        }
        due
    }

    /// Whether a request is for the slot's own shape.
    pub(crate) fn is_by_site(&self, request: &RequestId) -> bool {
        self.pending.get(request).is_some_and(|pending| pending.by_site)
    }

    /// Takes the requests whose answer is overdue.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<RequestId> {
        let late =
            |pending: &&Pending| matches!(pending.phase, Phase::Asked { until } if until <= now);
        self.pending.values().filter(late).map(|pending| pending.order.request.clone()).collect()
    }

    /// When something is next due or overdue.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let deadline = |pending: &Pending| match pending.phase {
            Phase::Due { at } => Some(at),
            Phase::Asked { until } => Some(until),
            Phase::Opening => None,
        };
        self.pending.values().filter_map(deadline).min()
    }

    /// Whether an answer is for one of ours. A late one, of an attempt before, is as good.
    pub(crate) fn matches(&self, request: &RequestId, blueprint: &BlueprintId) -> Match {
        match self.pending.get(request) {
            None => Match::Foreign,
            Some(Pending { phase: Phase::Opening, .. }) => Match::Foreign,
            Some(pending) if pending.order.blueprint != *blueprint => Match::WrongBlueprint,
            Some(_) => Match::Awaited,
        }
    }

    /// Marks a request as answered with a kernel; hands back the order and when it was given.
    pub(crate) fn opening(&mut self, request: &RequestId) -> Option<(FetchOrder, Instant)> {
        let pending = self.pending.get_mut(request)?;
        pending.phase = Phase::Opening;
        Some((pending.order.clone(), pending.ordered))
    }

    /// Ends a fetch; `None` when it is not pending.
    pub(crate) fn finish(&mut self, request: &RequestId) -> Option<FetchOrder> {
        self.pending.remove(request).map(|pending| pending.order)
    }

    /// Decides what follows a failure: a repetition while it may help and attempts are left. A
    /// time-out at the end says what had gone wrong before it, when something had.
    pub(crate) fn failed(
        &mut self,
        request: &RequestId,
        failure: FetchFailure,
        now: Instant,
    ) -> Verdict {
        let Some(pending) = self.pending.get_mut(request) else { return Verdict::Unknown };
        if failure == FetchFailure::IncompatibleSite && !pending.by_site {
            pending.by_site = true;
            pending.attempts = 0;
            pending.phase = Phase::Due { at: now };
            return Verdict::Again;
        }
        let wait_max = self.patience.reply_timeout * self.patience.attempts_max;
        if let FetchFailure::Compiling { retry_after } = failure
            && now + retry_after < pending.ordered + wait_max
        {
            // It goes on there; asking what has become of it is no further attempt.
            pending.attempts = pending.attempts.saturating_sub(1);
            pending.phase = Phase::Due { at: now + retry_after };
            pending.last = Some(failure);
            return Verdict::Again;
        }
        if failure.is_retryable() && pending.attempts < self.patience.attempts_max {
            let doublings = pending.attempts.saturating_sub(1).min(16);
            let at = now + self.patience.retry_delay * (1 << doublings);
            pending.phase = Phase::Due { at };
            pending.last = Some(failure);
            return Verdict::Again;
        }
        let failure = match failure {
            FetchFailure::TimedOut => pending.last.take().unwrap_or(FetchFailure::TimedOut),
            failure => failure,
        };
        match self.finish(request) {
            Some(order) => Verdict::Over(order, failure),
            None => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(request: &str) -> FetchOrder {
        FetchOrder {
            request: request.into(),
            seed: "s".into(),
            blueprint: "BP001".into(),
            shape: vec![32],
            parameters: [].into(),
        }
    }

    #[test]
    fn repeats_with_growing_delays_and_then_gives_up() {
        let patience = Patience::default();
        let (mut table, id) = (Table::new(patience.clone()), RequestId::new("r"));
        let mut now = Instant::now();
        table.record(order("r"), now);
        for (attempt, delay_ms) in [(1, 500), (2, 1000)] {
            assert_eq!(table.take_due(now), [order("r")], "attempt {attempt}");
            assert!(table.take_due(now).is_empty());
            assert!(table.overdue(now).is_empty());
            now += patience.reply_timeout;
            assert_eq!(table.overdue(now), std::slice::from_ref(&id));
            assert_eq!(table.failed(&id, FetchFailure::TimedOut, now), Verdict::Again);
            let due = now + Duration::from_millis(delay_ms);
            assert_eq!(table.next_deadline(), Some(due));
            assert!(table.take_due(due - Duration::from_millis(1)).is_empty());
            now = due;
        }
        assert_eq!(table.take_due(now).len(), 1);
        let over = table.failed(&id, FetchFailure::TimedOut, now);
        assert_eq!(over, Verdict::Over(order("r"), FetchFailure::TimedOut));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn what_is_compiling_is_asked_for_when_it_should_be_there() {
        let patience = Patience::default();
        let (mut table, id) = (Table::new(patience.clone()), RequestId::new("r"));
        let began = Instant::now();
        let (mut now, retry_after) = (began, Duration::from_secs(7));
        table.record(order("r"), now);
        let mut asked = 0;
        while now + retry_after < began + patience.reply_timeout * patience.attempts_max {
            assert_eq!(table.take_due(now).len(), 1);
            asked += 1;
            let compiling = FetchFailure::Compiling { retry_after };
            assert_eq!(table.failed(&id, compiling, now), Verdict::Again);
            now += retry_after;
            assert_eq!(table.next_deadline(), Some(now));
        }
        assert!(asked > patience.attempts_max, "no attempt is used up by waiting");
    }

    #[test]
    fn what_does_not_fit_the_slot_is_asked_for_once_more_by_its_site() {
        let (mut table, id, now) =
            (Table::new(Patience::default()), RequestId::new("r"), Instant::now());
        table.record(order("r"), now);
        table.take_due(now);
        assert!(!table.is_by_site(&id));
        assert_eq!(table.failed(&id, FetchFailure::IncompatibleSite, now), Verdict::Again);
        assert_eq!(table.take_due(now), [order("r")]);
        assert!(table.is_by_site(&id));
        let over = table.failed(&id, FetchFailure::IncompatibleSite, now);
        assert_eq!(over, Verdict::Over(order("r"), FetchFailure::IncompatibleSite));
    }

    #[test]
    fn what_cannot_get_better_ends_at_once() {
        let (mut table, id, now) = (Table::new(Patience::default()), "r".into(), Instant::now());
        table.record(order("r"), now);
        table.take_due(now);
        let over = table.failed(&id, FetchFailure::MissingArtifact, now);
        assert_eq!(over, Verdict::Over(order("r"), FetchFailure::MissingArtifact));
        assert_eq!(table.failed(&id, FetchFailure::TimedOut, now), Verdict::Unknown);
    }

    #[test]
    fn only_answers_to_what_is_asked_match() {
        let (mut table, now) = (Table::new(Patience::default()), Instant::now());
        table.record(order("r"), now);
        let is = |table: &Table, request: &str, blueprint: &str| {
            table.matches(&request.into(), &blueprint.into())
        };
        assert_eq!(is(&table, "r", "BP001"), Match::Awaited);
        assert_eq!(is(&table, "r", "BP002"), Match::WrongBlueprint);
        assert_eq!(is(&table, "BP001", "BP001"), Match::Foreign);
        table.opening(&"r".into());
        assert_eq!(is(&table, "r", "BP001"), Match::Foreign, "answered twice");
        assert_eq!(table.next_deadline(), None);
    }
}
