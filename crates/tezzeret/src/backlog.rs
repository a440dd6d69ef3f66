//! Which jobs wait, run, or were given up, and who waits for them. Decides without a clock of its own.

use std::collections::BTreeMap;

use kernel::Digest;
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

/// Who wants a job: an order that somebody waits for goes before the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    Ordered,
    Catalogue,
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
            let not_before = match entry.urgency {
                Urgency::Ordered => now,
                Urgency::Catalogue => not_before,
            };
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
            let not_before = now + config.retry_after(entry.failures);
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

    fn started(backlog: &mut Backlog<u8>, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| backlog.start_next(now))
            .map(|(_, job)| job.blueprint().id().to_string())
            .collect()
    }

    #[test]
    fn equal_orders_become_one_job_and_all_are_answered() {
        let (mut backlog, now) = (Backlog::new(64), Instant::now());
        assert_eq!(backlog.add(job("BP009"), Urgency::Catalogue, None, now), Admission::Queued);
        assert_eq!(backlog.add(job("BP009"), Urgency::Ordered, Some(1), now), Admission::Joined);
        let (key, _) = backlog.start_next(now).unwrap();
        assert_eq!(backlog.add(job("BP009"), Urgency::Ordered, Some(2), now), Admission::Joined);
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
        assert_eq!(verdict, Verdict::Retry { not_before: now + config.retry_delay });
        backlog.add(job("BP004"), Urgency::Ordered, Some(4), now);
        let later = now + config.retry_delay;
        assert_eq!(started(&mut backlog, later), ["BP004", "BP002", "BP003", "BP001"]);
    }

    #[test]
    fn a_job_that_keeps_failing_is_parked_and_later_tried_again() {
        let (mut backlog, mut now, config) = (Backlog::new(64), Instant::now(), Config::default());
        backlog.add(job("BP009"), Urgency::Ordered, Some(1), now);
        let (key, _) = backlog.start_next(now).unwrap();
        backlog.failed(&key, "first", Retryable::Yes, now, &config);
        assert_eq!(backlog.start_next(now), None, "it backs off");
        assert_eq!(backlog.next_due(), Some(now + config.retry_delay));
        now += config.retry_delay;
        backlog.start_next(now).unwrap();
        let verdict = backlog.failed(&key, "second", Retryable::Yes, now, &config);
        assert_eq!(verdict, Verdict::GivenUp { waiters: vec![1] });
        assert_eq!((backlog.open_len(), backlog.next_due()), (0, None));

        let refused = backlog.add(job("BP009"), Urgency::Ordered, Some(2), now);
        let expected = Admission::Parked { reason: "second".to_owned(), waiter: Some(2) };
        assert_eq!(refused, expected);
        now += config.parked_for;
        let again = backlog.add(job("BP009"), Urgency::Ordered, Some(3), now);
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
        backlog.add(job("BP009"), Urgency::Ordered, Some(1), now);
        backlog.returned(&key, later, now);
        assert!(backlog.start_next(now).is_some(), "somebody waits for it");
        assert_eq!(backlog.urgency(&key), Urgency::Ordered);
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
            now += config.retry_delay_max;
        }
    }

    #[test]
    fn a_full_backlog_forgets_parked_jobs_but_refuses_rather_than_grow() {
        let (mut backlog, now, config) = (Backlog::new(2), Instant::now(), Config::default());
        backlog.add(job("BP001"), Urgency::Ordered, Some(1), now);
        let (key, _) = backlog.start_next(now).unwrap();
        backlog.failed(&key, "no", Retryable::No, now, &config);
        backlog.add(job("BP002"), Urgency::Ordered, Some(2), now);
        let third =
            backlog.add(job("BP003"), Urgency::Ordered, Some(3), now + Duration::from_secs(1));
        assert_eq!(third, Admission::Queued, "in the place of the parked one");
        let fourth = backlog.add(job("BP004"), Urgency::Ordered, Some(4), now);
        assert_eq!(fourth, Admission::Full { waiter: Some(4) });
    }
}
