//! `docs/errors.md`, made of the table.

use std::fmt::Write as _;

use super::{Family, all};

const HEAD: &str = "\
# Codes

Every stable code that the program shows, logs, counts or answers with. This page is made of the table behind
`weatherlight explain CODE` (`crates/weatherlight/src/codes/`) by `cargo xtask gen`; do not edit it. `weatherlight
explain` lists the codes, `weatherlight explain CODE` prints one, and `--json` gives both to programs. The words are
stable: a code is never renamed or given another meaning.
";

/// The page.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for family in Family::ALL {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| Code | Meaning | Comes from | What to do |\n|---|---|---|---|\n",
            family.word(),
            family.about()
        );
        for code in all().filter(|code| code.family == family) {
            let _ = writeln!(
                page,
                "| `{}` | **{}.** {} | {} | {} |",
                code.code, code.title, code.meaning, code.cause, code.remedy
            );
        }
    }
    page
}
