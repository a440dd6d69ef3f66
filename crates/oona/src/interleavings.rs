//! The parts where threads meet, under a scheduler that tries thousands of interleavings (shuttle):
//! breakers and lanes, the token buckets, a consumer's desk, the names of consumers.
//!
//! `cargo test -p oona --features shuttle --lib interleavings` runs them, as `cargo xtask test` does.
//! A failure prints the schedule, to be replayed with `shuttle::replay`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::thread;
use tokio::time::Instant;

use crate::breaker::{BreakerPosition, Limits};
use crate::bucket::Buckets;
use crate::conservative::ConservativeBecause;
use crate::entry::EntryId;
use crate::metrics::Metrics;
use crate::shared::{Names, Pulse};
use crate::stream::Stream;
use crate::sync::Mutex;
use crate::work::Work;

/// Schedules of each test; half of them random, half by priorities with few changes (PCT).
const SCHEDULES: usize = 1_000;

fn explore(test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    let again = Arc::clone(&test);
    shuttle::check_random(move || test(), SCHEDULES / 2);
    shuttle::check_pct(move || again(), SCHEDULES / 2, 3);
}

const LIMITS: Limits = Limits { failures: 2, open: Duration::from_secs(3600), probes: 2 };

fn pulse() -> Arc<Pulse> {
    // The mode begins at a backlog of 10.
    let admission = crate::live::Limits {
        depth_max: 10,
        backpressure_threshold: 10,
        emergency_threshold: 5,
        recovery_depth: 5,
        recovery_window: Duration::ZERO,
        emergency_per_min: 1,
    };
    let (_, admission) = tokio::sync::watch::channel(admission);
    Arc::new(Pulse::new(LIMITS, admission, Metrics::detached()))
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// However many ask at once, half-open lets no more through than its probes.
#[test]
fn half_open_lets_only_its_probes_through() {
    explore(|| {
        let pulse = pulse();
        for _ in 0..2 {
            pulse.breaker(false, |breaker| breaker.failed(Instant::now()));
        }
        pulse.log_is_alive();
        let admitted = Arc::new(AtomicUsize::new(0));
        let threads = (0..4).map(|_| {
            let (pulse, admitted) = (Arc::clone(&pulse), Arc::clone(&admitted));
            thread::spawn(move || {
                if pulse.breaker(false, |breaker| breaker.admit(Instant::now())).is_ok() {
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        join(threads.collect());
        assert_eq!(admitted.load(Ordering::Relaxed), 2);
    });
}

/// Publishers that fail, publishers that succeed, a sign of life: in the end lanes, breaker and
/// gauges tell the same.
#[test]
fn lanes_follow_the_breaker() {
    explore(|| {
        let pulse = pulse();
        let mut threads = Vec::new();
        for number in 0..3 {
            let pulse = Arc::clone(&pulse);
            threads.push(thread::spawn(move || {
                for _ in 0..2 {
                    pulse.breaker(false, |breaker| match number {
                        0 => breaker.succeeded(),
                        _ => breaker.failed(Instant::now()),
                    });
                }
            }));
        }
        let alive = Arc::clone(&pulse);
        threads.push(thread::spawn(move || alive.log_is_alive()));
        join(threads);
        let closed = pulse.standings()[0].position == BreakerPosition::Closed;
        for stream in Stream::ALL {
            let because = pulse.lanes.last(stream).because();
            let expected = (!closed).then_some(ConservativeBecause::LogAway);
            assert_eq!(because, expected, "the breaker is closed: {closed}");
            assert_eq!(pulse.metrics().is_conservative(stream), !closed);
        }
    });
}

/// Several publishers note what they saw: the gauge shows the mode that holds.
#[test]
fn the_gauge_shows_the_mode_that_holds() {
    explore(|| {
        let pulse = pulse();
        let threads = [20, 0, 20].map(|depth| {
            let pulse = Arc::clone(&pulse);
            thread::spawn(move || {
                pulse.lanes.note(Stream::Normal, depth);
            })
        });
        join(threads.into());
        let because = pulse.lanes.last(Stream::Normal).because();
        assert_eq!(pulse.metrics().is_conservative(Stream::Normal), because.is_some());
    });
}

/// Of several publishers only one is told to look at the backlog.
#[test]
fn one_looks_at_the_backlog() {
    explore(|| {
        let pulse = pulse();
        let told = Arc::new(AtomicUsize::new(0));
        let threads = (0..3).map(|_| {
            let (pulse, told) = (Arc::clone(&pulse), Arc::clone(&told));
            thread::spawn(move || {
                let (_, due) = pulse.lanes.look(Stream::Normal, Duration::from_secs(3600));
                told.fetch_add(usize::from(due), Ordering::Relaxed);
            })
        });
        join(threads.collect());
        assert_eq!(told.load(Ordering::Relaxed), 1);
    });
}

/// A full bucket gives what it holds, to however many, and not one more.
#[test]
fn a_bucket_gives_no_more_than_it_holds() {
    explore(|| {
        let buckets = Arc::new(Mutex::new(Buckets::new(2, 1)));
        let taken = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let now = Instant::now();
        // The second origin and the third find no place of their own: they share one.
        let threads = [("a", 0), ("a", 0), ("a", 0), ("b", 1), ("b", 1), ("c", 1)];
        buckets.lock().unwrap().take("a", now).unwrap();
        let threads = threads.map(|(origin, of)| {
            let (buckets, taken) = (Arc::clone(&buckets), Arc::clone(&taken));
            thread::spawn(move || {
                if buckets.lock().unwrap().take(origin, now).is_ok() {
                    taken[of].fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        join(threads.into());
        assert_eq!(taken[0].load(Ordering::Relaxed), 1, "one was taken before");
        assert_eq!(taken[1].load(Ordering::Relaxed), 2);
    });
}

/// Handlers settle in their threads while the consumer waits for the key: it always wakes up, and
/// never holds the key of an entry that somebody else works on.
#[test]
fn a_settled_key_wakes_its_consumer() {
    explore(|| {
        let work = Arc::new(Work::default());
        let id = |ms| EntryId { ms, seq: 0 };
        let in_hand = Arc::new(AtomicUsize::new(0));
        work.take_in((1..=3).map(id));
        let mut handlers = Vec::new();
        for ms in 1..=3 {
            block_on(async {
                while !work.reserve("run", id(ms)) {
                    work.changed.notified().await;
                }
            });
            assert_eq!(in_hand.fetch_add(1, Ordering::SeqCst), 0, "the key was still in work");
            let (work, in_hand) = (Arc::clone(&work), Arc::clone(&in_hand));
            handlers.push(thread::spawn(move || {
                in_hand.fetch_sub(1, Ordering::SeqCst);
                match ms {
                    2 => {
                        // The log did not answer: the acknowledgement is owed, then paid.
                        work.owe(id(ms));
                        let owed = work.owed();
                        work.paid(&owed);
                    }
                    _ => work.let_go(id(ms)),
                }
            }));
        }
        join(handlers);
        assert_eq!(work.len(), 0);
    });
}

/// Two consumers of a group never share a name, and a name given back is free.
#[test]
fn names_are_never_shared() {
    explore(|| {
        let names = Arc::new(Names::default());
        let used = Arc::new(Mutex::new(std::collections::HashSet::new()));
        let threads = (0..3).map(|_| {
            let (names, used) = (Arc::clone(&names), Arc::clone(&used));
            thread::spawn(move || {
                let seat = names.take("stream", "group", "me");
                assert!(used.lock().unwrap().insert(seat.consumer.clone()), "shared");
                used.lock().unwrap().remove(&seat.consumer);
                names.give_back(&seat);
            })
        });
        join(threads.collect());
        assert_eq!(names.take("stream", "group", "me").consumer, "me");
    });
}
