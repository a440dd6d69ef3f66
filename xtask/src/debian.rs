//! Programs from Debian's packages, unpacked below `target/`.
//!
//! A package configuration of our own is used: it needs no rights and changes nothing on the system. The
//! packages bring their own C library, and the programs are started through its loader.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run::succeed;

const RELEASE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Fetches packages and unpacks them into `unpacked/tree`. Works in a directory beside, renamed when
/// complete: what an interrupted call leaves is not used.
///
/// # Errors
/// When there is no `apt-get` or `dpkg`, or the mirror does not answer.
pub fn fetch(packages: &[&str], unpacked: &Path) -> Result<()> {
    let part = unpacked.with_extension(format!("{}.part", std::process::id()));
    let fetched = download_and_unpack(packages, &part).and_then(|()| {
        if unpacked.exists() {
            fs::remove_dir_all(unpacked)?;
        }
        fs::rename(&part, unpacked).context("cannot rename it")
    });
    if fetched.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    fetched
}

/// A script in `unpacked` that starts a program of the packages with the libraries beside it, the C
/// library first of all. Returns its path.
///
/// # Errors
/// When the packages hold no loader.
pub fn starter(unpacked: &Path, program: &str) -> Result<PathBuf> {
    let tree = unpacked.join("tree");
    let libraries = format!("{}/usr/lib/{}-linux-gnu", tree.display(), std::env::consts::ARCH);
    let loader = fs::read_dir(&libraries)
        .with_context(|| format!("no {libraries} in the packages"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-")))
        .context("the packages have no loader")?;
    let script = format!(
        "#!/bin/sh\nexec '{}' --library-path '{libraries}:{libraries}/systemd' '{}/{program}' \"$@\"\n",
        loader.display(),
        tree.display(),
    );
    let name = Path::new(program).file_name().context("the program has a name")?;
    let path = unpacked.join(name);
    fs::write(&path, script)?;
    succeed(Command::new("chmod").arg("+x").arg(&path))?;
    Ok(path)
}

fn download_and_unpack(packages: &[&str], part: &Path) -> Result<()> {
    let (apt, archives, tree) = (part.join("apt"), part.join("packages"), part.join("tree"));
    fs::create_dir_all(&archives)?;
    let configuration = configure(&apt)?;
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &configuration).args(["-q", "-q"]).args(arguments);
        succeed(command.current_dir(&archives).stdin(Stdio::null()))
    };
    apt_get(&["update"]).context("apt-get update of a private package list failed")?;
    let wanted: Vec<String> =
        packages.iter().map(|package| format!("{package}/{RELEASE}")).collect();
    let mut arguments = vec!["download"];
    arguments.extend(wanted.iter().map(String::as_str));
    apt_get(&arguments).context("apt-get cannot download the packages")?;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            succeed(Command::new("dpkg").arg("-x").arg(&path).arg(&tree))?;
        }
    }
    fs::remove_dir_all(&apt)?;
    fs::remove_dir_all(&archives)?;
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
         Acquire::http::Timeout \"30\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
         APT::Sandbox::User \"{}\";\n",
        std::env::var("USER").unwrap_or_else(|_| "root".to_owned()),
    );
    let path = apt.join("apt.conf");
    fs::write(&path, text)?;
    Ok(path)
}
