//! Where trials happen: one directory for the run, which is gone after it however it ends.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

use crate::run::succeed;

/// The run's directory and the programs under trial.
#[derive(Debug)]
pub struct Place {
    /// Everything of this run stands below.
    pub directory: PathBuf,
    /// The service, built with its kill points.
    pub program: PathBuf,
    /// The Redis server.
    pub redis: PathBuf,
    /// The workspace.
    pub root: PathBuf,
    janitor: Child,
}

impl Place {
    /// Makes the directory, and starts what clears it away.
    pub fn make(root: &Path, program: &Path, redis: PathBuf) -> Result<Self> {
        let directory =
            std::env::temp_dir().join(format!("weatherlight-chaos-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let directory = directory.canonicalize()?;
        let copy = directory.join("weatherlight");
        fs::copy(program, &copy).with_context(|| format!("no {}", program.display()))?;
        let janitor = janitor(&directory)?;
        Ok(Self { directory, program: copy, redis, root: root.to_path_buf(), janitor })
    }

    /// Keeps what a failed row left to read, and says where.
    pub fn keep_logs(&self, row: &str) -> Result<PathBuf> {
        let to = self.root.join("target/chaos-failed").join(row);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(self.directory.join(row))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
            }
        }
        Ok(to)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The end of its input is its signal.
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// A shell that waits for the end of this process, however it comes (it holds the other end of a pipe), and then
/// unmounts and removes what is left. Servers and services need none: see [`tied_to_us`].
fn janitor(directory: &Path) -> Result<Child> {
    let script = "trap '' INT TERM HUP; cat >/dev/null; \
                  for at in \"$1\"/*/small; do umount -l \"$at\" 2>/dev/null; done; \
                  rm -rf \"$1\" 2>/dev/null || { sleep 1; rm -rf \"$1\"; }";
    Command::new("sh")
        .args(["-c", script, "janitor"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a shell that clears up")
}

/// A command whose process is killed when this one ends, also by Ctrl-C or SIGKILL.
pub fn tied_to_us(program: &Path) -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        return command;
    }
    Command::new(program)
}

/// A port of 127.0.0.1, below the range of outgoing connections and never the same twice in one run.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const RANGE: u16 = 8_000;
    let begin = (std::process::id() % u32::from(RANGE)) as u16;
    loop {
        let port = 12_000 + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE) % RANGE;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A small file system at `directory`, for a disk that can be filled. Needs root.
pub fn small_disk(directory: &Path, mebibytes: u32) -> Result<()> {
    fs::create_dir_all(directory)?;
    let size = format!("size={mebibytes}m");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory);
    succeed(mount.stderr(Stdio::null())).context("only root may mount a small file system")
}

/// Writes until nothing more fits, and returns the file that fills the disk.
pub fn fill(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path)?;
    for size in [1 << 16, 1 << 10, 1] {
        let block = vec![0x5a; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(path)
}

/// `libfaketime` for the service: found, or fetched from the system's packages into `target/faketime`.
pub fn faketime(root: &Path) -> Result<PathBuf> {
    const NAME: &str = "libfaketimeMT.so.1";
    let arch = std::env::consts::ARCH;
    let below = format!("usr/lib/{arch}-linux-gnu/faketime/{NAME}");
    let directory = root.join("target/faketime");
    let fetched = directory.join("tree").join(&below);
    for path in [Path::new("/").join(&below), fetched.clone()] {
        if path.is_file() {
            return Ok(path);
        }
    }
    println!("no libfaketime on this machine: fetching Debian's package into target/faketime");
    fs::create_dir_all(&directory)?;
    let download = || {
        let mut command = Command::new("apt-get");
        succeed(
            command
                .args([
                    "-q",
                    "-q",
                    "-o",
                    &format!("APT::Sandbox::User={}", user()),
                    "download",
                    "libfaketime",
                ])
                .current_dir(&directory)
                .stdin(Stdio::null()),
        )
    };
    if download().is_err() {
        let mut update = Command::new("apt-get");
        succeed(update.args(["-q", "-q", "update"]).stdin(Stdio::null()))?;
        download()?;
    }
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            succeed(Command::new("dpkg").arg("-x").arg(&path).arg(directory.join("tree")))?;
        }
    }
    if !fetched.is_file() {
        bail!("the package libfaketime has no {below}");
    }
    Ok(fetched)
}

/// Who downloads: the packages' own user may not write below `target`.
fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".to_owned())
}
