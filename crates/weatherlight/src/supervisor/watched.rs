//! What the supervisor's loop and the thread beside the runtime both look at: the signs of life of
//! every worker, of the loop itself and of the runtime. Decides who is silent for too long.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oona::{Heartbeat, Sighting};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::core::WorkerId;

/// How one worker is watched now.
#[derive(Debug, Clone)]
pub(super) enum Watching {
    /// It has no task, or it was told to end.
    No,
    /// It must beat within its budget.
    Beats(Heartbeat),
    /// It was found hung and is being ended.
    Hung(Heartbeat),
}

/// One worker.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether the service does not live without it.
    pub(super) is_critical: bool,
    /// Silent for longer, it is hung, unless its phase has a budget of its own.
    pub(super) budget: Duration,
    /// How it is watched.
    pub(super) watching: Watching,
}

/// A worker that is silent for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overdue {
    pub(super) worker: WorkerId,
    pub(super) phase: &'static str,
    pub(super) about: Option<String>,
    pub(super) age: Duration,
}

/// Where a worker was last seen, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSeen {
    /// Whose.
    pub worker: &'static str,
    /// What it was about to do.
    pub phase: &'static str,
    /// What it was working on.
    pub about: Option<String>,
    /// How long ago.
    pub age: Duration,
}

impl fmt::Display for LastSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, phase, about, age } = self;
        write!(f, "{worker} {:.1} s ago in phase {phase:?}", age.as_secs_f64())?;
        about.as_ref().map_or(Ok(()), |about| write!(f, " on {about}"))
    }
}

/// What does not turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// The supervisor's own loop.
    Loop,
    /// The threads of the runtime: no task gets a turn.
    Runtime,
}

/// The process does not turn any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What is silent.
    pub what: Stuck,
    /// For how long.
    pub silence: Duration,
    /// Every living worker, the one that is silent longest first.
    pub seen: Vec<LastSeen>,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            Stuck::Loop => "the supervisor's loop does not turn",
            Stuck::Runtime => "the runtime is blocked: no task gets a turn",
        };
        write!(f, "{what} for {:.1} s; last seen: ", self.silence.as_secs_f64())?;
        let seen: Vec<String> = self.seen.iter().map(ToString::to_string).collect();
        f.write_str(if seen.is_empty() { "nobody" } else { "" })?;
        f.write_str(&seen.join(", "))
    }
}

/// The shared picture. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watched(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where a thread looks at it and pokes the loop (without one the loop wakes itself): how long
    /// the process may take to end once the loop has left.
    leave_max: Option<Duration>,
    /// The loop's own sign of life.
    turns: Heartbeat,
    /// That of a task which does nothing but beat, while there is one.
    runtime: Mutex<Option<Heartbeat>>,
    places: Mutex<Vec<Place>>,
    /// Before this moment the whole process stood still: no silence counts from earlier.
    forgiven: Mutex<Instant>,
    is_leaving: AtomicBool,
    poke: Notify,
}

impl Watched {
    /// Nobody looks but the supervisor's own loop, by the runtime's clock. For tests that pause it.
    pub fn by_the_loop() -> Self {
        Self::new(None)
    }

    /// A thread looks as well. Once the loop has left, the process may take `leave_max` to end.
    pub(super) fn by_a_thread(leave_max: Duration) -> Self {
        Self::new(Some(leave_max))
    }

    fn new(leave_max: Option<Duration>) -> Self {
        Self(Arc::new(Inner {
            leave_max,
            turns: Heartbeat::new(),
            runtime: Mutex::new(None),
            places: Mutex::new(Vec::new()),
            forgiven: Mutex::new(Instant::now()),
            is_leaving: AtomicBool::new(false),
            poke: Notify::new(),
        }))
    }

    pub(super) fn has_thread(&self) -> bool {
        self.0.leave_max.is_some()
    }

    /// The loop's own sign of life.
    pub(super) fn turns(&self) -> &Heartbeat {
        &self.0.turns
    }

    pub(super) fn set_runtime(&self, heartbeat: Option<Heartbeat>) {
        *lock(&self.0.runtime) = heartbeat;
    }

    pub(super) fn set_places(&self, places: Vec<Place>) {
        *lock(&self.0.places) = places;
    }

    /// The loop has left: what is still to be done has its own limit.
    pub(super) fn leave(&self) {
        self.set_runtime(None);
        self.set_places(Vec::new());
        self.0.turns.beat_within("leaving", self.0.leave_max.unwrap_or_default());
        self.0.is_leaving.store(true, Ordering::Relaxed);
    }

    /// Makes the loop take a turn.
    pub(super) fn poke(&self) {
        self.0.poke.notify_one();
    }

    /// Waits for a poke.
    pub(super) async fn poked(&self) {
        self.0.poke.notified().await;
    }

    /// The process stood still until `now`: every silence counts from here.
    pub(super) fn forgive(&self, now: Instant) {
        *lock(&self.0.forgiven) = now;
    }

    /// Workers that are silent for longer than their phase allows.
    pub(super) fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let forgiven = *lock(&self.0.forgiven);
        let places = lock(&self.0.places);
        let judged = places.iter().enumerate().filter_map(|(worker, place)| {
            let Watching::Beats(heartbeat) = &place.watching else { return None };
            let seen = heartbeat.sighting();
            let budget = seen.budget.unwrap_or(place.budget);
            let Sighting { phase, about, .. } = seen;
            let age = now.saturating_duration_since(seen.at);
            let is_overdue = silence(now, forgiven, seen.at) > budget;
            is_overdue.then_some(Overdue { worker, phase, about, age })
        });
        judged.collect()
    }

    /// Critical workers that are hung, whether or not they are being ended already.
    pub(super) fn hung_critical(&self, now: Instant) -> Vec<&'static str> {
        let overdue = self.overdue(now);
        let places = lock(&self.0.places);
        let is_hung = |id: usize, place: &Place| match place.watching {
            Watching::No => false,
            Watching::Beats(_) => overdue.iter().any(|overdue| overdue.worker == id),
            Watching::Hung(_) => true,
        };
        let critical = places.iter().enumerate().filter(|(_, place)| place.is_critical);
        critical.filter(|(id, place)| is_hung(*id, place)).map(|(_, place)| place.name).collect()
    }

    /// Whether the loop or the runtime is silent for longer than `budget` (or than the loop's phase
    /// allows).
    pub(super) fn blocked(&self, now: Instant, budget: Duration) -> Option<Blocked> {
        let forgiven = *lock(&self.0.forgiven);
        let turns = self.0.turns.sighting();
        let runtime = lock(&self.0.runtime).clone();
        let of_loop = silence(now, forgiven, turns.at);
        let of_runtime =
            runtime.map_or(Duration::ZERO, |beat| silence(now, forgiven, beat.sighting().at));
        let (what, silence) = if of_loop > turns.budget.unwrap_or(budget) {
            (Stuck::Loop, of_loop)
        } else if of_runtime > budget {
            (Stuck::Runtime, of_runtime)
        } else {
            return None;
        };
        Some(Blocked { what, silence, seen: self.seen(now) })
    }

    /// Whether the loop has left and only the end of the process is awaited.
    pub(super) fn is_leaving(&self) -> bool {
        self.0.is_leaving.load(Ordering::Relaxed)
    }

    fn seen(&self, now: Instant) -> Vec<LastSeen> {
        let places = lock(&self.0.places);
        let living = places.iter().filter_map(|place| match &place.watching {
            Watching::No => None,
            Watching::Beats(heartbeat) | Watching::Hung(heartbeat) => {
                let seen = heartbeat.sighting();
                let age = seen.age_at(now);
                Some(LastSeen { worker: place.name, phase: seen.phase, about: seen.about, age })
            }
        });
        let mut seen: Vec<LastSeen> = living.collect();
        seen.sort_by_key(|seen| std::cmp::Reverse(seen.age));
        seen
    }
}

fn silence(now: Instant, forgiven: Instant, at: Instant) -> Duration {
    now.saturating_duration_since(at.max(forgiven))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watched(heartbeat: &Heartbeat) -> Watched {
        let watched = Watched::by_the_loop();
        let watching = Watching::Beats(heartbeat.clone());
        let place = Place { name: "a", is_critical: true, budget: SECOND * 10, watching };
        watched.set_places(vec![place]);
        watched
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_is_judged_by_its_own_budget() {
        let heartbeat = Heartbeat::new();
        let watched = watched(&heartbeat);
        heartbeat.beat_about("judging", "17-0");
        heartbeat.beat_within("writing", SECOND * 60);
        tokio::time::advance(SECOND * 59).await;
        assert_eq!(watched.overdue(Instant::now()), []);
        tokio::time::advance(SECOND * 2).await;
        let overdue = watched.overdue(Instant::now());
        let about = Some("17-0".to_owned());
        assert_eq!(overdue, [Overdue { worker: 0, phase: "writing", about, age: SECOND * 61 }]);
        assert_eq!(watched.hung_critical(Instant::now()), ["a"]);

        heartbeat.beat("waiting");
        tokio::time::advance(SECOND * 11).await;
        assert_eq!(watched.overdue(Instant::now()).len(), 1, "the longer budget is over");
        heartbeat.beat_within("quick", SECOND);
        tokio::time::advance(SECOND * 2).await;
        assert_eq!(watched.overdue(Instant::now()).len(), 1, "a budget may be shorter");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_finds_nobody_hung() {
        let heartbeat = Heartbeat::new();
        let watched = watched(&heartbeat);
        tokio::time::advance(SECOND * 3600).await;
        watched.forgive(Instant::now());
        assert_eq!(watched.overdue(Instant::now()), []);
        assert_eq!(watched.blocked(Instant::now(), SECOND), None);
        tokio::time::advance(SECOND * 11).await;
        assert_eq!(watched.overdue(Instant::now())[0].age, SECOND * 3611, "the age is the whole");
        let blocked = watched.blocked(Instant::now(), SECOND).unwrap();
        assert_eq!((blocked.what, blocked.silence), (Stuck::Loop, SECOND * 11));
        let expected = "the supervisor's loop does not turn for 11.0 s; \
                        last seen: a 3611.0 s ago in phase \"new\"";
        assert_eq!(blocked.to_string(), expected);
    }
}
