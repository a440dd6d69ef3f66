//! A server that has gone away is asked again once a second, not by everybody at once: whoever has something in memory
//! is served from it without waiting, and the first answer ends the outage.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Pause between two attempts while it is away.
const PAUSE: Duration = Duration::from_secs(1);

/// What is known of a server that did not answer.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When it may be asked again; `None` while it answers.
    next: Mutex<Option<Instant>>,
}

impl Outage {
    /// Whether to ask now. During an outage one caller a pause is let through.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        match *next {
            None => true,
            Some(at) if now < at => false,
            Some(_) => {
                *next = Some(now + PAUSE);
                true
            }
        }
    }

    /// It did not answer. Says whether that is news.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.replace(now + PAUSE).is_none()
    }

    /// It answered. Says whether that is news.
    pub(super) fn answered(&self) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_a_pause_asks_until_it_answers() {
        let (outage, start) = (Outage::default(), Instant::now());
        assert!(outage.may_ask(start));
        assert!(outage.failed(start) && !outage.failed(start));
        assert!(!outage.may_ask(start + PAUSE / 2));
        assert!(outage.may_ask(start + PAUSE));
        assert!(!outage.may_ask(start + PAUSE), "the others wait for the first");
        assert!(outage.may_ask(start + 2 * PAUSE));
        assert!(outage.answered() && !outage.answered());
        assert!(outage.may_ask(start));
    }
}
