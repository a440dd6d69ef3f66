//! A `redis-server` of one test's own: on a free port, in its own directory, without persistence,
//! and gone with the test.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// A running server; dropping it kills it.
pub struct RedisServer {
    port: u16,
    child: Child,
    // Kept open: a server whose output nobody takes stops when the pipe is full.
    _output: BufReader<ChildStdout>,
    directory: TempDir,
}

impl RedisServer {
    /// Starts a server and waits until it accepts connections.
    pub fn start() -> Self {
        // Between finding a free port and using it somebody else may take it.
        for _ in 0..10 {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = listener.local_addr().expect("an address").port();
            drop(listener);
            let directory = tempfile::tempdir().expect("a directory");
            if let Some(server) = Self::start_at(port, directory) {
                return server;
            }
        }
        panic!("redis-server does not start on any port");
    }

    fn start_at(port: u16, directory: TempDir) -> Option<Self> {
        let program = std::env::var_os("WEATHERLIGHT_TEST_REDIS_SERVER");
        let program = program.unwrap_or_else(|| "redis-server".into());
        let mut child = Command::new(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
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
            if line.contains("Ready to accept connections") {
                return Some(Self { port, child, _output: output, directory });
            }
            line.clear();
        }
        child.kill().ok();
        child.wait().ok();
        None
    }

    /// The URL to reach it by.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Its port on 127.0.0.1.
    #[allow(dead_code)]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it as `kill -9` does; all its data is gone.
    #[allow(dead_code)]
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Starts it again on the same port, empty.
    #[allow(dead_code)]
    pub fn restart(&mut self) {
        self.kill_quietly();
        let directory =
            std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a directory"));
        let again = Self::start_at(self.port, directory).expect("the port is still free");
        *self = again;
    }

    fn kill_quietly(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill_quietly();
    }
}
