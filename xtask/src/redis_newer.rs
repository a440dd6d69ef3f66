//! Newer servers beside the usual one: a Redis that has `WAITAOF` and friends, and a Valkey, so that
//! what depends on them is tested for real.
//!
//! `WEATHERLIGHT_TEST_REDIS_NEWER` and `WEATHERLIGHT_TEST_VALKEY_SERVER` name them; otherwise what an
//! earlier call unpacked under `target/redis-newer` serves, and otherwise both are fetched from
//! Debian 13 with a package configuration of our own: it needs no rights and changes nothing on the
//! system. They bring their own C library and are started through its loader. A server that cannot
//! be had fails the run: nothing is skipped.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::succeed;

/// What the two servers link, the C library included.
const PACKAGES: [&str; 15] = [
    "redis-server",
    "redis-tools",
    "valkey-server",
    "valkey-tools",
    "libc6",
    "libatomic1",
    "libcap2",
    "libgcc-s1",
    "libjemalloc2",
    "liblzf1",
    "libssl3t64",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
];
const RELEASE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Paths of servers that run.
pub struct Newer {
    /// Redis 7.2 or later.
    pub redis: PathBuf,
    /// Any Valkey.
    pub valkey: PathBuf,
}

/// Finds or fetches them. `usual` serves as the newer one when it is new enough itself.
pub fn servers(root: &Path, usual: &Path) -> Result<Newer> {
    let unpacked = root.join("target/redis-newer");
    let redis = match given("WEATHERLIGHT_TEST_REDIS_NEWER")? {
        Some(path) => Some(path),
        None if is_newer(usual) => Some(usual.to_path_buf()),
        None => runs(&unpacked.join("redis-server")),
    };
    let valkey = match given("WEATHERLIGHT_TEST_VALKEY_SERVER")? {
        Some(path) => Some(path),
        None => runs(&unpacked.join("valkey-server")),
    };
    if let (Some(redis), Some(valkey)) = (&redis, &valkey) {
        return Ok(Newer { redis: redis.clone(), valkey: valkey.clone() });
    }
    fetch(root, &unpacked).context(
        "THE TESTS NEED A NEWER SERVER (Redis 7.2 or later, and a Valkey) and it cannot be fetched; \
         name their paths in WEATHERLIGHT_TEST_REDIS_NEWER and WEATHERLIGHT_TEST_VALKEY_SERVER",
    )?;
    Ok(Newer {
        redis: redis.unwrap_or_else(|| unpacked.join("redis-server")),
        valkey: valkey.unwrap_or_else(|| unpacked.join("valkey-server")),
    })
}

fn given(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    match runs(&path) {
        Some(path) => Ok(Some(path)),
        None => bail!("{variable} names no server that runs: {}", path.display()),
    }
}

fn runs(path: &Path) -> Option<PathBuf> {
    version(path).map(|_| path.to_path_buf())
}

/// Redis with `WAITAOF`; a Valkey is none, it has its own tests.
fn is_newer(path: &Path) -> bool {
    version(path).is_some_and(|text| text.starts_with("Redis") && number(&text) >= Some((7, 2)))
}

/// `Redis server v=7.0.15 sha=...`
fn number(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("v=")?;
    let mut parts = rest.split(['.', ' ']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn version(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Into a directory beside, renamed when complete: what an interrupted call leaves is not used.
fn fetch(root: &Path, unpacked: &Path) -> Result<()> {
    println!(
        "no newer Redis and Valkey on this machine: fetching Debian's into target/redis-newer"
    );
    let part = root.join(format!("target/redis-newer.{}", std::process::id()));
    let fetched = download_and_unpack(&part);
    let fetched = fetched.and_then(|()| {
        if unpacked.exists() {
            fs::remove_dir_all(unpacked)?;
        }
        fs::rename(&part, unpacked).context("cannot rename it")
    });
    if fetched.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    fetched?;
    for name in ["redis-server", "valkey-server"] {
        starter(unpacked, name)?;
    }
    Ok(())
}

fn download_and_unpack(part: &Path) -> Result<()> {
    let (apt, packages, tree) = (part.join("apt"), part.join("packages"), part.join("tree"));
    fs::create_dir_all(&packages)?;
    let configuration = configure(&apt)?;
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &configuration).args(["-q", "-q"]).args(arguments);
        succeed(command.current_dir(&packages).stdin(Stdio::null()))
    };
    apt_get(&["update"]).context("apt-get update of a private package list failed")?;
    let wanted = PACKAGES.map(|package| format!("{package}/{RELEASE}"));
    let mut arguments = vec!["download"];
    arguments.extend(wanted.iter().map(String::as_str));
    apt_get(&arguments).context("apt-get cannot download the packages")?;
    for entry in fs::read_dir(&packages)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            succeed(Command::new("dpkg").arg("-x").arg(&path).arg(&tree))?;
        }
    }
    fs::remove_dir_all(&apt)?;
    fs::remove_dir_all(&packages)?;
    Ok(())
}

/// A package configuration that knows nothing of the system's and writes nowhere else.
fn configure(apt: &Path) -> Result<PathBuf> {
    for directory in ["lists/partial", "cache/archives/partial", "etc"] {
        fs::create_dir_all(apt.join(directory))?;
    }
    fs::write(apt.join("status"), "")?;
    let source = format!("deb [signed-by={KEYS}] {MIRROR} {RELEASE} main\n");
    fs::write(apt.join("etc/sources.list"), source)?;
    let here = apt.display();
    let text = format!(
        "Dir::Etc::sourcelist \"{here}/etc/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::State::lists \"{here}/lists\";\n\
         Dir::State::status \"{here}/status\";\n\
         Dir::Cache \"{here}/cache\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
         APT::Sandbox::User \"{}\";\n",
        std::env::var("USER").unwrap_or_else(|_| "root".to_owned()),
    );
    let path = apt.join("apt.conf");
    fs::write(&path, text)?;
    Ok(path)
}

/// A script that starts a server with the libraries beside it, the C library first of all.
fn starter(unpacked: &Path, name: &str) -> Result<()> {
    let tree = unpacked.join("tree");
    let libraries = format!("{}/usr/lib/{}-linux-gnu", tree.display(), std::env::consts::ARCH);
    let loader = fs::read_dir(&libraries)
        .with_context(|| format!("no {libraries} in the packages"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-")))
        .context("the packages have no loader")?;
    let script = format!(
        "#!/bin/sh\nexec '{}' --library-path '{libraries}' '{}/usr/bin/{name}' \"$@\"\n",
        loader.display(),
        tree.display(),
    );
    let path = unpacked.join(name);
    fs::write(&path, script)?;
    succeed(Command::new("chmod").arg("+x").arg(&path))?;
    match version(&path) {
        Some(version) => println!("fetched: {version}"),
        None => bail!("the fetched {name} does not run"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_tell_them() {
        assert_eq!(
            number("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1"),
            Some((7, 0))
        );
        assert_eq!(number("Redis server v=8.0.2 sha=0"), Some((8, 0)));
        assert_eq!(number("something else"), None);
    }
}
