//! The built program in a directory of its own, started, killed and stopped from outside.

use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::redis::{Server, free_port};
use crate::wire::SECRET;

pub struct Service {
    child: Child,
    pub http: u16,
    notify: UnixDatagram,
}

/// Where one service keeps its files; it outlives a restart.
pub struct Home {
    pub directory: TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    /// The program with a clean environment, its files in this directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weatherlight"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts `serve` on this Redis and waits until it reports that it is ready.
    pub fn serve(&self, redis: &Server) -> Service {
        self.serve_with(redis, |_| {})
    }

    /// The same as one of several services, with a replica's name of its own.
    pub fn serve_as(&self, redis: &Server, replica: &str) -> Service {
        self.serve_with(redis, |command| {
            command.env("NISSA_REPLICA", replica);
        })
    }

    /// The same with more in its environment, or less.
    pub fn serve_with(&self, redis: &Server, change: impl FnOnce(&mut Command)) -> Service {
        let http = free_port();
        let socket = self.directory.path().join(format!("notify-{http}"));
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut command = self.command(&["serve"]);
        command
            .env("REDIS_URL", redis.url())
            .env("ESPER_LEYLINE_SECRET", SECRET)
            .env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{http}"))
            .env("NOTIFY_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        change(&mut command);
        let child = command.spawn().unwrap();
        let service = Service { child, http, notify };
        service.await_notification("READY=1");
        service
    }

    /// Runs the program to its end: exit code and everything it printed.
    pub fn run(&self, command: &mut Command) -> (i32, String) {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).unwrap();
            text
        });
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = ended(&mut child, Duration::from_secs(60));
        text.push_str(&reader.join().unwrap());
        (status.code().unwrap_or(-1), text)
    }
}

impl Service {
    fn await_notification(&self, wanted: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = self.notify.recv(&mut buffer).expect("the service reports in time");
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    /// Sends a signal, as `kill` names it.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no chance to clean up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit status after the drain.
    pub fn terminate(mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        ended(&mut self.child, Duration::from_secs(20))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process, which has no event with a time-out.
pub fn ended(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the process did not end within {patience:?}");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
