//! The server's clock, as far as this process knows it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After this the server is asked again: clocks are set now and then.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// What the server said last, and when. A heartbeat then needs no question first.
#[derive(Debug, Default)]
pub(super) struct ServerClock(Mutex<Option<(Instant, u64)>>);

impl ServerClock {
    /// Unix milliseconds by the server's clock; `None` when it has to be asked.
    pub(super) fn now_ms(&self) -> Option<u64> {
        let (at, ms) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = at.elapsed();
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        (since < KNOWN_FOR).then(|| ms.saturating_add(since_ms))
    }

    /// It has just said so.
    pub(super) fn said(&self, ms: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ms));
    }

    /// The connection broke: behind the same address may stand another server.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_runs_on_and_is_asked_again_in_time() {
        let clock = ServerClock::default();
        assert_eq!(clock.now_ms(), None);
        clock.said(5_000);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now_ms(), Some(6_500));
        tokio::time::advance(KNOWN_FOR).await;
        assert_eq!(clock.now_ms(), None);
        clock.said(9_000);
        clock.forget();
        assert_eq!(clock.now_ms(), None);
    }
}
