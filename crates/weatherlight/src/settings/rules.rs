//! What must hold between settings.

use std::time::Duration;

use super::table::EsperSettings;

/// One sentence per contradiction: which settings, and what must hold. Pure.
pub(super) fn contradictions(settings: &EsperSettings) -> Vec<String> {
    let mut messages = Vec::new();
    let mut demand = |holds: bool, message: &str| {
        if !holds {
            messages.push(message.to_owned());
        }
    };
    demand(
        settings.oona_emergency_threshold <= settings.oona_backpressure_threshold
            && settings.oona_backpressure_threshold <= settings.oona_queue_depth_max,
        "OONA_EMERGENCY_THRESHOLD <= OONA_BACKPRESSURE_THRESHOLD <= OONA_QUEUE_DEPTH_MAX must hold",
    );
    demand(
        streams_are_distinct(settings),
        "two OONA_*_STREAM settings have the same name; give each stream its own",
    );
    demand(
        settings.heartbeat_budget >= Duration::from_secs(2),
        "WEATHERLIGHT_HEARTBEAT_BUDGET_S must be at least two heartbeats (2 s), else healthy workers look hung",
    );
    messages
}

fn streams_are_distinct(settings: &EsperSettings) -> bool {
    let mut names = [
        &settings.oona_normal_stream,
        &settings.oona_emergency_stream,
        &settings.oona_telemetry_stream,
        &settings.oona_policy_stream,
        &settings.oona_kernel_request_stream,
        &settings.oona_kernel_ready_stream,
        &settings.oona_kernel_error_stream,
        &settings.oona_dead_letter_stream,
    ];
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}
