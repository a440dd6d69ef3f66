//! `weatherlight doctor`: the checks of a start, without the start.

use serde_json::json;

use super::failure::Failure;
use super::{Global, block_on, table};
use crate::preflight::{self, Finding};

pub(super) fn run(global: &Global) -> Result<u8, Failure> {
    let resolved = global.load()?;
    let (findings, _) = block_on(preflight::check(&resolved.settings))?;
    if global.json {
        let finding = |finding: &Finding| {
            json!({
                "check": finding.check,
                "verdict": finding.verdict.word(),
                "message": finding.message,
                "remedy": finding.remedy,
            })
        };
        table::print_json(&findings.0.iter().map(finding).collect::<Vec<_>>());
    } else {
        let mut rows = table::with_columns(&["check", "verdict", "finding", "what to do"]);
        for warning in &resolved.warnings {
            rows.add_row(["settings", "warning", &warning.to_string(), "correct or remove it"]);
        }
        for finding in &findings.0 {
            rows.add_row([
                finding.check,
                finding.verdict.word(),
                &finding.message,
                &finding.remedy,
            ]);
        }
        table::print(&rows.to_string());
    }
    Ok(findings.exit().map_or(0, |exit| exit.code()))
}
