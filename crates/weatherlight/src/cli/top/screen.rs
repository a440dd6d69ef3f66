//! Draws a view. A pure function of it, but for the scroll positions that ratatui keeps.

use nissa::{SystemMode, WorkerHealth, WorkerState};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Clear, Paragraph, Row, Table, Wrap};

use super::view::{Pane, View};
use crate::cli::asking::Wish;
use crate::cli::picture::Picture;
use crate::cli::status::{kernels, mode, phase as process_phase};
use crate::cli::table::{ago, plain};
use crate::cli::workers::{phase, state};

/// Lines of functions that are lost.
const LOST_LINES_MAX: u16 = 2;
/// Streams shown at a time.
const STREAM_LINES_MAX: u16 = 6;
/// Seeds shown at a time.
const SEED_LINES_MAX: u16 = 6;
/// Alerts shown.
const ALERT_LINES_MAX: u16 = 3;
/// The table of workers gets at least its head and two of them.
const WORKER_LINES_MIN: u16 = 3;
/// An entry that waits for longer is shown in another colour.
const OLD_MS: u64 = 5_000;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let area = frame.area();
    let Some(picture) = view.picture.clone() else { return draw_nothing_yet(frame, view) };
    let board = picture.board.as_ref();
    let run = board.and_then(|board| board.run.as_ref());
    let lines = |count: usize, max: u16| u16::try_from(count).unwrap_or(u16::MAX).min(max);
    let lost = lines(picture.health.lost.len(), LOST_LINES_MAX);
    let lanes = lines(picture.health.lanes.len(), STREAM_LINES_MAX);
    let seeds = lines(run.map_or(0, |run| run.seeds.len()), SEED_LINES_MAX);
    let alerts = lines(board.map_or(0, |board| board.alerts.active.len()), ALERT_LINES_MAX);
    // What has no room is left out from the end; head, workers and keys come first.
    let mut left = area.height.saturating_sub(2 + 1 + WORKER_LINES_MIN);
    let mut grant = |wanted: u16| {
        let given = if wanted <= left { wanted } else { 0 };
        left -= given;
        Constraint::Length(given)
    };
    let lost = grant(lost);
    let alerts = grant(alerts);
    let streams = grant(if lanes > 0 { lanes + 1 } else { 0 });
    let kernels_line = grant(1);
    let seed_lines = grant(if run.is_some() { seeds + 1 } else { 0 });
    let [head, lost, alerts, workers, streams, kernels_line, seed_lines, keys] =
        Layout::vertical([
            Constraint::Length(2),
            lost,
            alerts,
            Constraint::Min(0),
            streams,
            kernels_line,
            seed_lines,
            Constraint::Length(1),
        ])
        .areas(area);

    draw_head(frame, head, view, &picture);
    let warn = view.paint(Color::Yellow);
    let lost_lines = picture.health.lost.iter().map(|text| format!("lost: {}", plain(text)));
    frame.render_widget(Paragraph::new(text(lost_lines, warn)), lost);
    draw_alerts(frame, alerts, view, &picture);
    draw_workers(frame, workers, view, &picture);
    draw_streams(frame, streams, view, &picture);
    frame.render_widget(Paragraph::new(kernels(&picture).unwrap_or_default()), kernels_line);
    draw_seeds(frame, seed_lines, view, &picture);
    draw_keys(frame, keys, view);
    if view.help {
        draw_help(frame, area);
    }
}

impl View {
    /// A colour, where colours are wanted.
    fn paint(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// The row under the cursor, in the table in which the arrow keys move.
    fn cursor(&self, pane: Pane) -> Style {
        if self.pane == pane { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() }
    }

    fn title(&self, pane: Pane) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.pane == pane { style.add_modifier(Modifier::UNDERLINED) } else { style }
    }
}

fn text(lines: impl Iterator<Item = String>, style: Style) -> Text<'static> {
    Text::from(lines.map(Line::from).collect::<Vec<_>>()).style(style)
}

/// Before the service has answered once.
fn draw_nothing_yet(frame: &mut Frame<'_>, view: &View) {
    let mut lines = vec![Line::from(format!("weatherlight top: asking {}", view.address))];
    if let Some(gone) = &view.gone {
        let waited = view.gone_for.as_secs();
        lines.push(Line::styled(
            format!("no answer for {waited} s, trying again: {}", plain(gone)),
            view.paint(Color::Red),
        ));
    }
    lines.push(Line::from("q quit"));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), frame.area());
    if view.help {
        draw_help(frame, frame.area());
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View, picture: &Picture) {
    let health = &picture.health;
    let mode_style = match health.system_mode {
        SystemMode::Operational => view.paint(Color::Green),
        SystemMode::Degraded => view.paint(Color::Yellow),
    };
    let up = ago(Some((health.uptime_s.max(0.0) * 1e3) as u64));
    let ready = if health.ready { "ready" } else { "not ready" };
    let mut first = vec![
        Span::styled(
            format!("Weatherlight {}  ", plain(&health.version)),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::styled(mode(health), mode_style),
        Span::raw(format!(
            "  {}, {ready}  up {up}  log {}",
            process_phase(health),
            plain(&health.log)
        )),
    ];
    if view.is_paused() {
        first.push(Span::styled("  PAUSED", view.paint(Color::Yellow)));
    }
    let second = match &view.gone {
        Some(gone) => {
            let silent = view.gone_for.as_secs();
            let said = format!(
                "NO ANSWER for {silent} s, trying again; below is the last that was seen. {}",
                plain(gone)
            );
            Line::styled(said, view.paint(Color::Red))
        }
        None => Line::from(rates(view, picture)),
    };
    frame.render_widget(Paragraph::new(vec![Line::from(first), second]), area);
}

fn rates(view: &View, picture: &Picture) -> String {
    let rate = match &view.rates {
        Some(rates) => format!(
            "published {:.1}/s  handled {:.1}/s  refused {:.1}/s",
            rates.published, rates.handled, rates.refused
        ),
        None => "published -/s  handled -/s  refused -/s".to_owned(),
    };
    let totals = picture.figures.map(|figures| {
        format!("  dead letters {}  on disk {}", figures.dead_letters, figures.spooled)
    });
    rate + &totals.unwrap_or_default()
}

fn draw_alerts(frame: &mut Frame<'_>, area: Rect, view: &View, picture: &Picture) {
    let alerts = picture.board.iter().flat_map(|board| &board.alerts.active);
    let lines = alerts.map(|alert| {
        let since = ago(Some(view.taken_ms.saturating_sub(alert.since_ms)));
        format!("ALERT {} of {} for {since}", plain(&alert.rule), plain(&alert.source))
    });
    frame.render_widget(Paragraph::new(text(lines, view.paint(Color::Red))), area);
}

fn draw_workers(frame: &mut Frame<'_>, area: Rect, view: &mut View, picture: &Picture) {
    let workers = &picture.health.workers;
    let style = |worker: &WorkerHealth| match worker.state {
        WorkerState::Running => Style::new(),
        WorkerState::Starting | WorkerState::Stopped => view.paint(Color::DarkGray),
        WorkerState::BackingOff => view.paint(Color::Yellow),
        WorkerState::Parked => view.paint(Color::Red),
    };
    let rows: Vec<Row<'_>> = workers
        .iter()
        .map(|worker| {
            let doing = match worker.state {
                WorkerState::Running | WorkerState::Starting => phase(worker),
                _ => plain(worker.last_error.as_deref().unwrap_or_default()),
            };
            let mark = if worker.critical { "*" } else { " " };
            Row::new([
                Cell::from(format!("{mark}{}", plain(&worker.name))),
                Cell::from(state(worker)),
                Cell::from(worker.restarts.to_string()),
                Cell::from(ago(worker.heartbeat_age_ms)),
                Cell::from(doing),
            ])
            .style(style(worker))
        })
        .collect();
    let name = workers.iter().map(|worker| worker.name.len() + 1).max().unwrap_or(0).clamp(8, 26);
    let widths = [
        Constraint::Length(u16::try_from(name).unwrap_or(26)),
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths)
        .header(
            Row::new(["workers", "state", "restarts", "beat", "doing, or last reason"])
                .style(view.title(Pane::Workers)),
        )
        .row_highlight_style(view.cursor(Pane::Workers));
    frame.render_stateful_widget(table, area, &mut view.workers);
}

fn draw_streams(frame: &mut Frame<'_>, area: Rect, view: &mut View, picture: &Picture) {
    let rows: Vec<Row<'_>> = picture
        .health
        .lanes
        .iter()
        .map(|lane| {
            let is_old = lane.oldest_ms.is_some_and(|age| age > OLD_MS);
            let style = if is_old { view.paint(Color::Yellow) } else { Style::new() };
            Row::new([plain(&lane.stream), lane.depth.to_string(), ago(lane.oldest_ms)])
                .style(style)
        })
        .collect();
    let widths = [Constraint::Length(34), Constraint::Length(10), Constraint::Fill(1)];
    let table = Table::new(rows, widths)
        .header(
            Row::new(["streams", "backlog", "oldest unacknowledged"])
                .style(view.title(Pane::Streams)),
        )
        .row_highlight_style(view.cursor(Pane::Streams));
    frame.render_stateful_widget(table, area, &mut view.streams);
}

fn draw_seeds(frame: &mut Frame<'_>, area: Rect, view: &mut View, picture: &Picture) {
    let Some(run) = picture.board.as_ref().and_then(|board| board.run.as_ref()) else { return };
    let rows: Vec<Row<'_>> = run
        .seeds
        .iter()
        .map(|seed| {
            Row::new([
                plain(&seed.id),
                plain(&seed.stage),
                seed.alpha.map_or("-".to_owned(), |alpha| format!("{:.0} %", alpha * 100.0)),
                plain(seed.blueprint.as_deref().unwrap_or("-")),
            ])
        })
        .collect();
    let heard = ago(Some(view.taken_ms.saturating_sub(run.last_ms)));
    let title = format!("seeds of {} (epoch {}, {heard} ago)", plain(&run.id), run.epoch);
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(14),
        Constraint::Length(7),
        Constraint::Length(12),
    ];
    let table = Table::new(rows, widths)
        .header(
            Row::new([title, "stage".to_owned(), "share".to_owned(), "blueprint".to_owned()])
                .style(view.title(Pane::Seeds)),
        )
        .row_highlight_style(view.cursor(Pane::Seeds));
    frame.render_stateful_widget(table, area, &mut view.seeds);
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let line = match (&view.confirm, &view.said) {
        (Some((name, wish)), _) => {
            let deed = match wish {
                Wish::Restart => "restart",
                Wish::Park => "park",
            };
            Line::styled(
                format!("{deed} {}? y: yes, any other key: no", plain(name)),
                view.paint(Color::Yellow),
            )
        }
        (None, Some(said)) => Line::styled(plain(said), view.paint(Color::Cyan)),
        (None, None) => {
            Line::from("q quit  Tab/arrows select  r restart  p park  space pause  ? help")
        }
    };
    frame.render_widget(Paragraph::new(line), area);
}

const HELP: [&str; 13] = [
    "weatherlight top",
    "",
    "q, Esc        quit",
    "Tab           next table",
    "arrows, j k   move the cursor",
    "r             restart the worker",
    "p             park the worker",
    "space         pause, go on",
    "",
    "* marks critical workers. r and p need",
    "WEATHERLIGHT_HTTP_TOKEN, here and at the",
    "service, and ask before they act.",
    "Any key closes this.",
];

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let width = 42.min(area.width);
    let height = u16::try_from(HELP.len()).unwrap_or(u16::MAX).min(area.height);
    let x = area.x + (area.width - width) / 2;
    let y = area.y + (area.height - height) / 2;
    let middle = Rect { x, y, width, height };
    frame.render_widget(Clear, middle);
    let style = Style::new().add_modifier(Modifier::REVERSED);
    let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(format!(" {line}"))).collect();
    frame.render_widget(Paragraph::new(lines).style(style), middle);
}
