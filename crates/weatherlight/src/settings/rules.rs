//! What must hold between settings.

use super::table::EsperSettings;
use crate::wiring;

/// One sentence per contradiction: which settings, and what must hold. Pure; each crate judges its
/// own settings.
pub(super) fn contradictions(settings: &EsperSettings) -> Vec<String> {
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
