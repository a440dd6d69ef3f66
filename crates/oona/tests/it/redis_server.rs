//! A `redis-server` of one test's own: on a port that nobody else is given, in its own directory,
//! and gone with the test. Without persistence unless asked for.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

/// No persistence: the usual case, and the fastest.
const FORGETFUL: [&str; 4] = ["--save", "", "--appendonly", "no"];

/// A running server; dropping it kills it.
pub struct RedisServer {
    program: PathBuf,
    port: u16,
    extra: Vec<String>,
    process: Option<Process>,
    directory: TempDir,
}

struct Process {
    child: Child,
    // Kept open: a server whose output nobody takes stops when the pipe is full.
    _output: BufReader<ChildStdout>,
}

impl RedisServer {
    /// Starts a server and waits until it accepts connections.
    pub fn start() -> Self {
        Self::start_with(&FORGETFUL)
    }

    /// The same with these arguments instead of those that switch persistence off; `{dir}` in one of
    /// them stands for the server's directory.
    pub fn start_with(extra: &[&str]) -> Self {
        Self::start_program(usual(), extra)
    }

    /// The same with another program; `{port}` stands for the server's port.
    pub fn start_program(program: PathBuf, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let here = directory.path().to_str().expect("a path of plain text").to_owned();
        let extra: Vec<String> = extra.iter().map(|word| word.replace("{dir}", &here)).collect();
        let mut server = Self { program, port: free_port(), extra, process: None, directory };
        for _ in 0..10 {
            if server.run() {
                return server;
            }
            server.port = free_port();
        }
        panic!("redis-server does not start on any port");
    }

    /// A sentinel with these settings.
    pub fn start_sentinel(settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("sentinel.conf");
        std::fs::write(&file, settings).expect("a settings file");
        let file = file.to_str().expect("a path of plain text").to_owned();
        let extra = vec![file, "--sentinel".to_owned()];
        let mut server =
            Self { program: usual(), port: free_port(), extra, process: None, directory };
        assert!(server.run(), "the sentinel does not start");
        server
    }

    /// Starts the process; `false` when it ends before it accepts connections.
    fn run(&mut self) -> bool {
        let port = self.port.to_string();
        let mut child = Command::new(&self.program)
            // A settings file comes first of all.
            .args(self.extra.iter().filter(|word| word.ends_with(".conf")))
            .args(["--port", &port, "--bind", "127.0.0.1"])
            .args(
                self.extra
                    .iter()
                    .filter(|word| !word.ends_with(".conf"))
                    .map(|word| word.replace("{port}", &port)),
            )
            .arg("--dir")
            .arg(self.directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot start redis-server ({error}); install it, then run `cargo xtask test`"
                )
            });
        let mut output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut line = String::new();
        while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            if line.contains("Ready to accept connections") || line.contains("+monitor master") {
                self.process = Some(Process { child, _output: output });
                return true;
            }
            line.clear();
        }
        child.kill().ok();
        child.wait().ok();
        false
    }

    /// The URL to reach it by.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// One command on a connection of its own.
    pub async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }

    /// Its process, to be stopped and continued.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").child.id()
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Kills it as `kill -9` does. What it keeps on disk stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.child.kill().ok();
            process.child.wait().ok();
        }
    }

    /// Starts it again on the same port, with what is on its disk: nothing, without persistence.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.run(), "the port {} is still free", self.port);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Redis 7.0 or later.
pub fn usual() -> PathBuf {
    let program = std::env::var_os("WEATHERLIGHT_TEST_REDIS_SERVER");
    program.unwrap_or_else(|| "redis-server".into()).into()
}

/// Redis 7.2 or later.
pub fn newer() -> PathBuf {
    fetched("WEATHERLIGHT_TEST_REDIS_NEWER", "redis-server")
}

/// Any Valkey.
pub fn valkey() -> PathBuf {
    fetched("WEATHERLIGHT_TEST_VALKEY_SERVER", "valkey-server")
}

/// What `cargo xtask test` names, or has fetched earlier.
fn fetched(variable: &str, name: &str) -> PathBuf {
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/redis-newer").join(name);
    let path = std::env::var_os(variable).map_or(there, PathBuf::from);
    assert!(path.exists(), "no {}; run `cargo xtask test` once, or set {variable}", path.display());
    path
}

/// A port of 127.0.0.1 outside the range from which the system takes ports for outgoing
/// connections, and never twice in one process: a port found by binding to 0 may be taken again
/// before the server binds it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const RANGE: u16 = 12_000;
    let begin = u16::try_from(std::process::id() % u32::from(RANGE)).unwrap_or(0);
    loop {
        let port = 20_000 + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE) % RANGE;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
