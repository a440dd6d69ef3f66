//! Newer servers beside the usual one: a Redis that has `WAITAOF` and friends, and a Valkey, so that
//! what depends on them is tested for real.
//!
//! `WEATHERLIGHT_TEST_REDIS_NEWER` and `WEATHERLIGHT_TEST_VALKEY_SERVER` name them; otherwise what an
//! earlier call unpacked under `target/redis-newer` serves, and otherwise both are fetched from
//! Debian 13 with a package configuration of our own: it needs no rights and changes nothing on the
//! system. They bring their own C library and are started through its loader. A server that cannot
//! be had fails the run: nothing is skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::debian;

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
    fetch(&unpacked).context(
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

fn fetch(unpacked: &Path) -> Result<()> {
    println!(
        "no newer Redis and Valkey on this machine: fetching Debian's into target/redis-newer"
    );
    debian::fetch(&PACKAGES, unpacked)?;
    for name in ["redis-server", "valkey-server"] {
        starter(unpacked, name)?;
    }
    Ok(())
}

/// Starts a server with the libraries beside it.
fn starter(unpacked: &Path, name: &str) -> Result<()> {
    let path = debian::starter(unpacked, &format!("usr/bin/{name}"))?;
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
