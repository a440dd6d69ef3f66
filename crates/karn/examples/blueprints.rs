//! The figures of docs/blueprints.md: `cargo run -p karn --example blueprints` prints them,
//! `cargo run -p karn --example blueprints -- --write docs/blueprints.md` puts them there. A test compares them.

use std::fmt::Write as _;

use karn::{Catalogue, Site, examine};

/// Before and after the figures in the page.
pub const MARKS: [&str; 2] = ["<!-- figures -->\n", "<!-- /figures -->"];
/// Where the figures are taken: the forge's default site.
const SITE: Site = Site::Vector { features: 32 };

/// One line for every blueprint that is served.
pub fn figures() -> String {
    let mut text = format!(
        "| Id | Name | Tier | Risk | Parameters at {SITE} | Operations, {} samples | Starts as the identity |\n\
         |---|---|---|---|---|---|---|\n",
        karn::BATCH
    );
    for blueprint in Catalogue::built_in().served() {
        let (id, name, risk) = (blueprint.id(), blueprint.name(), blueprint.risk());
        let found = examine(blueprint, &blueprint.midpoints(), &SITE)
            .unwrap_or_else(|error| panic!("{id}: {error}"));
        let identity = if found.identity { "yes" } else { "no" };
        let (weights, operations) = (found.parameters, found.operations);
        let tier = blueprint.tier();
        let _ = writeln!(
            text,
            "| {id} | {name} | {tier:?} | {risk} | {weights} | {operations} | {identity} |"
        );
    }
    text
}

/// The page with the figures between its marks.
pub fn page(page: &str) -> Option<String> {
    let (head, rest) = page.split_once(MARKS[0])?;
    let (_, tail) = rest.split_once(MARKS[1])?;
    Some(format!("{head}{}{}{}{tail}", MARKS[0], figures(), MARKS[1]))
}

#[allow(dead_code)] // The test includes this file for its figures.
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag, path] if flag == "--write" => {
            let was = std::fs::read_to_string(path).expect("the page is there");
            let now = page(&was).expect("the page has the marks of the figures");
            std::fs::write(path, now).expect("the page can be written");
        }
        _ => print!("{}", figures()),
    }
}
