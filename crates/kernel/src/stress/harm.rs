//! What each stress operator does while it runs. Everything here ends by itself; see the bounds beside [`Stress`].

use std::hint::{black_box, spin_loop};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{DEADLOCK_WAIT, ROUND, Stress, Ward};
use crate::error::RunError;

/// Threads of a race.
const RACERS: u32 = 4;
/// Updates each of them makes.
const UPDATES: u32 = 8;
/// Share of the number that an update keeps.
const KEPT: f32 = 0.9;
/// A race on a machine that has no time for its threads ends here.
const RACE_TIME_MAX: Duration = Duration::from_millis(500);
/// How often a thread that waits for a lock looks whether it may stop.
const LOOK_EVERY: Duration = Duration::from_millis(1);

impl Stress {
    /// Does the harm, and passes `x` on to `out`.
    pub(crate) fn run(self, ward: &Ward, x: &[f32], out: &mut [f32]) -> Result<(), RunError> {
        if ward.is_stopped() {
            return Err(RunError::Stopped);
        }
        let factor = match self {
            Self::Loop { iterations } => {
                spin(iterations, ward)?;
                1.0
            }
            Self::Leak { mebibytes } => {
                ward.leak((f64::from(mebibytes) * f64::from(1_u32 << 20)) as u64)?;
                1.0
            }
            Self::Deadlock { threads } => return Err(wait_in_a_ring(threads, ward)),
            Self::Race { window_ns } => race(Duration::from_nanos(u64::from(window_ns)), ward)?,
        };
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = x * factor);
        Ok(())
    }
}

/// Arithmetic for the time of `rounds` rounds. What the system gives to others counts too, so that the bound holds.
fn spin(rounds: u32, ward: &Ward) -> Result<(), RunError> {
    let began = Instant::now();
    let mut number = 1_u64;
    for round in 1..=rounds {
        while began.elapsed() < ROUND * round {
            for _ in 0..64 {
                number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        }
        if ward.is_stopped() {
            return Err(RunError::Stopped);
        }
    }
    Ok(())
}

/// A lock that can be waited for with an end.
#[derive(Debug, Default)]
struct Lock {
    taken: Mutex<bool>,
    freed: Condvar,
}

impl Lock {
    /// Takes the lock, waiting until `until` at most.
    fn take(&self, until: Instant, ward: &Ward) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !*taken {
                *taken = true;
                return true;
            }
            if ward.is_stopped() || Instant::now() >= until {
                return false;
            }
            let waited = self.freed.wait_timeout(taken, LOOK_EVERY);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn free(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.freed.notify_one();
    }
}

/// Every thread takes its lock, and when all hold one, wants its neighbour's. Always an error: what was found.
fn wait_in_a_ring(threads: u32, ward: &Ward) -> RunError {
    let locks: Vec<Lock> = (0..threads).map(|_| Lock::default()).collect();
    let holding = AtomicU32::new(0);
    let began = Instant::now();
    let until = began + DEADLOCK_WAIT;
    let one = |index: usize| {
        let (own, next) = (&locks[index], &locks[(index + 1) % locks.len()]);
        let has_own = own.take(until, ward);
        holding.fetch_add(1, Ordering::Relaxed);
        // One that went ahead would find its neighbour's lock free, and the ring would not close.
        while holding.load(Ordering::Relaxed) < threads
            && Instant::now() < until
            && !ward.is_stopped()
        {
            thread::yield_now();
        }
        if next.take(until, ward) {
            next.free();
        }
        if has_own {
            own.free();
        }
    };
    let started = in_threads(threads, one);
    match started {
        Err(_) => RunError::Threads { wanted: threads },
        Ok(()) if ward.is_stopped() => RunError::Stopped,
        Ok(()) => RunError::Deadlock { threads, waited_ms: began.elapsed().as_millis() as u64 },
    }
}

/// A moving average that several threads update without a lock. The update is a load, a pause and a store, each atomic,
/// so that what is raced for is the value and never memory.
fn race(window: Duration, ward: &Ward) -> Result<f32, RunError> {
    let shared = AtomicU32::new(1.0_f32.to_bits());
    let ready = AtomicU32::new(0);
    let began = Instant::now();
    let is_over = || ward.is_stopped() || began.elapsed() >= RACE_TIME_MAX;
    let one = |index: usize| {
        ready.fetch_add(1, Ordering::Relaxed);
        while ready.load(Ordering::Relaxed) < RACERS && !is_over() {
            thread::yield_now();
        }
        // The means of what the threads write are spread about 1.
        let written = 2.0 * (index as f32 + 1.0) / (RACERS + 1) as f32;
        for _ in 0..UPDATES {
            let read = f32::from_bits(shared.load(Ordering::Relaxed));
            let paused = Instant::now();
            while paused.elapsed() < window {
                spin_loop();
            }
            // Threads that all gave way at every update would keep step with each other on one core. Who gives way is up
            // to the noise of the clock, as in any race.
            if paused.elapsed().subsec_nanos() & 1 == 0 {
                thread::yield_now();
            }
            let updated = KEPT * read + (1.0 - KEPT) * written;
            shared.store(updated.to_bits(), Ordering::Relaxed);
            if is_over() {
                return;
            }
        }
    };
    in_threads(RACERS, one).map_err(|_| RunError::Threads { wanted: RACERS })?;
    if ward.is_stopped() {
        return Err(RunError::Stopped);
    }
    Ok(f32::from_bits(shared.load(Ordering::Relaxed)))
}

/// Runs `one` in so many threads, each with its number, and waits for all. Those that were started end by themselves.
fn in_threads(count: u32, one: impl Fn(usize) + Sync) -> io::Result<()> {
    thread::scope(|scope| {
        for index in 0..count as usize {
            let one = &one;
            let builder = thread::Builder::new().name("stress".to_owned());
            builder.spawn_scoped(scope, move || one(index))?;
        }
        Ok(())
    })
}
