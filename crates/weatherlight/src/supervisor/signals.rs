//! SIGTERM and SIGINT stop the service, a second one at once; SIGHUP reloads.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::core::Exit;
use super::runner::Handle;

/// The signals the service answers to. From its making on, they no longer end the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over from the system.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Hands every signal on to the supervisor, for ever: run it beside the supervisor.
    pub async fn forward(mut self, to: &Handle) -> std::convert::Infallible {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => to.stop(Exit::Clean),
                _ = self.interrupt.recv() => to.stop(Exit::Clean),
                _ = self.hangup.recv() => to.reload(),
            }
        }
    }
}
