//! The level test: crates depend downwards only, as the table in `ARCHITECTURE.md` says.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Crate and level, read from the rows `| level | `crate` | ...` of the table.
fn table(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let level = cells.next()?.parse().ok()?;
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), level))
        })
        .collect()
}

/// Fails, naming every dependency that does not point down and every crate without a level.
pub fn check(root: &Path) -> Result<()> {
    let path = root.join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let levels = table(&text);
    let metadata = MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .exec()
        .context("cargo metadata failed")?;
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        if name == "xtask" {
            continue;
        }
        let Some(level) = levels.get(name) else {
            faults.push(format!("{name} has no level in ARCHITECTURE.md"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(below) = levels.get(&dependency.name) else { continue };
            if dependency.kind != DependencyKind::Development && below >= level {
                faults.push(format!(
                    "{name} (level {level}) may not depend on {} (level {below})",
                    dependency.name
                ));
            }
        }
    }
    if levels.len() < 11 {
        faults.push(format!("the table lists {} crates, the design has 11", levels.len()));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_other_lines_are_not() {
        let text = "| Level | Crate | Owns |\n|---|---|---|\n| 0 | `leyline` | x |\n| 1 | `oona` | y |\nprose | 3 |";
        let expected = BTreeMap::from([("leyline".to_owned(), 0), ("oona".to_owned(), 1)]);
        assert_eq!(table(text), expected);
    }
}
