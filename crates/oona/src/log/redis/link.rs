//! A shared connection that is replaced when the server no longer answers on it.
//!
//! The client's manager connects anew when a connection breaks. One that has gone silent (a peer
//! that vanished, a middlebox that forgot it) does not break: every command on it would time out for
//! as long as the system keeps it, which may be a quarter of an hour. So the first time-out ends it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::RedisError;
use redis::aio::ConnectionManager;
use tokio::time::Instant;

/// A command given up after this long without an answer counts as a time-out, whoever gave it up: a
/// publisher's own limit may be shorter than the command's.
const SILENCE: Duration = Duration::from_millis(500);

type Connect = Box<dyn Fn() -> Result<ConnectionManager, RedisError> + Send + Sync>;

pub(super) struct Link {
    connect: Connect,
    /// The manager, and since when it is in use.
    current: Mutex<(ConnectionManager, Instant)>,
}

impl Link {
    /// Connects at the first command, and anew after each time-out. `connect` does no I/O itself.
    pub(super) fn new(
        connect: impl Fn() -> Result<ConnectionManager, RedisError> + Send + Sync + 'static,
    ) -> Result<Self, RedisError> {
        let current = Mutex::new((connect()?, Instant::now()));
        Ok(Self { connect: Box::new(connect), current })
    }

    pub(super) fn manager(&self) -> ConnectionManager {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Watches over one command that is sent now.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { link: self, sent: Instant::now(), answered: false }
    }

    /// A command sent at that time got no answer. Of many that time out together the first one
    /// replaces the connection; those of an older connection do not.
    fn timed_out(&self, sent: Instant) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if sent < current.1 {
            return;
        }
        if let Ok(manager) = (self.connect)() {
            *current = (manager, Instant::now());
        }
    }
}

/// Tells its link when its command is dropped unanswered.
pub(super) struct Watch<'a> {
    link: &'a Link,
    sent: Instant,
    answered: bool,
}

impl Watch<'_> {
    /// There was an answer, be it an error.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.answered && self.sent.elapsed() >= SILENCE {
            self.link.timed_out(self.sent);
        }
    }
}
