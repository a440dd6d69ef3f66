//! What must hold between settings.

use super::fault::{Fault, Origin, Party, Problem};
use super::resolve::InForce;
use super::table::EsperSettings;
use crate::wiring;

/// Every contradiction, with the settings it is about, their values and where those came from.
/// Pure.
pub(super) fn contradictions(settings: &EsperSettings, in_force: &[InForce]) -> Vec<Fault> {
    messages(settings).into_iter().map(|message| fault(message, in_force)).collect()
}

/// The settings that a sentence names are those it is about.
fn fault(message: String, in_force: &[InForce]) -> Fault {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named: Vec<&str> = message.split(|c: char| !is_name(c)).collect();
    let parties: Vec<Party> = in_force
        .iter()
        .filter(|row| named.contains(&row.definition.env))
        .map(|row| Party {
            name: row.definition.env,
            shown: row.shown.clone(),
            origin: row.origin.clone(),
        })
        .collect();
    // What somebody wrote is what somebody can correct.
    let written = parties.iter().find(|party| party.origin != Origin::Default);
    let origin = written.map_or(Origin::Together, |party| party.origin.clone());
    Fault { origin, problem: Problem::Contradiction { message, parties } }
}

/// One sentence per contradiction: which settings, and what must hold. Each crate judges its own.
fn messages(settings: &EsperSettings) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    messages.extend(wiring::bus_config(settings).check().iter().map(ToString::to_string));
    messages.extend(wiring::library_config(settings).err().map(|fault| fault.to_string()));
    messages.extend(wiring::policy_config(settings).check().iter().map(ToString::to_string));
    messages.extend(wiring::ingest_config(settings).check().iter().map(ToString::to_string));
    let forge = wiring::forge_config(settings).check().err().unwrap_or_default();
    messages.extend(forge.iter().map(ToString::to_string));
    if settings.heartbeat_budget < 2 * oona::Heartbeat::INTERVAL {
        messages.push(
            "WEATHERLIGHT_HEARTBEAT_BUDGET_S must be at least two heartbeats (2 s), else healthy \
             workers look hung"
                .to_owned(),
        );
    }
    messages
}
