//! A Redis server of one trial: on a port of its own, in a directory of its own, gone with the trial.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;
use super::place::{self, Place};

/// When Redis makes durable what it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Before it acknowledges.
    Always,
    /// Once a second.
    EverySecond,
}

/// A server, running or not.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    directory: PathBuf,
    sync: Sync,
    child: Option<Child>,
    /// Its port, the same after a restart.
    pub port: u16,
}

impl Server {
    /// Starts one and waits until it answers.
    pub fn start(place: &Place, directory: PathBuf, sync: Sync) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        let (program, port) = (place.redis.clone(), place::free_port());
        let mut server = Self { program, directory, sync, child: None, port };
        server.resume()?;
        Ok(server)
    }

    /// Starts it again, on the same port and with what its disk has.
    pub fn resume(&mut self) -> Result<()> {
        let sync = match self.sync {
            Sync::Always => "always",
            Sync::EverySecond => "everysec",
        };
        let child = place::tied_to_us(&self.program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", sync, "--dir"])
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            if Instant::now() > deadline {
                bail!("Redis does not answer on port {} within 20 s", self.port);
            }
            // A listening socket has no event that another process could await.
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        let pong = self.client().and_then(|mut client| Ok(client.command("PING")?));
        pong.is_ok_and(|reply| reply.bytes() == b"PONG")
    }

    /// A connection to it.
    pub fn client(&self) -> Result<Client> {
        Client::connect(self.port, Duration::from_secs(5))
            .context("Redis does not take a connection")
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("Redis does not run")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
