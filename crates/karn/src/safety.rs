//! The safety sheet derived from a blueprint's own record, for blueprints nobody has examined.

use leyline::wire;
use serde::Serialize;

use crate::blueprint::{Blueprint, Tier};

/// Risk at which a blueprint is CRITICAL, and quarantined.
const CRITICAL_RISK: f32 = 0.85;
/// Risk at which a blueprint is HIGH, and restricted.
const HIGH_RISK: f32 = 0.60;
/// Risk at which a blueprint is MEDIUM.
const MEDIUM_RISK: f32 = 0.30;

/// How dangerous a blueprint is and how it must be handled. As JSON its fields are words: `{"risk": 0.75, "hazard":
/// "high", "handling": "restricted", "resource": "mixed", "provenance": "heuristic"}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SafetySheet {
    /// Risk from 0 to 1, with the surcharges of tier and quarantine.
    pub risk: f32,
    /// Band of that risk.
    #[serde(serialize_with = "words::hazard")]
    pub hazard: wire::HazardBand,
    /// How it must be handled.
    #[serde(serialize_with = "words::handling")]
    pub handling: wire::HandlingClass,
    /// Which resource it needs most.
    #[serde(serialize_with = "words::resource")]
    pub resource: wire::ResourceProfile,
    /// Where the sheet comes from: always the heuristic here.
    #[serde(serialize_with = "words::provenance")]
    pub provenance: wire::Provenance,
}

/// The words of a sheet.
mod words {
    use leyline::wire::{HandlingClass, HazardBand, Provenance, ResourceProfile};
    use serde::Serializer;

    /// The contract's name without the name of its kind, in lower case.
    fn word<S: Serializer>(name: &str, kind: &str, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&name.strip_prefix(kind).unwrap_or(name).to_ascii_lowercase())
    }

    pub(super) fn hazard<S: Serializer>(value: &HazardBand, out: S) -> Result<S::Ok, S::Error> {
        word(value.as_str_name(), "HAZARD_BAND_", out)
    }

    pub(super) fn handling<S: Serializer>(
        value: &HandlingClass,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        word(value.as_str_name(), "HANDLING_CLASS_", out)
    }

    pub(super) fn resource<S: Serializer>(
        value: &ResourceProfile,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        word(value.as_str_name(), "RESOURCE_PROFILE_", out)
    }

    pub(super) fn provenance<S: Serializer>(value: &Provenance, out: S) -> Result<S::Ok, S::Error> {
        word(value.as_str_name(), "PROVENANCE_", out)
    }
}

/// Derives the sheet of a blueprint from its record. Without a hint the resource profile is "mixed".
///
/// Risks are rounded to a millionth before they are compared: 0.8 and 0.05 add up to 0.85 for a reader, and to
/// 0.85000002 or 0.8499999 for a machine, by the order in which it adds.
pub fn safety_sheet(blueprint: &Blueprint) -> SafetySheet {
    let tier = match blueprint.tier() {
        Tier::Safe => 0.0,
        Tier::Experimental => 0.05,
        Tier::HighRisk => 0.10,
    };
    let quarantine = if blueprint.quarantine_only() { 0.10 } else { 0.0 };
    let sum: f64 = f64::from(blueprint.risk()) + tier + quarantine;
    let risk = ((sum.clamp(0.0, 1.0) * 1e6).round() / 1e6) as f32;
    let hazard = hazard(risk);
    SafetySheet {
        risk,
        hazard,
        handling: handling(hazard, blueprint.quarantine_only()),
        resource: wire::ResourceProfile::Mixed,
        provenance: wire::Provenance::Heuristic,
    }
}

fn hazard(risk: f32) -> wire::HazardBand {
    if risk >= CRITICAL_RISK {
        wire::HazardBand::Critical
    } else if risk >= HIGH_RISK {
        wire::HazardBand::High
    } else if risk >= MEDIUM_RISK {
        wire::HazardBand::Medium
    } else {
        wire::HazardBand::Low
    }
}

fn handling(hazard: wire::HazardBand, quarantine_only: bool) -> wire::HandlingClass {
    match hazard {
        _ if quarantine_only => wire::HandlingClass::Quarantine,
        wire::HazardBand::Critical => wire::HandlingClass::Quarantine,
        wire::HazardBand::High => wire::HandlingClass::Restricted,
        wire::HazardBand::Medium | wire::HazardBand::Low | wire::HazardBand::Unspecified => {
            wire::HandlingClass::Standard
        }
    }
}

impl SafetySheet {
    /// The sheet as it crosses the bus, issued at `unix_ms`.
    pub fn to_wire(&self, blueprint: &Blueprint, unix_ms: u64) -> wire::Bsds {
        let recommendation = match self.handling {
            wire::HandlingClass::Quarantine => "run in quarantine only",
            wire::HandlingClass::Restricted => "use with approval and watch closely",
            wire::HandlingClass::Standard | wire::HandlingClass::Unspecified => "no restriction",
        };
        wire::Bsds {
            version: 1,
            blueprint_id: blueprint.id().to_string(),
            risk_score: self.risk,
            hazard_band: self.hazard.into(),
            handling_class: self.handling.into(),
            resource_profile: self.resource.into(),
            recommendation: recommendation.to_owned(),
            issued_at: Some(leyline::time::timestamp(unix_ms)),
            provenance: self.provenance.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use leyline::wire::{HandlingClass, HazardBand};

    use super::*;
    use crate::catalogue::{catalogue, find};

    #[test]
    fn published_vectors() {
        let vectors = [
            ("BP009", 0.30, HazardBand::Medium, HandlingClass::Standard),
            ("BP013", 0.40, HazardBand::Medium, HandlingClass::Standard),
            ("BP019", 0.50, HazardBand::Medium, HandlingClass::Standard),
            ("BP036", 0.75, HazardBand::High, HandlingClass::Restricted),
            ("BP038", 0.85, HazardBand::Critical, HandlingClass::Quarantine),
            ("BP043", 1.00, HazardBand::Critical, HandlingClass::Quarantine),
        ];
        for (id, risk, hazard, handling) in vectors {
            let sheet = safety_sheet(find(&id.into()).unwrap());
            assert_eq!(
                (sheet.risk, sheet.hazard, sheet.handling),
                (risk, hazard, handling),
                "{id}"
            );
        }
    }

    #[test]
    fn every_stressor_is_quarantined_and_nothing_the_policy_grafts_is_restricted() {
        for blueprint in catalogue() {
            let sheet = safety_sheet(blueprint);
            assert!((0.0..=1.0).contains(&sheet.risk), "{}", blueprint.id());
            if blueprint.quarantine_only() {
                assert_eq!(sheet.handling, HandlingClass::Quarantine, "{}", blueprint.id());
            }
            if blueprint.autonomous() {
                assert_eq!(sheet.handling, HandlingClass::Standard, "{}", blueprint.id());
            }
            let wire = sheet.to_wire(blueprint, 7);
            assert_eq!(wire.blueprint_id, blueprint.id().as_str());
            assert_eq!(wire.hazard_band(), sheet.hazard);
        }
    }
}
