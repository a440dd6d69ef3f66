//! A Redis server for the length of one run.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use super::BenchError;

/// A server that does not start within this does not start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Ports tried before giving up; another program may take one between finding and binding it.
const ATTEMPTS: usize = 5;

/// A `redis-server` on a free port of 127.0.0.1 with an append-only file synced every second.
/// Dropping it kills it; its directory is the caller's to remove.
#[derive(Debug)]
pub struct PrivateServer {
    child: Child,
    port: u16,
    // Kept open: a server whose output nobody takes stops when the pipe is full.
    _output: BufReader<ChildStdout>,
}

impl PrivateServer {
    /// Starts the program found on the path (or `program`) with its files in `directory`.
    ///
    /// # Errors
    /// [`BenchError::Io`] when there is no such program or it does not start in time.
    pub async fn start(program: Option<PathBuf>, directory: &Path) -> Result<Self, BenchError> {
        let what = "start redis-server; install it, or set REDIS_URL to measure on a running one";
        let failed = |source| BenchError::Io { what, source };
        let program = program.unwrap_or_else(|| PathBuf::from("redis-server"));
        for _ in 0..ATTEMPTS {
            let port = free_port().map_err(failed)?;
            let mut child = command(&program, port, directory).spawn().map_err(failed)?;
            let Some(output) = child.stdout.take() else { continue };
            let ready = tokio::task::spawn_blocking(move || wait_until_ready(output));
            if let Ok(Ok(Some(output))) = timeout(START_TIMEOUT, ready).await {
                return Ok(Self { child, port, _output: output });
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        Err(failed(std::io::Error::other("it did not get ready on any port")))
    }

    /// The URL to reach it by.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(program: &Path, port: u16, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"]).arg(directory);
    // A rewrite of the file takes a core from whatever is measured just then.
    command.args(["--auto-aof-rewrite-percentage", "0"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Reads its log up to the line that says so; `None` when it ends before.
fn wait_until_ready(output: ChildStdout) -> Option<BufReader<ChildStdout>> {
    let mut output = BufReader::new(output);
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        if line.contains("Ready to accept connections") {
            return Some(output);
        }
        line.clear();
    }
    None
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
