//! The deployment files: `deploy/`, `Dockerfile`, `compose.yaml`.
//!
//! Our own checks, which need nothing, say whether the files agree with the program: every variable is a
//! setting, every metric exists, every stop takes longer than the drain. Then the files' own tools look at
//! them (`tools`). `known` is what the program has, `unit`, `containers`, `cluster` and `pages` look at one
//! kind of file each.

mod cluster;
mod containers;
mod known;
mod pages;
mod tools;
mod unit;

use std::path::Path;

use anyhow::{Context, Result, bail};

use self::known::Known;

/// What an orderly stop may take beyond `WEATHERLIGHT_DRAIN_TIMEOUT_S`: the log is closed within 5 s.
const CLOSE_S: u64 = 5;

/// Everything: our own checks, then the tools. Fails with all findings at once.
pub fn check(root: &Path) -> Result<()> {
    let mut faults = own(root)?;
    println!("the files agree with the program: {}", if faults.is_empty() { "yes" } else { "NO" });
    faults.extend(tools::check(root)?);
    if !faults.is_empty() {
        bail!("{} faults in the deployment files:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(())
}

/// The checks that need no tool: every fault, as `file: what is wrong`.
fn own(root: &Path) -> Result<Vec<String>> {
    let known = Known::read(root)?;
    let mut faults = unit::faults(root, &known)?;
    faults.extend(containers::faults(root, &known)?);
    faults.extend(cluster::faults(root, &known)?);
    faults.extend(pages::faults(root, &known)?);
    Ok(faults)
}

fn read(root: &Path, file: &str) -> Result<String> {
    std::fs::read_to_string(root.join(file)).with_context(|| format!("no {file}"))
}

/// The documents of a YAML file, merge keys applied.
fn yaml(text: &str) -> Result<Vec<serde_json::Value>> {
    use serde::Deserialize as _;

    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let mut value = serde_yaml_ng::Value::deserialize(document)?;
        value.apply_merge()?;
        documents.push(serde_json::to_value(value)?);
    }
    Ok(documents)
}

/// Seconds of `20s`, `1m`, `1m30s` or a bare number.
fn seconds(text: &str) -> Option<u64> {
    let mut total = 0;
    let mut digits = String::new();
    for character in text.trim().chars() {
        match character {
            '0'..='9' => digits.push(character),
            's' | 'm' => {
                let factor = if character == 's' { 1 } else { 60 };
                total += digits.parse::<u64>().ok()? * factor;
                digits.clear();
            }
            _ => return None,
        }
    }
    if !digits.is_empty() {
        total += digits.parse::<u64>().ok()?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn the_files_agree_with_the_program() {
        assert_eq!(own(root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn spans_are_read_as_systemd_and_compose_write_them() {
        assert_eq!(seconds("20"), Some(20));
        assert_eq!(seconds("20s"), Some(20));
        assert_eq!(seconds("1m30s"), Some(90));
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn merge_keys_are_applied() {
        let documents = yaml("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n---\nc: 3\n").unwrap();
        assert_eq!(documents[0]["b"], serde_json::json!({ "x": 1, "y": 2 }));
        assert_eq!(documents[1]["c"], 3);
    }
}
