//! What systemd is told: ready, status, alive, stopping. Without systemd nothing happens.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Names the service manager's socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Tells the service manager where the service stands.
#[derive(Debug, Default)]
pub struct Notifier {
    last_status: String,
}

impl Notifier {
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
}

/// The service manager's watchdog.
#[derive(Debug)]
pub struct Feed {
    /// A third of the watchdog's time-out, so that one late look does no harm, and where to send, where one is asked for.
    wanted: Option<(Duration, OsString)>,
    fed: Option<Instant>,
}

impl Feed {
    /// As the service manager asked for in the environment.
    pub fn from_environment() -> Self {
        let mut timeout_us = 0;
        let is_wanted = sd_notify::watchdog_enabled(false, &mut timeout_us);
        // Without WATCHDOG_PID whoever has the variable is meant, as `sd_watchdog_enabled(3)` says.
        let unaddressed = std::env::var("WATCHDOG_USEC")
            .ok()
            .filter(|_| std::env::var_os("WATCHDOG_PID").is_none())
            .and_then(|text| text.parse().ok());
        let timeout_us = if is_wanted { Some(timeout_us) } else { unaddressed };
        let wanted = timeout_us
            .filter(|us| *us > 0)
            .zip(std::env::var_os(SOCKET))
            .map(|(us, socket)| (Duration::from_micros(us) / 3, socket));
        Self { wanted, fed: None }
    }

    /// A watchdog with this time-out behind this socket.
    #[cfg(test)]
    pub(super) fn to(socket: OsString, timeout: Duration) -> Self {
        Self { wanted: Some((timeout / 3, socket)), fed: None }
    }

    /// Feeds it when it is due. Called only while all is well.
    pub fn alive(&mut self) {
        let Some((every, socket)) = &self.wanted else { return };
        if self.fed.is_none_or(|fed| fed.elapsed() >= *every) {
            self.fed = Some(Instant::now());
            send_to(socket, &[NotifyState::Watchdog]);
        }
    }
}

/// Never waits: a service manager that does not read must not hold up the supervisor, so what its
/// socket has no room for is left out.
fn send(states: &[NotifyState<'_>]) {
    if let Some(socket) = std::env::var_os(SOCKET) {
        send_to(&socket, states);
    }
}

fn send_to(socket: &OsStr, states: &[NotifyState<'_>]) {
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    if let Err(error) = deliver(socket.as_encoded_bytes(), lines.join("\n").as_bytes()) {
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
