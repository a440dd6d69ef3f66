//! What systemd is told: ready, status, alive, stopping. Without systemd nothing happens.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
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

/// Never waits: a service manager that does not read must not hold up the supervisor, so what its
/// socket has no room for is left out.
fn send(states: &[NotifyState<'_>]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    if let Err(error) = deliver(path.as_encoded_bytes(), lines.join("\n").as_bytes()) {
        tracing::debug!(%error, "service manager not notified");
    }
}

fn deliver(path: &[u8], message: &[u8]) -> io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_that_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let path = path.as_os_str().as_bytes();
        let sent = (0..10_000).take_while(|_| deliver(path, b"STATUS=up").is_ok()).count();
        assert!((1..10_000).contains(&sent), "{sent} messages fit, then it is refused at once");
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STATUS=up");
    }
}
