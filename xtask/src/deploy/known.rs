//! What the program has: settings with their defaults, metrics. Read from the generated pages, which the
//! gate keeps fresh.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{CLOSE_S, read};

/// Variables with these prefixes can only be meant for us.
const PREFIXES: [&str; 11] = [
    "ESPER_",
    "ESP_",
    "KASMINA_",
    "KERNEL_",
    "LEYLINE_",
    "NISSA_",
    "OONA_",
    "TAMIYO_",
    "TEZZERET_",
    "URZA_",
    "WEATHERLIGHT_",
];

/// Settings and metrics by name.
pub struct Known {
    /// Variable and default; an unset one is empty.
    settings: BTreeMap<String, String>,
    metrics: BTreeSet<String>,
}

impl Known {
    pub fn read(root: &Path) -> Result<Self> {
        let known = Self {
            settings: settings(&read(root, ".env.example")?),
            metrics: metrics(&read(root, "docs/metrics.md")?),
        };
        ensure!(known.settings.len() > 50, ".env.example is not what this reader knows");
        ensure!(known.metrics.len() > 50, "docs/metrics.md is not what this reader knows");
        Ok(known)
    }

    /// What is wrong with a variable given to the program, if anything.
    pub fn variable(&self, name: &str) -> Option<String> {
        let bare = name.strip_suffix("_FILE").unwrap_or(name);
        if self.settings.contains_key(name) || self.settings.contains_key(bare) {
            return None;
        }
        Some(format!("{name} is no setting"))
    }

    /// Whether a variable could only be meant for the program.
    pub fn is_ours(name: &str) -> bool {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Whether `/metrics` has it, as a family or as a part of a histogram.
    pub fn has_metric(&self, name: &str) -> bool {
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        self.metrics.contains(name) || part.is_some_and(|name| self.metrics.contains(name))
    }

    /// A default in whole seconds.
    pub fn seconds(&self, name: &str) -> Result<u64> {
        let text = self.settings.get(name).with_context(|| format!("{name} is no setting"))?;
        text.parse().with_context(|| format!("the default of {name} is no number: {text}"))
    }

    /// The least that a stop must be given.
    pub fn stop_s(&self) -> Result<u64> {
        Ok(self.seconds("WEATHERLIGHT_DRAIN_TIMEOUT_S")? + CLOSE_S)
    }

    /// The port of the endpoint.
    pub fn port(&self) -> Result<u16> {
        let address = self.settings.get("WEATHERLIGHT_HTTP_ADDR").context("no address")?;
        let (_, port) = address.rsplit_once(':').context("the address has no port")?;
        Ok(port.parse()?)
    }
}

/// Lines `#NAME=default` of `.env.example`.
fn settings(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='))
        .filter(|(name, _)| !name.is_empty() && name.chars().all(is_name))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn is_name(character: char) -> bool {
    character.is_ascii_uppercase() || character.is_ascii_digit() || character == '_'
}

/// Rows ``| `name` | type | meaning |``.
fn metrics(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn known() -> Known {
        Known {
            settings: settings(
                "# Words = more.\n#OONA_A=1\n#WEATHERLIGHT_DRAIN_TIMEOUT_S=10\n#WEATHERLIGHT_HEARTBEAT_BUDGET_S=10\n#WEATHERLIGHT_HTTP_ADDR=127.0.0.1:9100\n#ESPER_LEYLINE_SECRET=\n",
            ),
            metrics: metrics(
                "| Metric | Type |\n| `oona_lag` | gauge |\n| `oona_seconds` | histogram |\n",
            ),
        }
    }

    #[test]
    fn what_is_known_and_what_is_not() {
        let known = known();
        assert_eq!(known.settings.len(), 5);
        assert_eq!(known.variable("OONA_A"), None);
        assert_eq!(known.variable("ESPER_LEYLINE_SECRET_FILE"), None);
        assert!(known.variable("OONA_B").is_some());
        assert!(known.has_metric("oona_lag") && known.has_metric("oona_seconds_bucket"));
        assert!(!known.has_metric("oona_gone"));
        assert_eq!((known.stop_s().unwrap(), known.port().unwrap()), (15, 9100));
    }
}
