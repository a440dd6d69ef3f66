//! The PostgreSQL server the tests start for themselves: the directory of its `initdb` and `postgres`.
//!
//! Looked for in this order: `WEATHERLIGHT_TEST_POSTGRES`, `PATH`, `/usr/lib/postgresql/*/bin`, what an earlier call
//! unpacked under `target/postgres`. Otherwise it is fetched from Debian 13 with a package configuration of our own: it
//! needs no rights and changes nothing on the system. A server that cannot be had fails the run: nothing is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::run::succeed;

/// The version of Debian 13.
const VERSION: &str = "17";
const NAMES: [&str; 2] = ["initdb", "postgres"];
/// What the two programs link, the C library included. The compiler of expressions is left out: it is loaded on use.
const PACKAGES: [&str; 34] = [
    "postgresql-17",
    "postgresql-client-17",
    "libpq5",
    "libc6",
    "libaudit1",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libffi8",
    "libgcc-s1",
    "libgmp10",
    "libgnutls30t64",
    "libgssapi-krb5-2",
    "libhogweed6t64",
    "libicu76",
    "libidn2-0",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap2",
    "liblz4-1",
    "liblzma5",
    "libnettle8t64",
    "libp11-kit0",
    "libpam0g",
    "libsasl2-2",
    "libselinux1",
    "libssl3t64",
    "libstdc++6",
    "libsystemd0",
    "libtasn1-6",
    "libunistring5",
    "libxml2",
];
/// Names that only some architectures or point releases need.
const MORE: [&str; 5] = ["libzstd1", "zlib1g", "libpcre2-8-0", "libnuma1", "tzdata"];

/// The directory of a server that runs.
pub fn programs(root: &Path) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("WEATHERLIGHT_TEST_POSTGRES").map(PathBuf::from) {
        return runs(&given).with_context(|| {
            format!(
                "WEATHERLIGHT_TEST_POSTGRES has no initdb and postgres that run: {}",
                given.display()
            )
        });
    }
    let unpacked = root.join("target/postgres");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|directory| {
        Some(directory.join("postgres").canonicalize().ok()?.parent()?.to_path_buf())
    });
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = installed.map(|version| version.path().join("bin"));
    let fetched = unpacked.join("bin");
    if let Some(found) = on_path.chain(installed).chain([fetched]).find_map(|path| runs(&path)) {
        return Ok(found);
    }
    fetch(&unpacked).context(
        "THE TESTS NEED A POSTGRESQL SERVER and none was found; install one (Debian: apt-get install postgresql) or \
         name the directory of initdb and postgres in WEATHERLIGHT_TEST_POSTGRES",
    )
}

/// The directory, when both programs start.
fn runs(directory: &Path) -> Option<PathBuf> {
    let starts = |name: &&str| {
        let mut command = Command::new(directory.join(name));
        let quiet = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    NAMES.iter().all(starts).then(|| directory.to_path_buf())
}

fn fetch(unpacked: &Path) -> Result<PathBuf> {
    println!("no PostgreSQL on this machine: fetching Debian's into target/postgres");
    let packages: Vec<&str> = PACKAGES.iter().chain(&MORE).copied().collect();
    debian::fetch(&packages, unpacked)?;
    let tree = unpacked.join("tree");
    let inside = tree.join("usr/lib/postgresql").join(VERSION).join("bin");
    let libraries = format!("{}/usr/lib/{}-linux-gnu", tree.display(), std::env::consts::ARCH);
    let loader = fs::read_dir(&libraries)
        .with_context(|| format!("no {libraries} in the packages"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-")))
        .context("the packages have no loader")?;
    for name in NAMES {
        // The programs look for each other and for their data beside themselves: the starter takes the program's place
        // and its name.
        let (program, moved) = (inside.join(name), inside.join(format!("{name}.program")));
        fs::rename(&program, &moved).with_context(|| format!("the packages have no {name}"))?;
        let script = format!(
            "#!/bin/sh\nexec '{}' --argv0 '{}' --library-path '{libraries}:{libraries}/systemd' '{}' \"$@\"\n",
            loader.display(),
            program.display(),
            moved.display(),
        );
        fs::write(&program, script)?;
        succeed(Command::new("chmod").arg("+x").arg(&program))?;
    }
    let bin = unpacked.join("bin");
    std::os::unix::fs::symlink(&inside, &bin)?;
    match runs(&inside) {
        Some(found) => Ok(found),
        None => bail!("the fetched PostgreSQL does not run"),
    }
}
