//! The Redis server the tests start for themselves.
//!
//! Looked for in this order: `WEATHERLIGHT_TEST_REDIS_SERVER`, `PATH` (Redis or Valkey), what an
//! earlier call unpacked under `target/`. Otherwise it is fetched from the system's package
//! registry: on Debian and Ubuntu the packages are unpacked under `target/redis`, which needs no
//! rights and starts no service; elsewhere the error says what to install.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::succeed;

const NAMES: [&str; 2] = ["redis-server", "valkey-server"];
/// What Debian's server links beyond the base system; names differ between releases, so a
/// package that does not exist is passed over.
const PACKAGES: [&str; 17] = [
    "redis-server",
    "redis-tools",
    "libjemalloc2",
    "liblzf1",
    "liblua5.1-0",
    "lua-bitop",
    "lua-cjson",
    "libhiredis0.14",
    "libatomic1",
    "libssl3",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblzma5",
    "libzstd1",
    "liblz4-1",
];

/// The path of a server that runs.
pub fn server(root: &Path) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WEATHERLIGHT_TEST_REDIS_SERVER") {
        return verified(Path::new(&path))
            .context("WEATHERLIGHT_TEST_REDIS_SERVER names no server that runs");
    }
    if let Some(found) = NAMES.iter().find_map(|name| on_path(name)) {
        return verified(&found);
    }
    let fetched = root.join("target/redis/redis-server");
    if fetched.exists()
        && let Ok(path) = verified(&fetched)
    {
        return Ok(path);
    }
    fetch(root).context(
        "the tests need a Redis server (7.0 or later) and none was found; install one \
         (Debian: apt-get install redis-server; macOS: brew install redis) or name its path in \
         WEATHERLIGHT_TEST_REDIS_SERVER",
    )
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

fn verified(path: &Path) -> Result<PathBuf> {
    let output = Command::new(path).arg("--version").output().context("it does not start")?;
    if !output.status.success() {
        bail!("{} --version ended with {}", path.display(), output.status);
    }
    Ok(path.to_path_buf())
}

/// Downloads and unpacks Debian's packages, and writes a starter that finds their libraries.
fn fetch(root: &Path) -> Result<PathBuf> {
    if on_path("apt-get").is_none() {
        bail!("this system has no apt-get to fetch it with");
    }
    let directory = root.join("target/redis");
    let packages = directory.join("packages");
    fs::create_dir_all(&packages)?;
    println!("no Redis server on this machine: fetching Debian's packages into target/redis");
    if download(&packages, PACKAGES[0]).is_err() {
        // A fresh image has no package lists; only its own user may fetch them.
        succeed(quiet(Command::new("apt-get").arg("update")))
            .context("apt-get update failed (it needs root once)")?;
        download(&packages, PACKAGES[0]).context("apt-get cannot download redis-server")?;
    }
    for package in &PACKAGES[1..] {
        // A name that this release does not have; a library really missing shows below.
        let _ = download(&packages, package);
    }
    let tree = directory.join("tree");
    for entry in fs::read_dir(&packages)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            succeed(Command::new("dpkg").arg("-x").arg(&path).arg(&tree))?;
        }
    }
    starter(&directory, &tree)
}

fn download(directory: &Path, package: &str) -> Result<()> {
    succeed(quiet(Command::new("apt-get").args(["download", package]).current_dir(directory)))
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null())
}

fn starter(directory: &Path, tree: &Path) -> Result<PathBuf> {
    // Debian's redis-server is one of several names of the same program.
    let program = tree.join("usr/bin/redis-server");
    if !program.exists() {
        let _ = fs::remove_file(&program);
        symlink("redis-check-rdb", &program)?;
    }
    let libraries = format!("{0}/usr/lib/{1}-linux-gnu:{0}/usr/lib", tree.display(), arch());
    let path = directory.join("redis-server");
    let script =
        format!("#!/bin/sh\nLD_LIBRARY_PATH='{libraries}' exec '{}' \"$@\"\n", program.display());
    fs::write(&path, script)?;
    succeed(Command::new("chmod").arg("+x").arg(&path))?;
    verified(&path).context("the fetched server does not run")
}

fn arch() -> &'static str {
    std::env::consts::ARCH
}
