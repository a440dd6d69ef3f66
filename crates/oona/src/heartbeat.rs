//! The sign of life that every worker gives its supervisor.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A worker's sign of life: when it was last seen, and where. Cheap to clone; the supervisor keeps
/// one clone and watches its age.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<Mutex<(Instant, &'static str)>>);

impl Heartbeat {
    /// Beat at least this often. Every wait in a worker's loop therefore ends after this time.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// A heartbeat that has just beaten, in phase `"new"`.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new((Instant::now(), "new"))))
    }

    /// A heartbeat that nobody watches, for tests and for plain calls.
    pub fn detached() -> Self {
        Self::new()
    }

    /// Says that the worker lives and what it is about to do.
    pub fn beat(&self, phase: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), phase);
    }

    /// Time since the last beat.
    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.elapsed()
    }

    /// What the worker said it was about to do when it last beat.
    pub fn phase(&self) -> &'static str {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
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
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
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
}
