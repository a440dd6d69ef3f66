//! What readers get as JSON. Borrows the snapshot, writes text.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::exposition::samples;
use super::routes::Shared;
use crate::alerts::{ActiveAlert, Notification};
use crate::board::{Board, Event, Kernels, Now, Point, Request, Run, Seed};
use crate::health::Health;
use crate::labels::Outcome;
use crate::slo::Level;

/// Events, requests and notifications sent to the page; the board keeps more.
const LINES_MAX: usize = 60;

/// What a reader already has.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    wanted: Option<String>,
    run: Option<String>,
    revision: u64,
}

impl Seen {
    /// A new reader, perhaps of one run.
    pub(super) fn nothing(wanted: Option<String>) -> Self {
        Self { wanted, run: None, revision: 0 }
    }

    /// Whether it has had nothing yet.
    pub(super) fn is_nothing(&self) -> bool {
        self.revision == 0
    }
}

/// One view, encoded, and what its reader has after it.
pub(super) struct View {
    pub(super) body: String,
    pub(super) seen: Seen,
}

/// The health with what only nissa knows.
#[derive(Serialize)]
pub(super) struct HealthView<'a> {
    #[serde(flatten)]
    health: &'a Health,
    /// How old the supervisor's snapshot is.
    snapshot_age_ms: u64,
    alerts_active: usize,
}

impl<'a> HealthView<'a> {
    pub(super) fn new(health: &'a Health, alerts_active: usize) -> Self {
        Self { health, snapshot_age_ms: millis(health.age()), alerts_active }
    }
}

#[derive(Serialize)]
struct StateView<'a> {
    now_ms: u64,
    health: HealthView<'a>,
    runs: Vec<RunLine<'a>>,
    run: Option<RunView<'a>>,
    kernels: KernelsView<'a>,
    sources: BTreeMap<&'a str, SourceView<'a>>,
    events: Vec<&'a Event>,
    reports: BTreeMap<&'static str, u64>,
    alerts: AlertsView<'a>,
    slo: Vec<Level>,
    bus: BusView,
    messages: u64,
}

#[derive(Serialize)]
struct RunLine<'a> {
    id: &'a str,
    experiment: &'a str,
    epoch: u32,
    last_ms: u64,
}

#[derive(Serialize)]
struct RunView<'a> {
    id: &'a str,
    experiment: &'a str,
    source: &'a str,
    first_ms: u64,
    last_ms: u64,
    epoch: u32,
    step: u64,
    figures: &'a BTreeMap<String, f32>,
    seeds: Vec<&'a Seed>,
    /// Whether `points` is the whole history, or what changed since the last view.
    whole: bool,
    points: Vec<&'a Point>,
}

#[derive(Serialize)]
struct KernelsView<'a> {
    requested: u64,
    ready: u64,
    errors: u64,
    waiting: usize,
    compiled: u64,
    last_compiled: &'a Option<crate::board::Compiled>,
    latency_p50_ms: Option<f64>,
    latency_p95_ms: Option<f64>,
    /// Newest first.
    requests: Vec<RequestView<'a>>,
}

#[derive(Serialize)]
struct RequestView<'a> {
    #[serde(flatten)]
    request: &'a Request,
    latency_ms: Option<u64>,
}

#[derive(Serialize)]
struct SourceView<'a> {
    packets: u64,
    last_ms: u64,
    status: &'a str,
    summary: &'a str,
}

#[derive(Serialize)]
struct AlertsView<'a> {
    active: Vec<&'a ActiveAlert>,
    /// Newest first.
    recent: Vec<&'a Notification>,
    rules: usize,
}

#[derive(Default, Serialize)]
struct BusView {
    published: f64,
    consumed: f64,
    retries: f64,
    dead_letter: f64,
    /// Refused entries by reason, none that is zero.
    refused: BTreeMap<String, f64>,
    /// What nissa itself has not read yet, by stream.
    backlog: BTreeMap<String, u64>,
}

/// The view for a reader who has seen this much.
pub(super) fn state(shared: &Shared, seen: &Seen) -> View {
    let board = shared.board.borrow().clone();
    let health = shared.health.borrow().clone();
    let run = seen.wanted.as_deref().and_then(|id| board.runs.find(id));
    let run = run.or_else(|| board.runs.newest());
    let body = StateView {
        now_ms: Now::read().unix_ms,
        health: HealthView::new(&health, board.alerts.active().count()),
        runs: board.runs.iter().rev().map(run_line).collect(),
        run: run.map(|run| run_view(run, seen)),
        kernels: kernels(&board.kernels),
        sources: board
            .sources
            .iter()
            .map(|(name, source)| {
                let (packets, last_ms) = (source.packets, source.last_ms);
                let (status, summary) = (source.status, source.summary.as_str());
                (name.as_str(), SourceView { packets, last_ms, status, summary })
            })
            .collect(),
        events: board.events.iter().rev().take(LINES_MAX).collect(),
        reports: Outcome::BY_PLACE
            .iter()
            .zip(board.reports)
            .map(|(outcome, count)| (outcome.as_str(), count))
            .collect(),
        alerts: AlertsView {
            active: board.alerts.active().collect(),
            recent: board.alerts.recent().rev().take(LINES_MAX).collect(),
            rules: board.alerts.rules().len(),
        },
        slo: board.levels.levels(Instant::now()),
        bus: BusView { backlog: board.backlog.clone(), ..bus(shared) },
        messages: board.messages,
    };
    let seen = Seen {
        wanted: seen.wanted.clone(),
        run: run.map(|run| run.id.clone()),
        // At least 1: an empty board has been seen, too.
        revision: board.revision.max(1),
    };
    View { body: encode(&body), seen }
}

/// `GET /metrics/summary`: service levels and active alerts by rule.
pub(super) fn summary(board: &Board) -> serde_json::Value {
    let levels: BTreeMap<String, Level> =
        board.levels.levels(Instant::now()).into_iter().map(|l| (l.name.clone(), l)).collect();
    let mut alerts: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
    for alert in board.alerts.active() {
        let entry = alerts.entry(alert.rule.as_str()).or_insert_with(|| {
            json!({ "metric": alert.metric, "value": alert.value, "routes": alert.routes,
                    "sources": [] })
        });
        if let Some(sources) = entry["sources"].as_array_mut() {
            sources.push(json!({ "source": alert.source, "value": alert.value,
                                 "since_ms": alert.since_ms, "seen_ms": alert.seen_ms }));
        }
    }
    json!({ "slo": levels, "alerts": alerts })
}

/// Whole milliseconds; saturates.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn run_line(run: &Run) -> RunLine<'_> {
    RunLine { id: &run.id, experiment: &run.experiment, epoch: run.epoch, last_ms: run.last_ms }
}

fn run_view<'a>(run: &'a Run, seen: &Seen) -> RunView<'a> {
    let whole = seen.run.as_ref() != Some(&run.id);
    RunView {
        id: &run.id,
        experiment: &run.experiment,
        source: &run.source,
        first_ms: run.first_ms,
        last_ms: run.last_ms,
        epoch: run.epoch,
        step: run.step,
        figures: &run.figures,
        seeds: run.seeds.values().collect(),
        whole,
        points: run.points.iter().filter(|point| whole || point.revision > seen.revision).collect(),
    }
}

fn kernels(kernels: &Kernels) -> KernelsView<'_> {
    KernelsView {
        requested: kernels.requested,
        ready: kernels.ready,
        errors: kernels.errors,
        waiting: kernels.waiting(),
        compiled: kernels.compiled,
        last_compiled: &kernels.last_compiled,
        latency_p50_ms: kernels.latency_ms(0.5),
        latency_p95_ms: kernels.latency_ms(0.95),
        requests: kernels
            .requests()
            .rev()
            .take(LINES_MAX)
            .map(|request| RequestView { request, latency_ms: request.latency_ms() })
            .collect(),
    }
}

/// The bus by its own metrics; zeros where the process has none.
fn bus(shared: &Shared) -> BusView {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &shared.registry).is_err() {
        return BusView::default();
    }
    let sum = |name, outcome: Option<&str>| {
        samples(&text, name)
            .iter()
            .filter(|sample| outcome.is_none() || sample.label("outcome") == outcome)
            .fold(0.0, |total, sample| total + sample.value)
    };
    let mut refused = BTreeMap::new();
    for sample in samples(&text, "oona_refused_total") {
        if sample.value > 0.0
            && let Some(reason) = sample.label("reason")
        {
            *refused.entry(reason.to_owned()).or_insert(0.0) += sample.value;
        }
    }
    BusView {
        published: sum("oona_publish_total", Some("published")),
        consumed: sum("oona_consume_total", Some("handled")),
        retries: sum("oona_retries_total", None),
        dead_letter: sum("oona_dead_letter_total", None),
        refused,
        backlog: BTreeMap::new(),
    }
}

fn encode(view: &StateView<'_>) -> String {
    serde_json::to_string(view).unwrap_or_else(|error| {
        unreachable!("a view has string keys and no failing serialiser: {error}")
    })
}
