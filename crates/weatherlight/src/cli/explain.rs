//! `weatherlight explain`: what a code means and what to do.

use super::failure::Failure;
use super::{Global, table};
use crate::codes::{self, Code, Family};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The code, as it was shown, logged, counted or answered; `family/code` for one of several.
    /// Without one all codes are listed
    #[arg(value_name = "CODE")]
    code: Option<String>,
}

pub(super) fn run(global: &Global, options: &Options) -> Result<u8, Failure> {
    let Some(word) = &options.code else {
        list(global);
        return Ok(0);
    };
    let found = codes::find(word);
    if found.is_empty() {
        return Err(unknown(word));
    }
    if global.json {
        table::print_json(&found);
    } else {
        let texts: Vec<String> = found.into_iter().map(text).collect();
        table::print(&texts.join("\n"));
    }
    Ok(0)
}

fn unknown(word: &str) -> Failure {
    let near = match codes::like(word).as_slice() {
        [] => String::new(),
        near => format!("; did you mean {}?", near.join(", ")),
    };
    let word = table::plain(word);
    Failure::unusable(format!(
        "there is no code {word:?}{near} `weatherlight explain` without a code lists all"
    ))
}

fn text(code: &Code) -> String {
    let Code { family, code, also: _, title, meaning, cause, remedy } = code;
    let family = family.word();
    format!(
        "{code} ({family}): {title}\n  means       {meaning}\n  comes from  {cause}\n  what to do  {remedy}\n"
    )
}

fn list(global: &Global) {
    if global.json {
        table::print_json(&codes::all().collect::<Vec<_>>());
        return;
    }
    for family in Family::ALL {
        table::print(&format!("{}: {}", family.word(), family.about()));
        for code in codes::all().filter(|code| code.family == family) {
            table::print(&format!("  {:<30} {}", code.code, code.title));
        }
    }
}
