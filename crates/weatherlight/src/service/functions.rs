//! What an operator loses while a worker does not run, in words that need no knowledge of the code.

/// Worker, and what is lost without it.
const FUNCTIONS: &[(&str, &str)] = &[
    ("oona.emergency", "emergency signals are not acted on"),
    ("oona.lease", "this process does nothing that one process of all does"),
    ("oona.housekeeping", "streams are not trimmed and dead consumers not removed"),
    ("oona.spool", "messages kept on disk during an outage are not sent"),
    ("urza.prefetch", "kernels are not served"),
    ("urza.maintenance", "artifacts are neither tidied nor checked"),
    ("tezzeret.forge", "kernels are not compiled"),
    ("kasmina.prefetch", "kernels are not fetched for training"),
    ("kasmina.ready", "kernels that are ready do not reach training"),
    ("kasmina.errors", "refusals of kernels do not reach training"),
    ("kasmina.telemetry", "what training says is not published"),
    ("tamiyo.policy", "policies are not updated"),
    ("tamiyo.reports", "field reports are not published"),
    ("nissa.ingest", "metrics, alerts and the page stand still"),
    ("nissa.http", "health, metrics and the page are not served"),
    ("weatherlight.settings", "settings are not reloaded"),
    ("weatherlight.probe", "the bus is not watched"),
    ("weatherlight.telemetry", "the service does not publish its own telemetry"),
    ("weatherlight.otlp", "the collector gets no traces and metrics"),
];

/// What is lost while this worker does not run; empty for a worker nobody has thought about, which
/// a test of the service refuses.
pub(super) fn lost_without(worker: &str) -> &'static str {
    let found = FUNCTIONS.iter().find(|(name, _)| *name == worker);
    found.map_or("", |(_, function)| function)
}
