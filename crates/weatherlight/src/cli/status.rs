//! `weatherlight status`: one screen about a running service.

use clap::Args;
use leyline::time::now_unix_ms;
use nissa::{BreakerHealth, BreakerState, Health, ProcessPhase, SystemMode};
use serde::Deserialize;

use super::failure::Failure;
use super::picture::Picture;
use super::table::{self, ago, plain};
use super::workers::workers;
use super::{Global, block_on};
use crate::client;
use crate::settings::EsperSettings;

/// The latest ends of workers that are shown.
const ENDS_SHOWN: usize = 5;

/// What `weatherlight status` can be asked.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Print nothing and exit with 0 when the service is ready, else with 69 and the reasons
    #[arg(long)]
    check: bool,
}

pub(super) fn run(global: &Global, options: &Options) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    if options.check {
        return check(&settings);
    }
    let picture = block_on(Picture::take(&settings))??;
    if global.json {
        table::print_json(&picture);
    } else {
        table::print(&screen(&picture, now_unix_ms()));
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

/// The mode as a word.
pub(super) const fn mode(health: &Health) -> &'static str {
    match health.system_mode {
        SystemMode::Operational => "operational",
        SystemMode::Degraded => "degraded",
    }
}

/// The phase as a word.
pub(super) const fn phase(health: &Health) -> &'static str {
    match health.phase {
        ProcessPhase::Booting => "booting",
        ProcessPhase::Running => "running",
        ProcessPhase::Draining => "draining",
    }
}

fn screen(picture: &Picture, now_ms: u64) -> String {
    let health = &picture.health;
    let mut parts = vec![head(health)];
    parts.push(workers(health));
    let ends = ends(health, now_ms);
    if !ends.is_empty() {
        parts.push(format!("latest ends of workers (all: weatherlight workers show NAME)\n{ends}"));
    }
    if !health.lanes.is_empty() {
        let mut rows = table::with_columns(&["stream", "backlog", "oldest"]);
        for lane in &health.lanes {
            rows.add_row([lane.stream.clone(), lane.depth.to_string(), ago(lane.oldest_ms)]);
        }
        parts.push(rows.to_string());
    }
    if !health.breakers.is_empty() {
        parts.push(troubled(health));
    }
    parts.push(tail(picture, now_ms));
    parts.join("\n")
}

fn head(health: &Health) -> String {
    let mut lines = vec![format!(
        "Weatherlight {}: {}, {}, {}, up {}, log {}",
        plain(&health.version),
        mode(health),
        phase(health),
        if health.ready { "ready" } else { "not ready" },
        ago(Some((health.uptime_s.max(0.0) * 1e3) as u64)),
        plain(&health.log),
    )];
    lines.extend(health.reasons.iter().map(|reason| format!("  not ready: {}", plain(reason))));
    lines.extend(health.lost.iter().map(|lost| format!("  lost: {}", plain(lost))));
    lines.join("\n")
}

/// The newest ends of all workers.
fn ends(health: &Health, now_ms: u64) -> String {
    let mut ends: Vec<(f64, String)> = Vec::new();
    for worker in &health.workers {
        for end in &worker.recent_restarts {
            let seconds = (health.uptime_s - end.uptime_s).max(0.0);
            let age = match end.unix_ms {
                0 => (seconds * 1e3) as u64,
                unix_ms => now_ms.saturating_sub(unix_ms),
            };
            let line =
                format!("  {:>8} ago  {}: {}", ago(Some(age)), worker.name, plain(&end.reason));
            ends.push((end.uptime_s, line));
        }
    }
    ends.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lines: Vec<String> = ends.into_iter().take(ENDS_SHOWN).map(|(_, line)| line).collect();
    lines.join("\n")
}

/// The breakers that are not closed, and how many there are.
fn troubled(health: &Health) -> String {
    let is_troubled = |breaker: &&BreakerHealth| breaker.state != BreakerState::Closed;
    let troubled: Vec<BreakerHealth> =
        health.breakers.iter().filter(is_troubled).cloned().collect();
    let all = health.breakers.len();
    if troubled.is_empty() {
        return format!("breakers: all {all} closed");
    }
    let count = format!("breakers: {} of {all} not closed", troubled.len());
    format!("{count}\n{}", breakers(&troubled))
}

/// The breakers, also for `bus stats`.
pub(super) fn breakers(breakers: &[BreakerHealth]) -> String {
    let mut rows = table::with_columns(&["breaker", "state"]);
    for breaker in breakers {
        let state = match breaker.state {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half-open",
            BreakerState::Open => "open",
        };
        rows.add_row([breaker.name.as_str(), state]);
    }
    rows.to_string()
}

/// Secrets, spool, kernels, runs and alerts, a line each.
fn tail(picture: &Picture, now_ms: u64) -> String {
    let mut lines: Vec<String> = Vec::new();
    for key in &picture.health.keys {
        let used = key.last_used_s.map(|seconds| now_ms.saturating_sub(seconds * 1000));
        let used = used
            .map_or("not used yet".to_owned(), |age| format!("last used {} ago", ago(Some(age))));
        lines.push(format!("secret {} ({}): {} verified, {used}", key.key, key.role, key.verified));
    }
    if let Some(figures) = &picture.figures {
        lines.push(format!(
            "bus: {} published, {} handled, {} refused, {} dead letters, {} wait on disk",
            figures.published,
            figures.handled,
            figures.refused,
            figures.dead_letters,
            figures.spooled
        ));
    }
    if let Some(kernels) = kernels(picture) {
        lines.push(kernels);
    }
    if let Some(board) = &picture.board {
        lines.push(match &board.run {
            None => "runs: none".to_owned(),
            Some(run) => {
                let seeds: Vec<String> = run
                    .seeds
                    .iter()
                    .map(|seed| format!("{} {}", plain(&seed.id), plain(&seed.stage)))
                    .collect();
                let seeds = if seeds.is_empty() { "no seeds".to_owned() } else { seeds.join(", ") };
                let age = ago(Some(now_ms.saturating_sub(run.last_ms)));
                let (known, id) = (board.runs.len(), plain(&run.id));
                format!("runs: {known}; {id} in epoch {}, heard {age} ago: {seeds}", run.epoch)
            }
        });
        for alert in &board.alerts.active {
            let since = ago(Some(now_ms.saturating_sub(alert.since_ms)));
            let (rule, source) = (plain(&alert.rule), plain(&alert.source));
            lines.push(format!(
                "ALERT {rule} of {source} for {since} (value {:.3}); see `weatherlight explain {rule}`",
                alert.value
            ));
        }
    }
    lines.join("\n")
}

/// The kernels in one line.
pub(super) fn kernels(picture: &Picture) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    if let Some(artifacts) = picture.artifacts {
        parts.push(format!("{} on disk ({} KiB)", artifacts.files, artifacts.bytes / 1024));
    }
    if let Some(figures) = picture.figures {
        parts.push(format!("{} in the build queue", figures.build_queue));
    }
    if let Some(board) = &picture.board {
        let kernels = &board.kernels;
        let (requested, ready, errors) = (kernels.requested, kernels.ready, kernels.errors);
        parts.push(format!("{requested} requested, {ready} answered, {errors} refused"));
    }
    (!parts.is_empty()).then(|| format!("kernels: {}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use nissa::{KeyHealth, LaneHealth, RecentRestart, WorkerHealth, WorkerState};

    use super::*;
    use crate::cli::picture::{Alert, Artifacts, Board, Figures, Run, Seed};

    #[test]
    fn every_breaker_has_a_line() {
        let breaker = |name: &str, state| BreakerHealth { name: name.to_owned(), state };
        let breakers_found = vec![
            breaker("oona.publish", BreakerState::Open),
            breaker("tezzeret.forge", BreakerState::HalfOpen),
        ];
        let text = breakers(&breakers_found);
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line("oona.publish").contains("open"), "{text}");
        assert!(line("tezzeret.forge").contains("half-open"), "{text}");
    }

    #[test]
    fn the_screen_tells_everything_and_nothing_that_moves_the_cursor() {
        let end = RecentRestart {
            uptime_s: 90.0,
            unix_ms: 99_000,
            reason: "panicked: boom".to_owned(),
            causes: Vec::new(),
        };
        let mut worker = WorkerHealth::new("tezzeret.forge", WorkerState::Parked);
        worker.recent_restarts = vec![end];
        let health = Health {
            system_mode: SystemMode::Degraded,
            lost: vec!["kernels are not compiled".to_owned()],
            phase: ProcessPhase::Running,
            uptime_s: 100.0,
            workers: vec![worker],
            breakers: ["a", "b"]
                .into_iter()
                .zip([BreakerState::Closed, BreakerState::Open])
                .map(|(name, state)| BreakerHealth { name: name.to_owned(), state })
                .collect(),
            lanes: vec![LaneHealth {
                stream: "oona.policy".to_owned(),
                depth: 3,
                oldest_ms: Some(4_200),
            }],
            keys: vec![KeyHealth {
                key: "ab".to_owned(),
                role: "current".to_owned(),
                verified: 7,
                last_used_s: None,
            }],
            ..Health::booting("1", "redis")
        };
        let board = Board {
            run: Some(Run {
                id: "run\u{1b}[2J".to_owned(),
                seeds: vec![Seed {
                    id: "s1".to_owned(),
                    stage: "blending".to_owned(),
                    ..Seed::default()
                }],
                ..Run::default()
            }),
            ..Board::default()
        };
        let mut picture = Picture {
            health,
            board: Some(board),
            figures: Some(Figures { spooled: 12.0, build_queue: 4.0, ..Figures::default() }),
            artifacts: Some(Artifacts { files: 50, bytes: 2048 }),
        };
        let alert =
            Alert { rule: "oona_queue_depth".to_owned(), since_ms: 95_000, ..Alert::default() };
        if let Some(board) = &mut picture.board {
            board.alerts.active.push(alert);
        }
        let text = screen(&picture, 100_000);
        for words in [
            "degraded, running, not ready, up 100 s",
            "lost: kernels are not compiled",
            "1.0 s ago  tezzeret.forge: panicked: boom",
            "4.2 s",
            "breakers: 1 of 2 not closed",
            "not used yet",
            "12 wait on disk",
            "50 on disk (2 KiB), 4 in the build queue",
            "s1 blending",
            "ALERT oona_queue_depth",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
