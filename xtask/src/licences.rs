//! The licence check: everything that is linked may be distributed under our licence.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use spdx::{Expression, ParseMode};

/// Permissive licences, compatible with Apache-2.0.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Fails, naming every package whose licence is absent, unreadable or not allowed.
pub fn check(root: &Path) -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(root)
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .context("cargo metadata failed; is Cargo.lock committed and up to date?")?;
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let name = format!("{} {}", package.name, package.version);
        match package.license.as_deref() {
            None => faults.push(format!("{name} names no licence")),
            Some(text) if !allowed(text) => faults.push(format!("{name} is under {text}")),
            Some(_) => {}
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    println!("{} packages, all under permissive licences", metadata.packages.len());
    Ok(())
}

fn allowed(text: &str) -> bool {
    Expression::parse_mode(text, ParseMode::LAX).is_ok_and(|expression| {
        expression.evaluate(|requirement| {
            requirement.license.id().is_some_and(|id| ALLOWED.contains(&id.name))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_as_a_whole() {
        assert!(allowed("MIT OR GPL-3.0-only"));
        assert!(allowed("Apache-2.0 WITH LLVM-exception OR MIT"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(!allowed("GPL-3.0-only"));
        assert!(!allowed("MIT AND GPL-3.0-only"));
        assert!(!allowed("no such licence"));
    }
}
