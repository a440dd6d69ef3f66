//! The table of pitfalls in `docs/oona.md`, made from the comments on their tests, so that it names
//! no test that is gone and misses none that exists.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const PAGE: &str = "docs/oona.md";
const TESTS: &str = "crates/oona/tests/it/pitfalls";
const BEGIN: &str = "<!-- pitfalls: written by `cargo xtask gen` from crates/oona/tests/it/pitfalls; do not edit -->\n";
const END: &str = "<!-- pitfalls end -->\n";
/// What each comment says, in this order.
const PARTS: [&str; 3] = ["Pitfall: ", "Elsewhere: ", "Oona: "];

/// Where the page stands.
pub fn path() -> PathBuf {
    PathBuf::from(PAGE)
}

/// The whole page, with its table as it must be.
pub fn page(root: &Path) -> Result<String> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("no {PAGE}"))?;
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?)));
    let (head, (_, tail)) =
        parts.with_context(|| format!("{PAGE} has no place for the pitfalls: {BEGIN}{END}"))?;
    let index = format!("{TESTS}.rs");
    let index = fs::read_to_string(root.join(&index)).with_context(|| format!("no {index}"))?;
    let mut table = String::from(
        "| Pitfall | What goes wrong elsewhere | What Oona does | Test | Embedded | Redis |\n\
         |---|---|---|---|---|---|\n",
    );
    for module in index.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')) {
        let file = format!("{TESTS}/{module}.rs");
        let code = fs::read_to_string(root.join(&file)).with_context(|| format!("no {file}"))?;
        for row in rows(&code).with_context(|| format!("cannot read {file}"))? {
            let [pitfall, elsewhere, oona] = &row.parts;
            let embedded = if row.both { "yes" } else { "no" };
            writeln!(
                table,
                "| {pitfall} | {elsewhere} | {oona} | `pitfalls::{module}::{}` | {embedded} | yes |",
                row.test
            )?;
        }
    }
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

struct Row {
    test: String,
    parts: [String; 3],
    /// On both logs, else on Redis alone.
    both: bool,
}

/// One row for each test of a file. A test without its three sentences is an error.
fn rows(code: &str) -> Result<Vec<Row>> {
    let on_both = code.split_once("on_both_logs!(").and_then(|(_, rest)| rest.split_once(");"));
    let on_both: Vec<&str> = on_both
        .map(|(names, _)| names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect())
        .unwrap_or_default();
    let (mut rows, mut comment, mut alone) = (Vec::new(), Vec::new(), false);
    for line in code.lines() {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
            continue;
        }
        if line.starts_with("#[tokio::test") {
            alone = true;
            continue;
        }
        if let Some(rest) = line.strip_prefix("async fn ") {
            let test = rest.split('(').next().unwrap_or(rest);
            let both = on_both.contains(&test);
            if both || alone {
                let parts = parts(&comment).with_context(|| format!("the comment on {test}"))?;
                rows.push(Row { test: test.to_owned(), parts, both });
            }
        }
        if !line.starts_with("#[") {
            (comment, alone) = (Vec::new(), false);
        }
    }
    ensure!(!rows.is_empty(), "it has no tests");
    for name in on_both {
        ensure!(rows.iter().any(|row| row.test == name), "{name} is listed and not there");
    }
    Ok(rows)
}

/// The three sentences, with what stands in further lines joined to them.
fn parts(comment: &[&str]) -> Result<[String; 3]> {
    let mut found: Vec<String> = Vec::new();
    for line in comment {
        match PARTS.get(found.len()).and_then(|name| line.strip_prefix(name)) {
            Some(text) => found.push(text.to_owned()),
            None => match found.last_mut() {
                Some(part) => *part = format!("{part} {line}"),
                None => bail!("it does not begin with `{}`", PARTS[0]),
            },
        }
    }
    ensure!(found.iter().all(|part| !part.contains('|')), "a bar would end a cell of the table");
    let parts: Result<[String; 3], _> = found.try_into();
    parts.map_err(|found| anyhow::anyhow!("it has {} of the parts {PARTS:?}", found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
crate::on_both_logs!(\n    one,\n);\n
/// Pitfall: it breaks.\n/// Elsewhere: it is\n/// broken.\n/// Oona: it holds.\nasync fn one(rig: Rig) {\n}\n
/// A helper.\nasync fn helper() {\n}\n
/// Pitfall: a.\n/// Elsewhere: b.\n/// Oona: c.\n#[tokio::test]\nasync fn two() {\n}\n";

    #[test]
    fn tests_are_read_with_their_sentences_and_logs() {
        let rows = rows(GOOD).unwrap();
        let seen: Vec<_> = rows.iter().map(|row| (row.test.as_str(), row.both)).collect();
        assert_eq!(seen, [("one", true), ("two", false)]);
        assert_eq!(rows[0].parts, ["it breaks.", "it is broken.", "it holds."]);
    }

    #[test]
    fn a_test_that_does_not_say_what_it_is_for_is_an_error() {
        assert!(rows(&GOOD.replace("/// Oona: it holds.\n", "")).is_err());
        assert!(rows(&GOOD.replace("/// Pitfall: it breaks.\n", "")).is_err());
        assert!(rows(&GOOD.replace("    one,", "    one,\n    gone,")).is_err());
        assert!(rows(&GOOD.replace("it holds", "it | holds")).is_err());
    }
}
