//! From a request of the prefetch worker to a job.

use karn::Blueprint;
use leyline::ids::BlueprintId;
use urza::{BuildAnswer, BuildRequest};

use crate::config::Config;
use crate::job::Job;

/// The job that a request asks for, or what is answered instead.
pub(super) fn requested(request: &BuildRequest, config: &Config) -> Result<Job, BuildAnswer> {
    let blueprint = buildable(&request.blueprint, config)?;
    let incompatible = |fault: &(dyn std::error::Error + 'static)| {
        tracing::warn!(blueprint = %request.blueprint, fault, "request does not fit its blueprint");
        BuildAnswer::Refused { reason: "incompatible".to_owned() }
    };
    let site = match &request.site {
        None => config.site,
        Some(text) => text.parse().map_err(|fault| incompatible(&fault))?,
    };
    let mut parameters = blueprint.midpoints();
    for (name, value) in &request.parameters {
        parameters.insert(name.as_str(), *value);
    }
    let job =
        Job::with(blueprint, parameters, site, config).map_err(|fault| incompatible(&fault))?;
    // Before it waits in a queue: what does not fit the site would fail there for good.
    karn::check(blueprint, job.parameters(), &site).map_err(|fault| incompatible(&fault))?;
    Ok(job)
}

/// The blueprint, if whoever asks by id alone may have it built.
fn buildable(id: &BlueprintId, config: &Config) -> Result<&'static Blueprint, BuildAnswer> {
    let refused = |reason: &str| Err(BuildAnswer::Refused { reason: reason.to_owned() });
    match config.catalogue.find(id) {
        None => Err(BuildAnswer::Unknown),
        Some(blueprint) if blueprint.quarantine_only() => refused("quarantined"),
        Some(blueprint) if !blueprint.graftable() => refused("not_graftable"),
        Some(blueprint) => Ok(blueprint),
    }
}
