//! The processes: the service in a directory of its own, told apart by what its service manager would see, and
//! a Redis server of its own.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::{Client, free_port, get};
use super::wire::SECRET;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the end of a process is looked for: it has no event with a time-out.
const LOOK: Duration = Duration::from_micros(500);

/// Which log the service stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// In the process.
    Embedded,
    /// Redis.
    Redis,
}

impl Log {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Embedded, Self::Redis];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Redis => "Redis",
        }
    }

    /// The server it needs, if any.
    pub fn server(self, program: &Path) -> Result<Option<Redis>> {
        match self {
            Self::Embedded => Ok(None),
            Self::Redis => Redis::start(program).map(Some),
        }
    }
}

/// A Redis server as `compose.yaml` runs it.
pub struct Redis {
    child: Child,
    /// Where it listens.
    pub port: u16,
    _directory: TempDir,
}

impl Redis {
    /// Starts one and waits until it answers.
    pub fn start(program: &Path) -> Result<Self> {
        let directory = TempDir::new()?;
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"]);
        let child = command.arg(directory.path()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let server = Self { child, port, _directory: directory };
        let deadline = Instant::now() + PATIENCE;
        while Client::connect(port).is_err() {
            ensure!(Instant::now() < deadline, "Redis does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// A connection.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(self.port)?)
    }

    /// The server's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a service keeps its files; it outlives restarts.
pub struct Home {
    directory: TempDir,
    redis: Option<u16>,
}

impl Home {
    /// An empty one.
    pub fn new(redis: Option<&Redis>) -> Result<Self> {
        Ok(Self { directory: TempDir::new()?, redis: redis.map(|server| server.port) })
    }

    /// Starts the service. Returns it with the time from before the start of its process to `READY=1`.
    pub fn start(&self, program: &Path) -> Result<(Service, Duration)> {
        let here = self.directory.path();
        let http = free_port();
        let socket = here.join(format!("notify-{http}"));
        let notify = UnixDatagram::bind(&socket)?;
        notify.set_read_timeout(Some(PATIENCE))?;
        let log = File::options().create(true).append(true).open(here.join("log"))?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .env_clear()
            .env("HOME", here)
            .env("ESPER_LEYLINE_SECRET", SECRET)
            .env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{http}"))
            .env("NOTIFY_SOCKET", &socket)
            .current_dir(here)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(port) = self.redis {
            command.env("REDIS_URL", format!("redis://127.0.0.1:{port}/0"));
        }
        let begun = Instant::now();
        let child =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let service = Service { child, http };
        let mut buffer = [0; 4096];
        loop {
            let length = notify.recv(&mut buffer).with_context(|| {
                let log = fs::read_to_string(here.join("log")).unwrap_or_default();
                format!("the service does not become ready: {log}")
            })?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.lines().any(|line| line == "READY=1") {
                break;
            }
        }
        let taken = begun.elapsed();
        // What was announced must hold at once.
        let (status, body) = get(service.http, "/readyz");
        ensure!(status == 200, "READY=1 was sent, and /readyz answers {status}: {body}");
        Ok((service, taken))
    }

    /// Starts it once, waits until the catalogue is compiled, and stops it.
    pub fn compile_catalogue(&self, program: &Path) -> Result<()> {
        let (service, _) = self.start(program)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (done, waiting) =
                (service.metric("tezzeret_jobs_total")?, service.metric("tezzeret_jobs_waiting")?);
            if done > 0.0 && waiting == 0.0 {
                break;
            }
            ensure!(Instant::now() < deadline, "the catalogue is not compiled: {done}, {waiting}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
        service.stop().map(|_| ())
    }
}

/// A running service.
pub struct Service {
    child: Child,
    http: u16,
}

impl Service {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The sum of a metric's samples.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (status, text) = get(self.http, "/metrics");
        ensure!(status == 200, "/metrics answers {status}");
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Stops its processor time, so that what is sent meanwhile waits.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no id")?;
        Ok(kill_process(id, signal)?)
    }

    /// SIGTERM; the time until the process has ended, which must be a clean end.
    pub fn stop(mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.signal(Signal::TERM)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let taken = begun.elapsed();
                ensure!(status.success(), "the service ended with {status}");
                return Ok(taken);
            }
            if begun.elapsed() > PATIENCE {
                bail!("the service did not end within {PATIENCE:?}");
            }
            std::thread::park_timeout(LOOK);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
