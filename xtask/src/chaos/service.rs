//! Services under trial, kept running as a service manager would: whatever ends is started again.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::place::{self, Place};
use super::wire;

/// Between the end of a service and its next start; systemd's usual `RestartSec`.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at its counters.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a service may take to its readiness.
const BOOT_MAX: Duration = Duration::from_secs(60);

/// One service, over all its restarts.
#[derive(Debug)]
pub struct Service {
    program: PathBuf,
    /// Its working directory: state, catalogue and artifacts unless `environment` says otherwise.
    pub home: PathBuf,
    log: PathBuf,
    environment: Vec<(String, OsString)>,
    /// Kill points of its next starts, such as `nonce_claimed:17`; none when empty.
    pub fuses: VecDeque<String>,
    child: Option<Child>,
    notify: Option<UnixDatagram>,
    http: u16,
    started: Instant,
    start_at: Instant,
    looked: Instant,
    ready: bool,
    refused_now: u64,
    refused_before: u64,
    /// Whether whatever ends is started again.
    pub keep: bool,
    /// It is stopped by a signal and answers nobody.
    pub is_frozen: bool,
    /// How its processes ended, in order.
    pub ends: Vec<(Instant, ExitStatus)>,
    /// From start to readiness, of the last start.
    pub boot: Option<Duration>,
}

impl Service {
    /// A service with these files and settings; it is started by the first [`tend`](Self::tend).
    pub fn new(place: &Place, home: PathBuf, log: PathBuf, port: u16) -> Result<Self> {
        fs::create_dir_all(&home)?;
        let now = Instant::now();
        let redis = format!("redis://127.0.0.1:{port}/0");
        let environment = vec![("REDIS_URL".to_owned(), redis.into())];
        Ok(Self {
            program: place.program.clone(),
            home,
            log,
            environment,
            fuses: VecDeque::new(),
            child: None,
            notify: None,
            http: 0,
            started: now,
            start_at: now,
            looked: now,
            ready: false,
            refused_now: 0,
            refused_before: 0,
            keep: true,
            is_frozen: false,
            ends: Vec::new(),
            boot: None,
        })
    }

    /// A setting of its starts from now on.
    pub fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.retain(|(one, _)| one != name);
        self.environment.push((name.to_owned(), value.into()));
    }

    fn start(&mut self) -> Result<()> {
        self.http = place::free_port();
        let socket = self.log.with_extension("notify");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).context("cannot listen for its readiness")?;
        notify.set_nonblocking(true)?;
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = place::tied_to_us(&self.program);
        command
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.home)
            .env("ESPER_LEYLINE_SECRET", wire::SECRET)
            .env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{}", self.http))
            .env("NOTIFY_SOCKET", &socket)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(fuse) = self.fuses.pop_front() {
            command.env("WEATHERLIGHT_CHAOS_KILL", fuse);
        }
        self.child = Some(command.spawn().context("cannot start the service")?);
        self.notify = Some(notify);
        (self.started, self.ready, self.is_frozen) = (Instant::now(), false, false);
        Ok(())
    }

    /// Notices an end, starts again, notices readiness, looks at the counters. Called many times a second.
    pub fn tend(&mut self) -> Result<()> {
        let now = Instant::now();
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.ended(now, status);
        }
        if self.child.is_none() {
            if self.keep && self.start_at <= now {
                self.start()?;
            }
            return Ok(());
        }
        if !self.ready {
            return self.listen();
        }
        if !self.is_frozen && now - self.looked >= LOOK_INTERVAL {
            self.look();
        }
        Ok(())
    }

    fn ended(&mut self, now: Instant, status: ExitStatus) {
        self.child = None;
        self.ready = false;
        self.refused_before += std::mem::take(&mut self.refused_now);
        self.ends.push((now, status));
        self.start_at = now + RESTART_PAUSE;
    }

    fn listen(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while let Some(length) =
            self.notify.as_ref().and_then(|socket| socket.recv(&mut buffer).ok())
        {
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.lines().any(|line| line == "READY=1") {
                self.ready = true;
                self.boot = Some(self.started.elapsed());
            }
        }
        if !self.ready && !self.is_frozen && self.started.elapsed() > BOOT_MAX {
            bail!("the service is not ready within {BOOT_MAX:?}; see {}", self.log.display());
        }
        Ok(())
    }

    /// What it has refused so far; of a process that was killed, what was last seen of it.
    pub fn refused(&self) -> u64 {
        self.refused_before + self.refused_now
    }

    /// Reads its counters now.
    pub fn look(&mut self) {
        self.looked = Instant::now();
        if self.ready
            && let Some(text) = get(self.http, "/metrics")
        {
            self.refused_now = sum(&text, "oona_refused_total{");
        }
    }

    /// It runs and has reported its readiness.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether a process of it runs.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Sends a signal to its process, if there is one.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// How often a process of it ended by SIGKILL.
    pub fn kills(&self) -> usize {
        self.ends
            .iter()
            .filter(|(_, status)| status.signal() == Some(Signal::KILL.as_raw()))
            .count()
    }

    /// Ends that nobody asked for: neither a kill nor a clean exit.
    pub fn crashes(&self) -> Vec<String> {
        let asked = |status: &ExitStatus| {
            status.code() == Some(0) || status.signal() == Some(Signal::KILL.as_raw())
        };
        let others = self.ends.iter().filter(|(_, status)| !asked(status));
        others.map(|(_, status)| status.to_string()).collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The body of one HTTP GET.
fn get(port: u16, path: &str) -> Option<String> {
    let patience = Duration::from_millis(300);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The sum of all samples whose line begins so.
fn sum(text: &str, begin: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(begin));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_added_up() {
        let text = "oona_refused_total{stream=\"a\"} 2\noona_refused_total{stream=\"b\"} 3\noona_other{} 7\n";
        assert_eq!(sum(text, "oona_refused_total{"), 5);
    }
}
