//! The annotations that tell a command's reader why it was given.

use std::collections::BTreeMap;

use karn::{Blueprint, Tier};
use leyline::ids::SeedId;
use leyline::wire::{HandlingClass, HazardBand, Provenance, ResourceProfile};

use crate::policy::Action;
use crate::weights::{ARCHITECTURE, Weights};

type Annotations = BTreeMap<String, String>;

/// What stands on every command.
pub(crate) fn summary(
    to: &mut Annotations,
    action: &Action,
    weights: &Weights,
    reason: &str,
    risk: Option<f32>,
) {
    let mut put = |key: &str, value: String| to.insert(key.to_owned(), value);
    put("policy_action", action.name().to_owned());
    put("policy_version", weights.version.clone());
    put("policy_arch", ARCHITECTURE.to_owned());
    put("risk_reason", reason.to_owned());
    if let Some(risk) = risk {
        put("policy_risk_score", format!("{risk:.6}"));
    }
}

/// What stands on a germination.
pub(crate) fn blueprint(to: &mut Annotations, seed: &SeedId, blueprint: &Blueprint) {
    let sheet = karn::safety_sheet(blueprint);
    let tier = match blueprint.tier() {
        Tier::Safe => "SAFE",
        Tier::Experimental => "EXPERIMENTAL",
        Tier::HighRisk => "HIGH_RISK",
    };
    let hazard = match sheet.hazard {
        HazardBand::Low => "LOW",
        HazardBand::Medium => "MEDIUM",
        HazardBand::High => "HIGH",
        HazardBand::Critical => "CRITICAL",
        HazardBand::Unspecified => "UNSPECIFIED",
    };
    let handling = match sheet.handling {
        HandlingClass::Standard => "standard",
        HandlingClass::Restricted => "restricted",
        HandlingClass::Quarantine => "quarantine",
        HandlingClass::Unspecified => "unspecified",
    };
    let resource = match sheet.resource {
        ResourceProfile::Cpu => "cpu",
        ResourceProfile::Gpu => "gpu",
        ResourceProfile::MemoryHeavy => "memory",
        ResourceProfile::IoHeavy => "io",
        ResourceProfile::Mixed => "mixed",
        ResourceProfile::Unspecified => "unspecified",
    };
    let provenance = match sheet.provenance {
        Provenance::Urabrask => "URABRASK",
        Provenance::Curated => "CURATED",
        Provenance::Heuristic => "HEURISTIC",
        Provenance::External => "EXTERNAL",
        Provenance::Unspecified => "UNSPECIFIED",
    };
    let mut put = |key: &str, value: String| to.insert(key.to_owned(), value);
    put("selected_seed", seed.to_string());
    put("selected_blueprint", blueprint.id().to_string());
    put("blueprint_tier", tier.to_owned());
    put("blueprint_stage", blueprint.stage().to_string());
    put("blueprint_risk", format!("{:.6}", blueprint.risk()));
    put("bsds_hazard_band", hazard.to_owned());
    put("bsds_handling_class", handling.to_owned());
    put("bsds_resource_profile", resource.to_owned());
    put("bsds_provenance", provenance.to_owned());
    put("bsds_risk", format!("{:.6}", sheet.risk));
    put("blend_mode", "CONVEX".to_owned());
    put("blend_mode_source", "heuristic".to_owned());
}
