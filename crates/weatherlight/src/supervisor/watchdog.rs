//! The thread beside the runtime. It makes the supervisor's loop look at its workers, so that no
//! timer of a blocked runtime is needed for it; notices when the loop or the runtime does not turn;
//! ends a process that cannot be drained any more; and feeds systemd's watchdog while all is well.

use std::convert::Infallible;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use crate::logging;

use super::core::Exit;
use super::notify::Feed;
use super::watched::{Blocked, Watched};

/// A look that comes later than this after it was due means that the whole process stood still
/// (`SIGSTOP`, a frozen machine), not that somebody in it hangs.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// How patient the watchdog is. Defaults stand beside each field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// 500 ms: between two looks. A hung worker is noticed within its budget plus this.
    pub look_every: Duration,
    /// 2 s: how long the supervisor's loop, or the runtime, may be silent before it is reported.
    pub turn_budget: Duration,
    /// 30 s: how long either may be silent before the process ends with code 70: what cannot be
    /// drained is better restarted by its manager.
    pub blocked_max: Duration,
    /// 10 s: how long the process may take to end once every worker is through.
    pub leave_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            look_every: Duration::from_millis(500),
            turn_budget: Duration::from_secs(2),
            blocked_max: Duration::from_secs(30),
            leave_max: Duration::from_secs(10),
        }
    }
}

/// What ends a process that does not turn.
pub type EndProcess = Box<dyn Fn(&Blocked) + Send>;

/// The thread. It ends when this is dropped: keep it until the process has nothing left to do.
#[derive(Debug)]
pub struct Watchdog {
    /// Dropped to end the thread.
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread, which ends the process with code 70 when it must.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start() -> io::Result<(Self, Watched)> {
        let end: EndProcess = Box::new(|_| {
            // What was logged of it is all that is left of the process.
            logging::flush();
            std::process::exit(i32::from(Exit::Software.code()))
        });
        Self::with(Patience::default(), Feed::from_environment(), end)
    }

    /// Starts the thread with everything told.
    pub(super) fn with(
        patience: Patience,
        feed: Feed,
        end: EndProcess,
    ) -> io::Result<(Self, Watched)> {
        let watched = Watched::by_a_thread(patience.leave_max);
        let (stop, stopped) = channel();
        let watcher = Watcher {
            watched: watched.clone(),
            patience,
            feed,
            end,
            looked: Instant::now(),
            is_reported: false,
        };
        let builder = std::thread::Builder::new().name("watchdog".to_owned());
        let thread = builder.spawn(move || watcher.run(&stopped))?;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, watched))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported by the hook.
            let _ = thread.join();
        }
    }
}

struct Watcher {
    watched: Watched,
    patience: Patience,
    feed: Feed,
    end: EndProcess,
    looked: Instant,
    is_reported: bool,
}

impl Watcher {
    fn run(mut self, stopped: &Receiver<Infallible>) {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(self.patience.look_every) {
            if let Some(blocked) = self.look(Instant::now()) {
                tracing::error!("{blocked}; the process ends with code {}", Exit::Software.code());
                return (self.end)(&blocked);
            }
        }
    }

    /// Looks once. Returns why the process must end.
    fn look(&mut self, now: Instant) -> Option<Blocked> {
        let since = now.saturating_duration_since(self.looked);
        self.looked = now;
        if since > self.patience.look_every + PAUSE_MIN {
            tracing::warn!(seconds = since.as_secs_f64(), "the process stood still");
            self.watched.forgive(now);
        }
        self.watched.poke();
        let Some(blocked) = self.watched.blocked(now, self.patience.turn_budget) else {
            if std::mem::take(&mut self.is_reported) {
                tracing::info!("the supervisor and the runtime turn again");
            }
            if self.watched.hung_critical(now).is_empty() {
                self.feed.alive();
            }
            return None;
        };
        if blocked.silence > self.patience.blocked_max || self.watched.is_leaving() {
            return Some(blocked);
        }
        if !std::mem::replace(&mut self.is_reported, true) {
            tracing::error!("{blocked}");
        }
        None
    }
}

#[cfg(test)]
mod tests;
