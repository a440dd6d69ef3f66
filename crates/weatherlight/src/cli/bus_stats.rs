//! `weatherlight bus stats`: how the bus stands.

use nissa::Health;
use nissa::bus::{GroupView, StandingView};
use serde::Serialize;

use super::bus_desk::Desk;
use super::failure::Failure;
use super::status::breakers;
use super::table::{self, ago, plain};
use crate::client;
use crate::settings::EsperSettings;

/// Everything that is shown.
#[derive(Debug, Serialize)]
struct Stats {
    #[serde(flatten)]
    standing: StandingView,
    /// Entries in the dead-letter stream.
    dead_letters: u64,
    /// What a running service says of itself: breakers, backlogs, secrets. Absent where none answers.
    service: Option<Health>,
}

/// Shows streams, groups and consumers as the log has them, and what only a running service knows.
pub(super) async fn run(settings: &EsperSettings, as_json: bool) -> Result<u8, Failure> {
    let standing = Desk::open(settings).await?.standing().await?;
    let dead = standing.streams.iter().find(|stream| stream.stream == "dead_letter");
    let dead_letters = dead.map_or(0, |stream| stream.length);
    let stats = Stats { dead_letters, service: service(settings).await, standing };
    if as_json {
        table::print_json(&stats);
        return Ok(0);
    }
    let server = stats.standing.server.as_deref().map(|server| format!(" ({server})"));
    let (log, server) = (&stats.standing.log, plain(&server.unwrap_or_default()));
    table::print(&format!("log {log}{server}, {dead_letters} dead letters"));
    table::print(&streams(&stats.standing));
    table::print(&consumers(&stats.standing));
    match &stats.service {
        Some(health) => {
            for lost in &health.lost {
                table::print(&format!("  {}", plain(lost)));
            }
            table::print(&breakers(&health.breakers));
            table::print(&keys(health, stats.standing.now_ms));
        }
        None => table::print(&format!(
            "no service answers at {}: breakers and the use of the secrets are not known here",
            settings.http_addr
        )),
    }
    Ok(0)
}

/// Nobody answering is no failure: the log is shown all the same.
async fn service(settings: &EsperSettings) -> Option<Health> {
    let answer = client::request(settings.http_addr, "GET", "/healthz", None).await.ok()?;
    serde_json::from_str(&answer.body).ok()
}

fn streams(standing: &StandingView) -> String {
    let columns = [
        "stream",
        "entries",
        "oldest",
        "newest",
        "durable",
        "group",
        "pending",
        "oldest pending",
        "lag",
        "redelivered",
        "consumers",
    ];
    let mut rows = table::with_columns(&columns);
    for stream in &standing.streams {
        let row = |group: Option<&GroupView>| {
            let number = |of: fn(&GroupView) -> u64| group.map(|group| of(group).to_string());
            let oldest = group.map(|group| ago(group.oldest_pending_age_ms));
            [
                stream.stream.clone(),
                stream.length.to_string(),
                ago(stream.oldest_age_ms),
                ago(stream.newest_age_ms),
                stream.durability.clone(),
                group.map(|group| plain(&group.name)).unwrap_or_default(),
                number(|group| group.pending).unwrap_or_default(),
                oldest.unwrap_or_default(),
                number(|group| group.lag).unwrap_or_default(),
                number(|group| group.redelivered).unwrap_or_default(),
                number(|group| u64::try_from(group.consumers.len()).unwrap_or(u64::MAX))
                    .unwrap_or_default(),
            ]
        };
        if stream.groups.is_empty() {
            rows.add_row(row(None));
        }
        for group in &stream.groups {
            rows.add_row(row(Some(group)));
        }
    }
    rows.to_string()
}

fn consumers(standing: &StandingView) -> String {
    let mut rows = table::with_columns(&["stream", "group", "consumer", "heartbeat", "pending"]);
    for stream in &standing.streams {
        for group in &stream.groups {
            for consumer in &group.consumers {
                rows.add_row([
                    stream.stream.clone(),
                    plain(&group.name),
                    plain(&consumer.name),
                    ago(consumer.heartbeat_age_ms),
                    consumer.pending.to_string(),
                ]);
            }
        }
    }
    rows.to_string()
}

/// A previous secret that has not been used for longer than the longest window can be removed.
fn keys(health: &Health, now_ms: u64) -> String {
    let mut rows = table::with_columns(&["secret", "role", "verified", "last used"]);
    for key in &health.keys {
        let used = key.last_used_s.map(|seconds| now_ms.saturating_sub(seconds * 1000));
        rows.add_row([key.key.clone(), key.role.clone(), key.verified.to_string(), ago(used)]);
    }
    rows.to_string()
}
