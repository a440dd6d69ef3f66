//! `Dockerfile`, `.dockerignore` and `compose.yaml`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::known::Known;
use super::{read, seconds, yaml};

pub const DOCKERFILE: &str = "Dockerfile";
pub const COMPOSE: &str = "compose.yaml";
const IGNORED: &str = ".dockerignore";

pub fn faults(root: &Path, known: &Known) -> Result<Vec<String>> {
    let mut faults = of_dockerfile(&read(root, DOCKERFILE)?, &toolchain(root)?, known)?;
    faults.extend(of_ignored(root)?);
    let documents = yaml(&read(root, COMPOSE)?).context(COMPOSE)?;
    faults.extend(of_compose(documents.first().context("an empty file")?, known)?);
    Ok(faults)
}

/// `1.95.0` of `rust-toolchain.toml`.
fn toolchain(root: &Path) -> Result<String> {
    let text = read(root, "rust-toolchain.toml")?;
    let line = text.lines().find_map(|line| line.strip_prefix("channel = \""));
    Ok(line.context("no channel")?.trim_end_matches('"').to_owned())
}

fn of_dockerfile(text: &str, toolchain: &str, known: &Known) -> Result<Vec<String>> {
    let port = known.port()?;
    let wanted = [
        (format!("ARG RUST=rust:{toolchain}-"), "the compiler of rust-toolchain.toml"),
        (format!("EXPOSE {port}"), "the default port"),
        ("HEALTHCHECK ".to_owned(), "a health check"),
        ("STOPSIGNAL SIGTERM".to_owned(), "the signal of an orderly stop"),
        ("USER 65532".to_owned(), "a user that is not root, by number"),
    ];
    let missing = wanted.iter().filter(|(line, _)| !text.lines().any(|l| l.starts_with(line)));
    let mut faults: Vec<String> =
        missing.map(|(line, what)| format!("{DOCKERFILE}: no `{line}`: {what}")).collect();
    for line in text.lines().filter_map(|line| line.strip_prefix("ENV ")) {
        let names = line.split(' ').filter_map(|pair| Some(pair.split_once('=')?.0));
        let unknown = names.filter(|name| Known::is_ours(name)).filter_map(|n| known.variable(n));
        faults.extend(unknown.map(|fault| format!("{DOCKERFILE}: {fault}")));
    }
    Ok(faults)
}

/// The list names what is sent, so that nothing else is; what the sources include must be in it.
fn of_ignored(root: &Path) -> Result<Vec<String>> {
    let text = read(root, IGNORED)?;
    let mut faults = Vec::new();
    if text.lines().find(|line| !line.starts_with('#')) != Some("*") {
        faults.push(format!("{IGNORED}: it must begin by leaving out everything (`*`)"));
    }
    for needed in ["**/target", "**/var", "**/.env"] {
        if !text.lines().any(|line| line == needed) {
            faults.push(format!("{IGNORED}: {needed} could be sent"));
        }
    }
    let sent: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for source in sources(&root.join("crates"))? {
        for included in included(&source)? {
            let path = included.strip_prefix(root).unwrap_or(&included);
            if !sent.iter().any(|sent| path.starts_with(sent)) {
                let (source, path) = (source.display(), path.display());
                faults.push(format!("{IGNORED}: {source} includes {path}, which is not sent"));
            }
        }
    }
    Ok(faults)
}

/// Every Rust file below `src` of a crate; tests are not built in the image.
fn sources(crates: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> =
        fs::read_dir(crates)?.map(|entry| Ok(entry?.path().join("src"))).collect::<Result<_>>()?;
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// The files that a source includes, resolved.
fn included(source: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(source)?;
    let directory = source.parent().context("a file stands in a directory")?;
    let mut found = Vec::new();
    for call in ["include_str!(\"", "include_bytes!(\""] {
        for (at, _) in text.match_indices(call) {
            let rest = &text[at + call.len()..];
            let Some((path, _)) = rest.split_once('"') else { continue };
            let full = directory.join(path);
            found.push(full.canonicalize().with_context(|| format!("no {}", full.display()))?);
        }
    }
    Ok(found)
}

fn of_compose(compose: &Value, known: &Known) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let services = compose["services"].as_object().context("no services")?;
    for (name, service) in services {
        let mut fault = |text: String| faults.push(format!("{COMPOSE}: {name}: {text}"));
        for (key, wanted) in [
            ("read_only", serde_json::json!(true)),
            ("cap_drop", serde_json::json!(["ALL"])),
            ("security_opt", serde_json::json!(["no-new-privileges:true"])),
        ] {
            if service[key] != wanted {
                fault(format!("{key} must be {wanted}"));
            }
        }
        for key in ["mem_limit", "pids_limit", "restart"] {
            if service[key].is_null() {
                fault(format!("{key} is missing"));
            }
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            if !port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:")) {
                fault(format!("{port} is published beyond loopback"));
            }
        }
        for (variable, _) in service["environment"].as_object().into_iter().flatten() {
            if (name == "weatherlight" || Known::is_ours(variable))
                && let Some(unknown) = known.variable(variable)
            {
                fault(unknown);
            }
        }
    }
    let weatherlight = services.get("weatherlight").context("no service weatherlight")?;
    let port = known.port()?;
    let address = &weatherlight["environment"]["WEATHERLIGHT_HTTP_ADDR"];
    if address.as_str() != Some(&format!("0.0.0.0:{port}")) {
        faults.push(format!("{COMPOSE}: weatherlight listens on {address}, not on port {port}"));
    }
    let (grace, least) = (weatherlight["stop_grace_period"].as_str(), known.stop_s()?);
    if grace.and_then(seconds).is_none_or(|given| given <= least) {
        faults.push(format!(
            "{COMPOSE}: stop_grace_period must be longer than the drain and closing the log, {least} s; it is {grace:?}"
        ));
    }
    let command = services.get("redis").context("no service redis")?["command"].to_string();
    for wanted in ["--appendonly yes", "--maxmemory-policy noeviction", "requirepass"] {
        if !command.contains(wanted) {
            faults.push(format!("{COMPOSE}: redis runs without {wanted}"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::known::tests::known;

    const HARDENED: &str = "read_only: true, cap_drop: [ALL], security_opt: ['no-new-privileges:true'], mem_limit: 1g, pids_limit: 9, restart: always";

    fn compose(redis: &str, weatherlight: &str) -> Vec<String> {
        let text = format!(
            "services:\n  redis: {{ {HARDENED}, command: '{redis}' }}\n  weatherlight: {{ {HARDENED}, {weatherlight} }}\n"
        );
        of_compose(&yaml(&text).unwrap()[0], &known()).unwrap()
    }

    #[test]
    fn a_careless_compose_file_is_found() {
        let redis = "requirepass --appendonly yes --maxmemory-policy noeviction";
        let good =
            "environment: { WEATHERLIGHT_HTTP_ADDR: '0.0.0.0:9100' }, stop_grace_period: 20s";
        assert_eq!(compose(redis, good), Vec::<String>::new());
        assert_eq!(compose("--appendonly yes", good).len(), 2);
        for (from, to) in [
            ("20s", "15s"),
            ("9100", "9101"),
            ("20s", "20s, ports: ['9100:9100']"),
            ("HTTP_ADDR:", "HTTP_ADDRESS: x, WEATHERLIGHT_HTTP_ADDR:"),
        ] {
            assert_eq!(compose(redis, &good.replace(from, to)).len(), 1, "{to}");
        }
    }

    #[test]
    fn a_careless_dockerfile_is_found() {
        let good = "ARG RUST=rust:1.0.0-x\nEXPOSE 9100\nHEALTHCHECK CMD x\nSTOPSIGNAL SIGTERM\nUSER 65532:65532";
        let faults = |text: &str| of_dockerfile(text, "1.0.0", &known()).unwrap();
        assert_eq!(faults(good), Vec::<String>::new());
        assert_eq!(faults(&good.replace("1.0.0", "1.0.1")).len(), 1);
        assert_eq!(faults(&good.replace("USER", "#")).len(), 1);
        assert_eq!(faults(&format!("{good}\nENV OONA_TYPO=1 LANG=C")).len(), 1);
    }
}
