//! `weatherlight blueprints`: which blueprints there are, what one is, and whether a manifest is sound.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Subcommand;
use karn::{Blueprint, Catalogue, Site, examine, safety_sheet};
use leyline::ids::BlueprintId;
use serde_json::{Value, json};

use super::Global;
use super::failure::Failure;
use super::table;
use crate::blueprints::{Blueprints, in_file, read_manifest};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the blueprints: ours, and those of the manifests in KARN_BLUEPRINT_DIR
    #[command(
        after_help = "Example: weatherlight blueprints list --json | jq '.[] | select(.served)'"
    )]
    List,
    /// Show one blueprint: its parameters, its safety sheet, what its kernel costs at a site
    #[command(
        after_help = "Examples:\n  weatherlight blueprints show BP036\n  weatherlight blueprints show BP023 --site 'sequence[32x64]'"
    )]
    Show {
        /// Id of the blueprint
        #[arg(value_name = "BLUEPRINT")]
        blueprint: String,
        /// Activation it is to be attached at
        #[arg(long, value_name = "SITE", default_value = "vector[32]")]
        site: Site,
    },
    /// Check manifests of blueprints, as a start with KARN_BLUEPRINT_DIR would, without starting anything
    #[command(
        after_help = "Example: weatherlight blueprints check examples/blueprints/bottleneck-adapter.toml"
    )]
    Check {
        /// The manifests
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    if let Command::Check { files } = command {
        return check(files, global.json);
    }
    let settings = global.load()?.settings;
    let blueprints =
        Blueprints::load(&settings).map_err(|faults| Failure::configuration(faults.to_string()))?;
    match command {
        Command::List => list(&blueprints, global.json),
        Command::Show { blueprint, site } => show(&blueprints, blueprint, site, global.json)?,
        Command::Check { .. } => {}
    }
    Ok(0)
}

fn about(blueprint: &Blueprint, approved: &BTreeSet<BlueprintId>) -> Value {
    let parameters: serde_json::Map<String, Value> = blueprint
        .parameters()
        .iter()
        .map(|one| (one.name.to_owned(), json!({ "min": one.min, "max": one.max })))
        .collect();
    json!({
        "blueprint_id": blueprint.id().as_str(),
        "name": blueprint.name(),
        "tier": blueprint.tier(),
        "risk": blueprint.risk(),
        "stage": blueprint.stage(),
        "parameters": parameters,
        "description": blueprint.description(),
        "served": blueprint.graftable(),
        "autonomous": blueprint.autonomous(),
        "approval_required": blueprint.approval_required(),
        "approved": approved.contains(blueprint.id()),
        "quarantine_only": blueprint.quarantine_only(),
        "manifest": blueprint.edition().map(|digest| digest.to_hex()),
        "safety": safety_sheet(blueprint),
    })
}

/// How it may be used, in a word.
fn usage(blueprint: &Blueprint, approved: &BTreeSet<BlueprintId>) -> &'static str {
    if blueprint.quarantine_only() {
        "quarantine only"
    } else if blueprint.approval_required() && !approved.contains(blueprint.id()) {
        "needs approval"
    } else if blueprint.autonomous() {
        "by policy"
    } else {
        "by command"
    }
}

fn list(blueprints: &Blueprints, as_json: bool) {
    let Blueprints { catalogue, approved } = blueprints;
    if as_json {
        let all: Vec<Value> = catalogue.iter().map(|one| about(one, approved)).collect();
        return table::print_json(&all);
    }
    let mut rows =
        table::with_columns(&["id", "name", "tier", "risk", "stage", "grown", "parameters"]);
    for one in catalogue.iter() {
        let parameters: Vec<String> = one
            .parameters()
            .iter()
            .map(|parameter| format!("{} {}..{}", parameter.name, parameter.min, parameter.max))
            .collect();
        rows.add_row([
            one.id().to_string(),
            one.name().to_owned(),
            format!("{:?}", one.tier()),
            format!("{}", one.risk()),
            one.stage().to_string(),
            usage(one, approved).to_owned(),
            parameters.join(", "),
        ]);
    }
    table::print(&rows.to_string());
}

fn show(blueprints: &Blueprints, name: &str, site: &Site, as_json: bool) -> Result<(), Failure> {
    let Blueprints { catalogue, approved } = blueprints;
    let found = [name.to_owned(), name.to_ascii_uppercase()]
        .into_iter()
        .find_map(|id| catalogue.find(&BlueprintId::from(id.as_str())));
    let blueprint = found.ok_or_else(|| {
        Failure::configuration(format!(
            "there is no blueprint {name}; `weatherlight blueprints list` names them"
        ))
    })?;
    let mut about = about(blueprint, approved);
    about["site"] = site.to_string().into();
    match examine(blueprint, &blueprint.midpoints(), site) {
        Ok(found) => {
            about["kernel"] = json!({
                "parameters": found.parameters,
                "operations": found.operations,
                "identity_at_start": found.identity,
            });
        }
        Err(error) => about["refused"] = crate::supervisor::chain(&error).into(),
    }
    if as_json {
        table::print_json(&about);
        return Ok(());
    }
    let mut rows = table::with_columns(&["what", "value"]);
    if let Value::Object(fields) = &about {
        for (name, value) in fields {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            rows.add_row([name.clone(), text]);
        }
    }
    table::print(&rows.to_string());
    Ok(())
}

fn check(files: &[PathBuf], as_json: bool) -> Result<u8, Failure> {
    let mut catalogue = Catalogue::built_in();
    let (mut faults, mut told) = (Vec::new(), Vec::new());
    for file in files {
        let read = read_manifest(file).and_then(|manifest| {
            let id = manifest.id().to_owned();
            let grown = catalogue.with(manifest).map_err(|error| in_file(file, &error))?;
            Ok((id, grown))
        });
        match read {
            Ok((id, grown)) => {
                catalogue = grown;
                told.push(json!({ "file": file, "blueprint_id": id, "sound": true }));
            }
            Err(found) => {
                told.push(json!({ "file": file, "sound": false, "faults": found }));
                faults.extend(found);
            }
        }
    }
    if as_json {
        table::print_json(&told);
    } else {
        for one in told.iter().filter(|one| one["sound"] == true) {
            table::print(&format!("{}: sound", one["blueprint_id"].as_str().unwrap_or_default()));
        }
    }
    if faults.is_empty() { Ok(0) } else { Err(Failure::unusable(faults.join("\n"))) }
}
