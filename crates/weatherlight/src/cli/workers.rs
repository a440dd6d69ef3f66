//! `weatherlight status` and `weatherlight workers`: asking a running service.

use clap::{Args, Subcommand};
use nissa::{BreakerState, Health, SystemMode, WorkerState};
use serde::Deserialize;

use super::failure::Failure;
use super::{Global, block_on, table};
use crate::client::{self, Answer};
use crate::settings::EsperSettings;

/// What `weatherlight status` can be asked.
#[derive(Debug, Clone, Args)]
pub struct StatusOptions {
    /// Print nothing and exit with 0 when the service is ready, else with 69 and the reasons
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every worker with its state
    List,
    /// Restart a worker, or revive a parked one (needs WEATHERLIGHT_HTTP_TOKEN on both sides)
    Restart {
        /// Name of the worker, as `workers list` shows it.
        name: String,
    },
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    match command {
        Command::List => {
            let health = health(&settings)?;
            if global.json {
                table::print_json(&health.workers);
            } else {
                table::print(&workers(&health));
            }
            Ok(0)
        }
        Command::Restart { name } => restart(&settings, name),
    }
}

/// `weatherlight status`.
pub(super) fn status(global: &Global, options: &StatusOptions) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    if options.check {
        return check(&settings);
    }
    let health = health(&settings)?;
    if global.json {
        table::print_json(&health);
        return Ok(0);
    }
    let mode = match health.system_mode {
        SystemMode::Operational => "operational",
        SystemMode::Degraded => "degraded",
    };
    table::print(&format!(
        "Weatherlight {}: {mode}, {}, up {:.0} s, log {}",
        health.version,
        if health.ready { "ready" } else { "not ready" },
        health.uptime_s,
        health.log,
    ));
    for reason in health.reasons.iter().chain(&health.lost) {
        table::print(&format!("  {reason}"));
    }
    table::print(&workers(&health));
    if !health.lanes.is_empty() {
        let mut rows = table::with_columns(&["stream", "backlog"]);
        for lane in &health.lanes {
            rows.add_row([lane.stream.clone(), lane.depth.to_string()]);
        }
        table::print(&rows.to_string());
    }
    if !health.breakers.is_empty() {
        table::print(&breakers(&health));
    }
    Ok(0)
}

/// What `/readyz` answers.
#[derive(Debug, Deserialize)]
struct Readiness {
    reasons: Vec<String>,
}

/// For health checks of containers and service managers.
fn check(settings: &EsperSettings) -> Result<u8, Failure> {
    let address = settings.http_addr;
    let answer = block_on(client::request(address, "GET", "/readyz", None))?
        .map_err(|error| Failure::unavailable(error.to_string()))?;
    if answer.status == 200 {
        return Ok(0);
    }
    let readiness: Readiness = serde_json::from_str(&answer.body).map_err(|error| {
        let status = answer.status;
        Failure::unavailable(format!("{address} answers {status} and no reasons: {error}"))
    })?;
    Err(Failure::unavailable(format!("not ready: {}", readiness.reasons.join("; "))))
}

fn health(settings: &EsperSettings) -> Result<Health, Failure> {
    let Answer { body, .. } =
        block_on(client::request(settings.http_addr, "GET", "/healthz", None))?
            .map_err(|error| Failure::unavailable(error.to_string()))?;
    serde_json::from_str(&body).map_err(|error| {
        let address = settings.http_addr;
        Failure::unavailable(format!("what answers at {address} is no Weatherlight: {error}"))
    })
}

fn workers(health: &Health) -> String {
    let columns = ["worker", "state", "critical", "restarts", "seen", "phase", "last error"];
    let mut rows = table::with_columns(&columns);
    for worker in &health.workers {
        let state = match worker.state {
            WorkerState::Starting => "starting".to_owned(),
            WorkerState::Running => "running".to_owned(),
            WorkerState::BackingOff => format!("restarts in {:.1} s", worker.backoff_s),
            WorkerState::Parked => "parked".to_owned(),
            WorkerState::Stopped => "stopped".to_owned(),
        };
        let seen = worker.heartbeat_age_ms.map(|age| format!("{:.1} s ago", age as f64 / 1e3));
        rows.add_row([
            worker.name.clone(),
            state,
            if worker.critical { "yes" } else { "no" }.to_owned(),
            worker.restarts.to_string(),
            seen.unwrap_or_default(),
            worker.last_phase.clone().unwrap_or_default(),
            worker.last_error.clone().unwrap_or_default(),
        ]);
    }
    rows.to_string()
}

/// The breakers, also for `bus stats`.
pub(super) fn breakers(health: &Health) -> String {
    let mut rows = table::with_columns(&["breaker", "state"]);
    for breaker in &health.breakers {
        let state = match breaker.state {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half-open",
            BreakerState::Open => "open",
        };
        rows.add_row([breaker.name.as_str(), state]);
    }
    rows.to_string()
}

fn restart(settings: &EsperSettings, name: &str) -> Result<u8, Failure> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.chars().all(is_plain) {
        return Err(Failure::configuration(format!("{name:?} is no worker's name")));
    }
    let Some(token) = &settings.http_token else {
        return Err(Failure::configuration(
            "restarting needs WEATHERLIGHT_HTTP_TOKEN, the same here and at the service",
        ));
    };
    let path = format!("/v1/workers/{name}/restart");
    let answer = block_on(client::request(settings.http_addr, "POST", &path, Some(token)))?
        .map_err(|error| Failure::unavailable(error.to_string()))?;
    if (200..300).contains(&answer.status) {
        table::print(&format!("{name} restarts"));
        return Ok(0);
    }
    Err(Failure::unavailable(format!("refused ({}): {}", answer.status, answer.body.trim())))
}

#[cfg(test)]
mod tests {
    use nissa::BreakerHealth;

    use super::*;

    #[test]
    fn every_breaker_has_a_line() {
        let breaker = |name: &str, state| BreakerHealth { name: name.to_owned(), state };
        let breakers_found = vec![
            breaker("oona.publish", BreakerState::Open),
            breaker("tezzeret.forge", BreakerState::HalfOpen),
        ];
        let text = breakers(&Health { breakers: breakers_found, ..Health::booting("1", "redis") });
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line("oona.publish").contains("open"), "{text}");
        assert!(line("tezzeret.forge").contains("half-open"), "{text}");
    }
}
