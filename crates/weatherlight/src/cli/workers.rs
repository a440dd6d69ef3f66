//! `weatherlight workers`: the workers of a running service.

use clap::Subcommand;
use leyline::time::now_unix_ms;
use nissa::{Health, WorkerHealth, WorkerState};
use serde_json::json;

use super::asking::{Wish, change, health};
use super::failure::Failure;
use super::table::{self, ago, plain};
use super::{Global, block_on};
use crate::settings::EsperSettings;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List every worker with its state
    #[command(after_help = "Example: weatherlight workers list --json")]
    List,
    /// Show one worker whole: what it does, and why and when it last ended
    #[command(after_help = "Example: weatherlight workers show urza.prefetch")]
    Show {
        /// Name of the worker, as `workers list` shows it
        name: String,
    },
    /// Restart a worker, or revive a parked one (needs WEATHERLIGHT_HTTP_TOKEN on both sides)
    #[command(after_help = "Example: weatherlight workers restart tezzeret.forge")]
    Restart {
        /// Name of the worker, as `workers list` shows it
        name: String,
    },
    /// Stop a worker and leave it down until it is restarted (needs WEATHERLIGHT_HTTP_TOKEN)
    ///
    /// The service is degraded meanwhile and says what is lost. Critical workers are refused.
    #[command(after_help = "Example: weatherlight workers park urza.maintenance")]
    Park {
        /// Name of the worker, as `workers list` shows it
        name: String,
    },
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    match command {
        Command::List => {
            let health = block_on(health(&settings))??;
            if global.json {
                table::print_json(&health.workers);
            } else {
                table::print(&workers(&health));
            }
        }
        Command::Show { name } => show(&settings, name, global.json)?,
        Command::Restart { name } => {
            ask(global, &settings, name, Wish::Restart)?;
        }
        Command::Park { name } => ask(global, &settings, name, Wish::Park)?,
    }
    Ok(0)
}

fn ask(global: &Global, settings: &EsperSettings, name: &str, wish: Wish) -> Result<(), Failure> {
    block_on(change(settings, name, wish))??;
    let (asked, line) = match wish {
        Wish::Restart => ("restart", format!("{name} restarts")),
        Wish::Park => ("park", format!("{name} stops and stays down until it is restarted")),
    };
    if global.json {
        table::print_json(&json!({ "worker": name, "asked": asked }));
    } else {
        table::print(&line);
    }
    Ok(())
}

fn show(settings: &EsperSettings, name: &str, as_json: bool) -> Result<(), Failure> {
    let health = block_on(health(settings))??;
    let found = health.workers.iter().find(|worker| worker.name == name);
    let Some(worker) = found else {
        let names: Vec<&str> = health.workers.iter().map(|worker| worker.name.as_str()).collect();
        let message = format!("there is no worker {name:?}; they are {}", names.join(", "));
        return Err(Failure::unusable(message).named("worker_unknown"));
    };
    if as_json {
        table::print_json(worker);
    } else {
        table::print(&one(worker, now_unix_ms()));
    }
    Ok(())
}

/// Its state in words.
pub(super) fn state(worker: &WorkerHealth) -> String {
    match worker.state {
        WorkerState::Starting => "starting".to_owned(),
        WorkerState::Running => "running".to_owned(),
        WorkerState::BackingOff => format!("restarts in {:.1} s", worker.backoff_s),
        WorkerState::Parked => "parked".to_owned(),
        WorkerState::Stopped => "stopped".to_owned(),
    }
}

/// What it said it was doing, and on what.
pub(super) fn phase(worker: &WorkerHealth) -> String {
    let phase = worker.last_phase.as_deref().unwrap_or_default();
    match &worker.last_about {
        Some(about) => format!("{} ({})", plain(phase), plain(about)),
        None => plain(phase),
    }
}

/// The table of workers, also for `status`.
pub(super) fn workers(health: &Health) -> String {
    let columns = ["worker", "state", "critical", "restarts", "seen", "phase", "last reason"];
    let mut rows = table::with_columns(&columns);
    for worker in &health.workers {
        rows.add_row([
            worker.name.clone(),
            state(worker),
            if worker.critical { "yes" } else { "no" }.to_owned(),
            worker.restarts.to_string(),
            ago(worker.heartbeat_age_ms),
            phase(worker),
            plain(worker.last_error.as_deref().unwrap_or_default()),
        ]);
    }
    rows.to_string()
}

fn one(worker: &WorkerHealth, now_ms: u64) -> String {
    let mut lines = vec![format!("{}: {}", worker.name, state(worker))];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<14}{value}"));
    fact("critical", if worker.critical { "yes" } else { "no" }.to_owned());
    if !worker.function.is_empty() {
        fact("without it", worker.function.clone());
    }
    fact(
        "needs",
        if worker.depends_on.is_empty() { "-".to_owned() } else { worker.depends_on.join(", ") },
    );
    let budget = worker.heartbeat_budget_ms.map(|ms| format!(" (hung after {})", ago(Some(ms))));
    let seen = match worker.heartbeat_age_ms {
        Some(age) => format!("{} ago", ago(Some(age))),
        None => "-".to_owned(),
    };
    fact("seen", seen + &budget.unwrap_or_default());
    fact("phase", phase(worker));
    fact("restarts", worker.restarts.to_string());
    if let Some(ms) = worker.last_restart_ms {
        fact("restarted in", format!("{ms:.1} ms (without the pause before)"));
    }
    if worker.recent_restarts.is_empty() {
        lines.push("  it has not ended since the service began".to_owned());
        return lines.join("\n");
    }
    lines.push("  its latest ends, newest first:".to_owned());
    for end in worker.recent_restarts.iter().rev() {
        let age = (end.unix_ms > 0).then(|| now_ms.saturating_sub(end.unix_ms));
        let when = match age {
            Some(age) => format!("{} ago", ago(Some(age))),
            None => format!("at {:.0} s of uptime", end.uptime_s),
        };
        lines.push(format!("    {when:<12}  {}", plain(&end.reason)));
        for cause in end.causes.iter().skip(1) {
            lines.push(format!("    {:<12}    because {}", "", plain(cause)));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use nissa::RecentRestart;

    use super::*;

    #[test]
    fn a_worker_is_shown_with_its_ends_and_their_causes() {
        let end = |unix_ms, reason: &str, causes: &[&str]| RecentRestart {
            uptime_s: 5.0,
            unix_ms,
            reason: reason.to_owned(),
            causes: causes.iter().map(|cause| (*cause).to_owned()).collect(),
        };
        let worker = WorkerHealth {
            restarts: 2,
            function: "kernels are not served".to_owned(),
            recent_restarts: vec![
                end(1_000, "panicked: a\u{1b}[2J", &[]),
                end(60_000, "the log failed: no route", &["the log failed", "no route"]),
            ],
            last_about: Some("request 7".to_owned()),
            last_phase: Some("answer".to_owned()),
            ..WorkerHealth::new("urza.prefetch", WorkerState::Running)
        };
        let text = one(&worker, 65_000);
        for words in [
            "kernels are not served",
            "answer (request 7)",
            "5.0 s ago",
            "64 s ago",
            "because no route",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
        assert!(text.find("no route") < text.find("panicked"), "newest first: {text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let quiet = one(&WorkerHealth::new("x", WorkerState::Parked), 0);
        assert!(quiet.contains("has not ended"), "{quiet}");
    }
}
