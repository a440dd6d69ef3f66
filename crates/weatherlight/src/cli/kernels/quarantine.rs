//! `weatherlight kernels quarantine`: one blueprint tried in quarantine, here and now. Nothing is stored.

use karn::{Blueprint, Catalogue, Parameters, Site};
use kernel::quarantine::{Budget, QuarantineError, Report, Subject};
use serde_json::json;

use super::super::failure::Failure;
use super::super::table;
use super::list;

/// Exit code when something was found.
const CAUGHT: u8 = 1;
/// Weights start from this seed, so that the same command measures the same.
const WEIGHT_SEED: u64 = 1;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Id of the blueprint
    #[arg(value_name = "BLUEPRINT")]
    blueprint: String,
    /// A parameter of it; may be repeated [default: the middle of its interval]
    #[arg(long = "parameters", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, f64)>,
    /// The activation it takes: vector[32], sequence[12x64], image[8x16x16]
    #[arg(long, value_name = "SITE", default_value = "vector[32]")]
    site: Site,
}

fn parameter(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    let value = value.parse().map_err(|_| format!("{value:?} is no number"))?;
    Ok((name.to_owned(), value))
}

pub(super) fn run(catalogue: &Catalogue, options: &Options, as_json: bool) -> Result<u8, Failure> {
    let id = list::blueprint(&options.blueprint);
    let blueprint = catalogue.find(&id).ok_or_else(|| {
        Failure::usage(format!(
            "there is no blueprint {id}; `weatherlight blueprints list` names them"
        ))
    })?;
    let mut parameters = blueprint.midpoints();
    for (name, value) in &options.parameters {
        parameters.insert(name.clone(), *value);
    }
    // Before a thread is started for it.
    blueprint.check(&parameters).map_err(|error| Failure::data(&error))?;
    let report = trial(blueprint, parameters.clone(), options.site)?;
    if as_json {
        let parameters: serde_json::Map<_, _> =
            parameters.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        table::print_json(&json!({
            "blueprint_id": id.as_str(),
            "parameters": parameters,
            "site": options.site.to_string(),
            "verdict": report.verdict(),
            "report": report,
        }));
    } else {
        print(blueprint, &report);
    }
    Ok(if report.is_sound() { 0 } else { CAUGHT })
}

fn trial(
    blueprint: &'static Blueprint,
    parameters: Parameters,
    site: Site,
) -> Result<Report, Failure> {
    let tried = kernel::quarantine::run(&Budget::default(), move |permit| {
        let graph = karn::build_in_quarantine(blueprint, &parameters, &site, permit)?;
        Ok(Subject::fresh(graph, WEIGHT_SEED))
    });
    tried.map_err(|error| match error {
        QuarantineError::Build { .. } | QuarantineError::Unfit { .. } => Failure::data(&error),
        QuarantineError::Thread { .. } => Failure::unavailable_because(&error),
    })
}

fn print(blueprint: &Blueprint, report: &Report) {
    let (id, name) = (blueprint.id(), blueprint.name());
    table::print(&format!("{id} ({name}): {}", report.verdict()));
    for finding in &report.findings {
        table::print(&format!("  {}: {finding}", finding.reason()));
    }
    let steps = report.measures.len();
    table::print(&format!("  {} runs, {steps} steps, {:.0} ms", report.runs, report.took_ms));
    if let Some((low, high)) = report.amplification() {
        table::print(&format!("  gradient through it: {low:.3e} to {high:.3e} of itself"));
    }
    if let (Some(before), Some(after)) = (report.loss_before, report.loss_after) {
        table::print(&format!("  loss {before:.4} before training, {after:.4} after"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(blueprint: &str, parameters: &[(&str, f64)]) -> Options {
        Options {
            blueprint: blueprint.to_owned(),
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
            site: Site::Vector { features: 8 },
        }
    }

    #[test]
    fn sound_is_0_and_caught_is_1() {
        assert_eq!(run(&Catalogue::built_in(), &options("bp001", &[]), true), Ok(0));
        assert_eq!(
            run(&Catalogue::built_in(), &options("BP043", &[("scale", 5.0)]), false),
            Ok(CAUGHT)
        );
    }

    #[test]
    fn what_cannot_be_tried_says_why() {
        let unknown = run(&Catalogue::built_in(), &options("BP999", &[]), false).unwrap_err();
        assert!(unknown.to_string().contains("BP999"), "{unknown}");
        let beyond =
            run(&Catalogue::built_in(), &options("BP043", &[("scale", 21.0)]), false).unwrap_err();
        assert!(beyond.is_data() && beyond.to_string().contains("from 5 to 20"), "{beyond}");
        assert!(parameter("scale").is_err() && parameter("scale=x").is_err());
        assert_eq!(parameter("scale=7"), Ok(("scale".to_owned(), 7.0)));
    }
}
