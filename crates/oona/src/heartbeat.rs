//! The sign of life that every worker gives its supervisor.

use std::fmt::{Display, Write as _};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

/// A worker's sign of life: when it was last seen, where, and over what. Cheap to clone; the
/// supervisor keeps one clone and watches its age, from the runtime and from a thread beside it.
///
/// A beat is one short lock that nobody holds while waiting, and no allocation once an id of that
/// length was noted. Times are those of the runtime's clock, also where a test has paused it; on a
/// thread outside any runtime that is the machine's monotonic clock.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<Mutex<Beat>>);

#[derive(Debug)]
struct Beat {
    first: Option<Instant>,
    at: Instant,
    phase: &'static str,
    about: String,
    budget: Option<Duration>,
}

/// Where a worker was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Its first beat; absent before it.
    pub first: Option<Instant>,
    /// Its last beat, or when it was made.
    pub at: Instant,
    /// What it was about to do.
    pub phase: &'static str,
    /// The message, request or blueprint that it was working on, where it said so.
    pub about: Option<String>,
    /// How long this phase may be silent; absent where the worker's own budget holds.
    pub budget: Option<Duration>,
}

impl Heartbeat {
    /// Beat at least this often. Every wait in a worker's loop therefore ends after this time.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// A heartbeat in phase `"new"` that has not beaten yet.
    pub fn new() -> Self {
        let (phase, about) = ("new", String::new());
        let beat = Beat { first: None, at: Instant::now(), phase, about, budget: None };
        Self(Arc::new(Mutex::new(beat)))
    }

    /// A heartbeat that nobody watches, for tests and for plain calls.
    pub fn detached() -> Self {
        Self::new()
    }

    /// Says that the worker lives and what it is about to do, for nothing in particular.
    pub fn beat(&self, phase: &'static str) {
        self.stamp(phase, None).about.clear();
    }

    /// As above, naming what it works on: the id of a message, a request, a blueprint.
    pub fn beat_about(&self, phase: &'static str, id: impl Display) {
        let mut beat = self.stamp(phase, None);
        beat.about.clear();
        // Writing into a string fails only if the id's own `Display` does; then a part of it stands.
        let _ = write!(beat.about, "{id}");
    }

    /// Begins a phase of the same work that may be silent for `budget`, longer or shorter than
    /// elsewhere. The budget holds until the next beat.
    pub fn beat_within(&self, phase: &'static str, budget: Duration) {
        drop(self.stamp(phase, Some(budget)));
    }

    /// Where the worker was last seen.
    pub fn sighting(&self) -> Sighting {
        let beat = self.lock();
        Sighting {
            first: beat.first,
            at: beat.at,
            phase: beat.phase,
            about: (!beat.about.is_empty()).then(|| beat.about.clone()),
            budget: beat.budget,
        }
    }

    /// Time since the last beat.
    pub fn age(&self) -> Duration {
        self.lock().at.elapsed()
    }

    /// What the worker said it was about to do when it last beat.
    pub fn phase(&self) -> &'static str {
        self.lock().phase
    }

    /// Awaits `future` and beats every [`INTERVAL`](Self::INTERVAL) meanwhile. For waits on events
    /// only: a wait that may hang needs a time-out of its own, since this never looks hung.
    pub async fn during<F: Future>(&self, phase: &'static str, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        loop {
            self.beat(phase);
            if let Ok(output) = tokio::time::timeout(Self::INTERVAL, future.as_mut()).await {
                return output;
            }
        }
    }

    /// Beats about `id` whenever `work` is polled, so that of many messages at work in one task the
    /// one is named on which the task got stuck.
    pub fn over<W: Future>(&self, phase: &'static str, id: impl Display, work: W) -> Over<W> {
        Over { heartbeat: self.clone(), phase, id: id.to_string(), work: Box::pin(work) }
    }

    fn stamp(&self, phase: &'static str, budget: Option<Duration>) -> MutexGuard<'_, Beat> {
        let now = Instant::now();
        let mut beat = self.lock();
        beat.first.get_or_insert(now);
        (beat.at, beat.phase, beat.budget) = (now, phase, budget);
        beat
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

impl Sighting {
    /// Time from the last beat to `now`.
    pub fn age_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }
}

/// See [`Heartbeat::over`].
#[derive(Debug)]
pub struct Over<W> {
    heartbeat: Heartbeat,
    phase: &'static str,
    id: String,
    work: Pin<Box<W>>,
}

impl<W: Future> Future for Over<W> {
    type Output = W::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<W::Output> {
        self.heartbeat.beat_about(self.phase, &self.id);
        self.work.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_keeps_beating() {
        let heartbeat = Heartbeat::new();
        let wait = heartbeat.during("waiting", tokio::time::sleep(Duration::from_millis(3_500)));
        wait.await;
        assert_eq!(heartbeat.phase(), "waiting");
        assert_eq!(heartbeat.age(), Duration::from_millis(500));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(heartbeat.age(), Duration::from_millis(9_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_has_its_own_budget_until_the_next_beat() {
        let heartbeat = Heartbeat::new();
        assert_eq!(heartbeat.sighting().first, None);
        heartbeat.beat_about("judging", "17-0");
        let first = heartbeat.sighting().first;
        heartbeat.beat_within("writing", Duration::from_secs(60));
        let seen = heartbeat.sighting();
        assert_eq!((seen.phase, seen.about.as_deref()), ("writing", Some("17-0")));
        assert_eq!((seen.budget, seen.first), (Some(Duration::from_secs(60)), first));
        heartbeat.beat("waiting");
        let seen = heartbeat.sighting();
        assert_eq!((seen.about, seen.budget), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_messages_at_work_the_one_that_is_polled_is_named() {
        let heartbeat = Heartbeat::new();
        let names = |id: &'static str| {
            let seen = heartbeat.clone();
            heartbeat.over("serving", id, async move { seen.sighting().about })
        };
        let both = tokio::join!(names("1-0"), names("2-0"));
        assert_eq!(both, (Some("1-0".to_owned()), Some("2-0".to_owned())));
    }

    /// What a thread outside the runtime reads is in order with what a worker inside it noted.
    #[test]
    fn a_thread_beside_the_runtime_sees_the_same_times() {
        let heartbeat = Heartbeat::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let before = Instant::now();
        runtime.block_on(async { heartbeat.beat("inside") });
        let seen = heartbeat.sighting();
        assert!(before <= seen.at && seen.at <= Instant::now());
    }
}
