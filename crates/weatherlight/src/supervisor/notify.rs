//! What systemd is told: ready, status, alive, stopping. Without systemd nothing happens.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The connection to the service manager.
#[derive(Debug)]
pub struct Notifier {
    /// Half the watchdog's time-out, where one is asked for.
    alive_every: Option<Duration>,
    last_alive: Option<Instant>,
    last_status: String,
}

impl Notifier {
    /// Reads what the service manager asked for from the environment.
    pub fn from_environment() -> Self {
        let mut timeout_us = 0;
        let wanted = sd_notify::watchdog_enabled(false, &mut timeout_us);
        let alive_every = wanted.then(|| Duration::from_micros(timeout_us) / 2);
        Self { alive_every, last_alive: None, last_status: String::new() }
    }

    /// The boot list is done.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// The drain has begun.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`; sent when it differs from the last.
    pub fn status(&mut self, line: &str) {
        if self.last_status != line {
            line.clone_into(&mut self.last_status);
            send(&[NotifyState::Status(line)]);
        }
    }

    /// Feeds the watchdog when it is due. Called only while every critical worker is alive.
    pub fn alive(&mut self) {
        let Some(every) = self.alive_every else { return };
        if self.last_alive.is_none_or(|last| last.elapsed() >= every) {
            self.last_alive = Some(Instant::now());
            send(&[NotifyState::Watchdog]);
        }
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "service manager not notified");
    }
}
