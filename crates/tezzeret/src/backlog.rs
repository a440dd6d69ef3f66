//! Which jobs wait, run, or were given up, and who waits for them. Decides without a clock of its own.

use std::collections::BTreeMap;

use kernel::Digest;
use leyline::wire::MessagePriority;
use tokio::time::Instant;

use crate::config::Config;
use crate::job::Job;

/// The jobs of a forge, one entry for equal ones.
#[derive(Debug)]
pub(crate) struct Backlog<W> {
    entries: BTreeMap<Digest, Entry<W>>,
    arrivals: u64,
    len_max: usize,
}

#[derive(Debug)]
struct Entry<W> {
    job: Job,
    arrival: u64,
    urgency: Urgency,
    failures: u32,
    state: State,
    waiters: Vec<W>,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Waiting {
        not_before: Instant,
    },
    Running,
    /// Given up; refused with this reason until then.
    Parked {
        until: Instant,
        reason: String,
    },
}

/// Who wants a job: an order that somebody waits for goes before the catalogue, the urgent order before the others, and
/// of equally urgent ones that which is wanted sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    Ordered {
        priority: std::cmp::Reverse<MessagePriority>,
        /// Unix milliseconds; the far future when it does not matter.
        deadline_ms: u64,
    },
    Catalogue,
}

impl Urgency {
    /// An order of this priority; without a deadline it goes behind those that have one.
    pub(crate) fn ordered(priority: MessagePriority, deadline_ms: Option<u64>) -> Self {
        let deadline_ms = deadline_ms.unwrap_or(u64::MAX);
        Self::Ordered { priority: std::cmp::Reverse(priority), deadline_ms }
    }

    /// Priority and deadline as a ticket keeps them.
    pub(crate) fn of_ticket(self) -> (MessagePriority, Option<u64>) {
        match self {
            Self::Ordered { priority, deadline_ms } => {
                (priority.0, Some(deadline_ms).filter(|ms| *ms < u64::MAX))
            }
            Self::Catalogue => (MessagePriority::Normal, None),
        }
    }

    /// Whether somebody asked for it.
    pub(crate) fn is_ordered(self) -> bool {
        self != Self::Catalogue
    }
}

/// What became of an order.
#[derive(Debug, PartialEq)]
pub(crate) enum Admission<W> {
    /// A job of its own.
    Queued,
    /// It joined an equal one.
    Joined,
    /// An equal job failed for good a short while ago; the waiter is handed back.
    Parked { reason: String, waiter: Option<W> },
    /// There are too many jobs; the waiter is handed back.
    Full { waiter: Option<W> },
}

/// What follows from a failed attempt.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict<W> {
    /// Another attempt.
    Retry { not_before: Instant },
    /// No more attempts; these waited for it.
    GivenUp { waiters: Vec<W> },
}

impl<W> Backlog<W> {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { entries: BTreeMap::new(), arrivals: 0, len_max }
    }

    /// Takes in a job and perhaps somebody who waits for it.
    pub(crate) fn add(
        &mut self,
        job: Job,
        urgency: Urgency,
        waiter: Option<W>,
        now: Instant,
    ) -> Admission<W> {
        let key = job.key().digest();
        if let Some(entry) = self.entries.get_mut(&key) {
            match &entry.state {
                State::Parked { until, reason } if now < *until => {
                    return Admission::Parked { reason: reason.clone(), waiter };
                }
                State::Parked { .. } => {
                    entry.failures = 0;
                    entry.state = State::Waiting { not_before: now };
                }
                State::Waiting { .. } | State::Running => {}
            }
            entry.urgency = entry.urgency.min(urgency);
            entry.waiters.extend(waiter);
            return Admission::Joined;
        }
        if !self.make_room() {
            return Admission::Full { waiter };
        }
        self.arrivals += 1;
        let (arrival, state) = (self.arrivals, State::Waiting { not_before: now });
        let waiters = waiter.into_iter().collect();
        self.entries.insert(key, Entry { job, arrival, urgency, failures: 0, state, waiters });
        Admission::Queued
    }

    /// Takes in a job that was given up before this process began; one that is known stays as it is.
    pub(crate) fn park(&mut self, job: Job, until: Instant, reason: String) {
        let key = job.key().digest();
        if self.entries.contains_key(&key) || !self.make_room() {
            return;
        }
        self.arrivals += 1;
        let (arrival, urgency) = (self.arrivals, Urgency::Catalogue);
        let state = State::Parked { until, reason };
        let waiters = Vec::new();
        self.entries.insert(key, Entry { job, arrival, urgency, failures: 0, state, waiters });
    }

    /// Every job known here, in whatever state.
    pub(crate) fn keys(&self) -> std::collections::BTreeSet<Digest> {
        self.entries.keys().copied().collect()
    }

    /// Whether a job is known here, in whatever state.
    pub(crate) fn knows(&self, key: &Digest) -> bool {
        self.entries.contains_key(key)
    }

    /// Who waits for a job.
    pub(crate) fn waiters(&self, key: &Digest) -> &[W] {
        self.entries.get(key).map_or(&[], |entry| &entry.waiters)
    }

    /// Forgets the oldest parked job where the backlog is full.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < self.len_max {
            return true;
        }
        let parked = self.entries.iter().filter(|(_, entry)| entry.is_parked());
        let oldest = parked.min_by_key(|(_, entry)| entry.arrival).map(|(key, _)| *key);
        oldest.is_some_and(|key| self.entries.remove(&key).is_some())
    }

    /// The job to run next, now marked as running: ordered ones first, then those that have not failed yet, then by
    /// arrival.
    pub(crate) fn start_next(&mut self, now: Instant) -> Option<(Digest, Job)> {
        let due =
            self.entries.iter_mut().filter(|(_, entry)| entry.due().is_some_and(|at| at <= now));
        let rank = |entry: &Entry<W>| (entry.urgency, entry.failures, entry.arrival);
        let (key, entry) = due.min_by_key(|(_, entry)| rank(entry))?;
        entry.state = State::Running;
        Some((*key, entry.job.clone()))
    }

    /// Who wants a job.
    pub(crate) fn urgency(&self, key: &Digest) -> Urgency {
        self.entries.get(key).map_or(Urgency::Catalogue, |entry| entry.urgency)
    }

    /// A job that was started waits again, without a failure: until then, or at once where somebody
    /// waits for it.
    pub(crate) fn returned(&mut self, key: &Digest, not_before: Instant, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            let not_before = if entry.urgency.is_ordered() { now } else { not_before };
            entry.state = State::Waiting { not_before };
        }
    }

    /// What waits without having failed need not wait any longer.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| entry.failures == 0) {
            if let State::Waiting { not_before } = &mut entry.state {
                *not_before = now.min(*not_before);
            }
        }
    }

    /// When the next waiting job may start; in the past when one may now.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.entries.values().filter_map(Entry::due).min()
    }

    /// Ends a job well. Gives back those who waited for it.
    pub(crate) fn succeeded(&mut self, key: &Digest) -> Vec<W> {
        self.entries.remove(key).map(|entry| entry.waiters).unwrap_or_default()
    }

    /// Ends an attempt badly.
    pub(crate) fn failed(
        &mut self,
        key: &Digest,
        reason: &str,
        retryable: Retryable,
        now: Instant,
        config: &Config,
    ) -> Verdict<W> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Verdict::GivenUp { waiters: Vec::new() };
        };
        entry.failures += 1;
        let again = match retryable {
            Retryable::Yes => entry.failures < config.attempts_max,
            Retryable::No => false,
            Retryable::Always => true,
        };
        if again {
            let not_before = now + config.retry_after(key, entry.failures);
            entry.state = State::Waiting { not_before };
            return Verdict::Retry { not_before };
        }
        entry.state = State::Parked { until: now + config.parked_for, reason: reason.to_owned() };
        entry.urgency = Urgency::Catalogue;
        Verdict::GivenUp { waiters: std::mem::take(&mut entry.waiters) }
    }

    /// Failed attempts of a job so far.
    pub(crate) fn failures(&self, key: &Digest) -> u32 {
        self.entries.get(key).map_or(0, |entry| entry.failures)
    }

    /// Number of jobs that were given up and are remembered.
    pub(crate) fn parked_len(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_parked()).count()
    }

    /// Number of jobs waiting or running.
    pub(crate) fn open_len(&self) -> usize {
        self.entries.values().filter(|entry| !entry.is_parked()).count()
    }
}

/// Whether another attempt may end otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retryable {
    /// Perhaps, a bounded number of times.
    Yes,
    /// Never.
    No,
    /// The job was not to blame: as often as it takes.
    Always,
}

impl<W> Entry<W> {
    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { not_before } => Some(not_before),
            State::Running | State::Parked { .. } => None,
        }
    }

    fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn job(id: &str) -> Job {
        Job::of(karn::find(&id.into()).unwrap(), &Config::default())
    }

    const ORDERED: Urgency =
        Urgency::Ordered { priority: std::cmp::Reverse(MessagePriority::Normal), deadline_ms: 9 };

    fn started(backlog: &mut Backlog<u8>, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| backlog.start_next(now))
            .map(|(_, job)| job.blueprint().id().to_string())
            .collect()
    }

    #[test]
    fn equal_orders_become_one_job_and_all_are_answered() {
        let (mut backlog, now) = (Backlog::new(64), Instant::now());
        assert_eq!(backlog.add(job("BP009"), Urgency::Catalogue, None, now), Admission::Queued);
        assert_eq!(backlog.add(job("BP009"), ORDERED, Some(1), now), Admission::Joined);
        let (key, _) = backlog.start_next(now).unwrap();
        assert_eq!(backlog.add(job("BP009"), ORDERED, Some(2), now), Admission::Joined);
        assert_eq!(backlog.start_next(now), None, "it runs already");
        assert_eq!(backlog.succeeded(&key), [1, 2]);
        assert_eq!(backlog.open_len(), 0);
    }

    #[test]
    fn ordered_jobs_go_first_and_failed_ones_last() {
        let (mut backlog, now, config) = (Backlog::new(64), Instant::now(), Config::default());
        for id in ["BP001", "BP002", "BP003"] {
            backlog.add(job(id), Urgency::Catalogue, None, now);
        }
        let (key, first) = backlog.start_next(now).unwrap();
        assert_eq!(first.blueprint().id().as_str(), "BP001");
        let verdict = backlog.failed(&key, "broken", Retryable::Yes, now, &config);
        let Verdict::Retry { not_before: later } = verdict else { panic!("{verdict:?}") };
        assert!(later >= now + config.retry_delay);
        backlog.add(job("BP004"), ORDERED, Some(4), now);
        assert_eq!(started(&mut backlog, later), ["BP004", "BP002", "BP003", "BP001"]);
    }

    #[test]
    fn a_job_that_keeps_failing_is_parked_and_later_tried_again() {
        let (mut backlog, mut now, config) = (Backlog::new(64), Instant::now(), Config::default());
        backlog.add(job("BP009"), ORDERED, Some(1), now);
        let (key, _) = backlog.start_next(now).unwrap();
        backlog.failed(&key, "first", Retryable::Yes, now, &config);
        assert_eq!(backlog.start_next(now), None, "it backs off");
        now = backlog.next_due().unwrap();
        backlog.start_next(now).unwrap();
        let verdict = backlog.failed(&key, "second", Retryable::Yes, now, &config);
        assert_eq!(verdict, Verdict::GivenUp { waiters: vec![1] });
        assert_eq!((backlog.open_len(), backlog.next_due()), (0, None));

        let refused = backlog.add(job("BP009"), ORDERED, Some(2), now);
        let expected = Admission::Parked { reason: "second".to_owned(), waiter: Some(2) };
        assert_eq!(refused, expected);
        now += config.parked_for;
        let again = backlog.add(job("BP009"), ORDERED, Some(3), now);
        assert_eq!((again, backlog.failures(&key)), (Admission::Joined, 0));
        assert!(backlog.start_next(now).is_some());
    }

    #[test]
    fn a_job_that_another_process_does_waits_without_a_failure() {
        let (mut backlog, now) = (Backlog::new(64), Instant::now());
        let later = now + Duration::from_secs(5);
        backlog.add(job("BP009"), Urgency::Catalogue, None, now);
        let (key, _) = backlog.start_next(now).unwrap();
        backlog.returned(&key, later, now);
        assert_eq!((backlog.start_next(now), backlog.next_due()), (None, Some(later)));
        backlog.hurry(now);
        let (key, _) = backlog.start_next(now).expect("at once, now that it is ours");
        assert_eq!((backlog.urgency(&key), backlog.failures(&key)), (Urgency::Catalogue, 0));
        backlog.add(job("BP009"), ORDERED, Some(1), now);
        backlog.returned(&key, later, now);
        assert!(backlog.start_next(now).is_some(), "somebody waits for it");
        assert_eq!(backlog.urgency(&key), ORDERED);
    }

    #[test]
    fn a_fault_that_stays_is_not_tried_twice() {
        let (mut backlog, now, config) =
            (Backlog::<u8>::new(64), Instant::now(), Config::default());
        backlog.add(job("BP009"), Urgency::Catalogue, None, now);
        let (key, _) = backlog.start_next(now).unwrap();
        let verdict = backlog.failed(&key, "no such thing", Retryable::No, now, &config);
        assert_eq!(verdict, Verdict::GivenUp { waiters: Vec::new() });
    }

    #[test]
    fn a_fault_that_is_not_the_jobs_is_tried_until_it_ends() {
        let (mut backlog, mut now, config) =
            (Backlog::<u8>::new(64), Instant::now(), Config::default());
        backlog.add(job("BP009"), Urgency::Catalogue, None, now);
        for _ in 0..20 {
            let (key, _) = backlog.start_next(now).unwrap();
            let verdict = backlog.failed(&key, "no library", Retryable::Always, now, &config);
            assert!(matches!(verdict, Verdict::Retry { not_before } if not_before > now));
            now += config.retry_delay_max * 2;
        }
    }

    #[test]
    fn orders_go_by_priority_then_by_deadline() {
        let (mut backlog, now) = (Backlog::new(64), Instant::now());
        let order = |priority, deadline_ms| Urgency::ordered(priority, deadline_ms);
        for (id, urgency) in [
            ("BP001", Urgency::Catalogue),
            ("BP002", order(MessagePriority::Normal, None)),
            ("BP003", order(MessagePriority::Normal, Some(900))),
            ("BP004", order(MessagePriority::Critical, None)),
            ("BP005", order(MessagePriority::Normal, Some(100))),
            ("BP006", order(MessagePriority::High, Some(950))),
        ] {
            backlog.add(job(id), urgency, None, now);
        }
        // An equal order that is more urgent takes the job along.
        backlog.add(job("BP001"), order(MessagePriority::High, Some(10)), Some(1), now);
        let order = ["BP004", "BP001", "BP006", "BP005", "BP003", "BP002"];
        assert_eq!(started(&mut backlog, now), order);
    }

    #[test]
    fn what_was_parked_before_a_restart_is_refused_until_its_time() {
        let (mut backlog, now) = (Backlog::<u8>::new(64), Instant::now());
        let until = now + Duration::from_secs(60);
        backlog.park(job("BP009"), until, "poisoned".to_owned());
        assert_eq!((backlog.open_len(), backlog.parked_len()), (0, 1));
        let refused = backlog.add(job("BP009"), Urgency::Catalogue, None, now);
        let expected = Admission::Parked { reason: "poisoned".to_owned(), waiter: None };
        assert_eq!(refused, expected);
        assert_eq!(backlog.add(job("BP009"), ORDERED, None, until), Admission::Joined);
    }

    #[test]
    fn a_full_backlog_forgets_parked_jobs_but_refuses_rather_than_grow() {
        let (mut backlog, now, config) = (Backlog::new(2), Instant::now(), Config::default());
        backlog.add(job("BP001"), ORDERED, Some(1), now);
        let (key, _) = backlog.start_next(now).unwrap();
        backlog.failed(&key, "no", Retryable::No, now, &config);
        backlog.add(job("BP002"), ORDERED, Some(2), now);
        let third = backlog.add(job("BP003"), ORDERED, Some(3), now + Duration::from_secs(1));
        assert_eq!(third, Admission::Queued, "in the place of the parked one");
        let fourth = backlog.add(job("BP004"), ORDERED, Some(4), now);
        assert_eq!(fourth, Admission::Full { waiter: Some(4) });
    }
}
