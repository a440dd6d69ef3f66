//! docs/blueprints.md says what is so.

use karn::catalogue;

#[path = "../../examples/blueprints.rs"]
mod figures;

const PAGE: &str = include_str!("../../../../docs/blueprints.md");

#[test]
fn the_figures_of_the_page_are_those_of_the_code() {
    let now = figures::page(PAGE).expect("the page has the marks of the figures");
    assert_eq!(
        PAGE, now,
        "run `cargo run -p karn --example blueprints -- --write docs/blueprints.md`"
    );
}

#[test]
fn the_page_defines_every_blueprint_and_every_parameter() {
    for blueprint in catalogue() {
        let start = format!("| {} {} |", blueprint.id(), blueprint.name());
        let line = PAGE.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("{start} is missing"));
        for parameter in blueprint.parameters() {
            let bounds = format!("`{}` {} to {}", parameter.name, parameter.min, parameter.max);
            assert!(line.contains(&bounds), "{bounds} is missing in {line}");
        }
    }
}
