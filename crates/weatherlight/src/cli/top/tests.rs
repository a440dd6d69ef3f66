//! The screen at several sizes, and what keys do.

use nissa::{Health, LaneHealth, ProcessPhase, SystemMode, WorkerHealth, WorkerState};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::*;
use crate::cli::picture::{Alert, Artifacts, Board, Figures, Run, Seed};

const ADDRESS: &str = "127.0.0.1:9100";

fn picture() -> Picture {
    let mut workers: Vec<WorkerHealth> = (0..14)
        .map(|number| WorkerHealth {
            heartbeat_age_ms: Some(300),
            last_phase: Some("wait".to_owned()),
            ..WorkerHealth::new(format!("crate.duty{number}"), WorkerState::Running)
        })
        .collect();
    workers[0].critical = true;
    workers[1].state = WorkerState::Parked;
    workers[1].last_error = Some("panicked: boom\u{1b}[2J".to_owned());
    let lane =
        |stream: &str, depth, oldest_ms| LaneHealth { stream: stream.to_owned(), depth, oldest_ms };
    let health = Health {
        system_mode: SystemMode::Degraded,
        lost: vec!["kernels are not compiled".to_owned()],
        phase: ProcessPhase::Running,
        ready: true,
        reasons: Vec::new(),
        uptime_s: 125.0,
        workers,
        lanes: vec![
            lane("oona.emergency", 0, None),
            lane("oona.kernels.requests", 7, Some(12_000)),
        ],
        ..Health::booting("1.2.3", "redis")
    };
    let seed = Seed {
        id: "seed-1".to_owned(),
        stage: "blending".to_owned(),
        alpha: Some(0.25),
        blueprint: Some("BP007".to_owned()),
    };
    let run = Run {
        id: "run-9".to_owned(),
        epoch: 4,
        last_ms: 98_000,
        seeds: vec![seed],
        ..Run::default()
    };
    let mut board = Board { run: Some(run), ..Board::default() };
    board.alerts.active.push(Alert {
        rule: "oona_queue_depth".to_owned(),
        source: "oona".to_owned(),
        since_ms: 40_000,
        ..Alert::default()
    });
    Picture {
        health,
        board: Some(board),
        figures: Some(Figures { published: 10.0, handled: 20.0, ..Figures::default() }),
        artifacts: Some(Artifacts { files: 50, bytes: 1 << 20 }),
    }
}

fn view() -> View {
    let mut view = View::new(ADDRESS.parse().unwrap(), false);
    view.take(Instant::now(), 100_000, Ok(picture()));
    view
}

fn press(view: &mut View, code: KeyCode) -> Deed {
    view.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn everything_fits_on_80_by_24() {
    let shown = text(&mut view(), 80, 24);
    for words in [
        "Weatherlight 1.2.3  degraded  running, ready  up 2 min  log redis",
        "published -/s",
        "lost: kernels are not compiled",
        "ALERT oona_queue_depth of oona for 60 s",
        "*crate.duty0",
        "parked",
        "panicked: boom",
        "oona.kernels.requests              7          12 s",
        "50 on disk (1024 KiB)",
        "seeds of run-9 (epoch 4, 2.0 s ago)",
        "blending",
        "25 %",
        "q quit",
    ] {
        assert!(shown.contains(words), "{words} in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "what workers say does not move the cursor");
    assert!(shown.lines().count() <= 24 && shown.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn a_small_terminal_shows_the_workers_first_and_a_tiny_one_breaks_nothing() {
    let shown = text(&mut view(), 60, 7);
    assert!(shown.contains("Weatherlight") && shown.contains("crate.duty0"), "{shown}");
    for (width, height) in [(1, 1), (2, 3), (10, 2), (200, 1), (3, 60), (400, 100), (80, 5)] {
        let mut view = view();
        let _ = text(&mut view, width, height);
        view.help = true;
        let _ = text(&mut view, width, height);
        let mut empty = View::new(ADDRESS.parse().unwrap(), true);
        let _ = text(&mut empty, width, height);
    }
    assert!(text(&mut view(), 200, 60).contains("crate.duty13"), "a large one shows all");
}

#[test]
fn a_service_that_goes_away_is_told_and_the_last_picture_stays() {
    let begin = Instant::now();
    let mut view = View::new(ADDRESS.parse().unwrap(), false);
    view.take(begin, 0, Err(Failure::unavailable("nobody listens")));
    let shown = text(&mut view, 80, 24);
    assert!(shown.contains("asking 127.0.0.1:9100") && shown.contains("nobody listens"), "{shown}");
    view.take(begin, 100_000, Ok(picture()));
    view.take(begin + Duration::from_secs(9), 0, Err(Failure::unavailable("nobody listens")));
    let shown = text(&mut view, 120, 24);
    assert!(shown.contains("NO ANSWER for 9 s") && shown.contains("crate.duty0"), "{shown}");
    view.take(begin + Duration::from_secs(10), 100_000, Ok(picture()));
    assert!(!text(&mut view, 120, 24).contains("NO ANSWER"));
}

#[test]
fn rates_are_differences_and_a_restarted_service_has_none() {
    let begin = Instant::now();
    let mut view = View::new(ADDRESS.parse().unwrap(), false);
    let mut at = |seconds, published| {
        let mut picture = picture();
        picture.figures = Some(Figures { published, ..Figures::default() });
        view.take(begin + Duration::from_secs(seconds), 0, Ok(picture));
        view.rates.map(|rates| rates.published)
    };
    assert_eq!(at(0, 100.0), None);
    assert_eq!(at(2, 150.0), Some(25.0));
    assert_eq!(at(3, 3.0), None, "its counters began anew");
    assert_eq!(at(4, 4.0), Some(1.0));
}

#[test]
fn a_change_is_asked_about_before_it_is_made() {
    let mut view = view();
    assert_eq!(press(&mut view, KeyCode::Down), Deed::Nothing);
    assert_eq!(press(&mut view, KeyCode::Char('r')), Deed::Nothing);
    assert!(text(&mut view, 80, 24).contains("restart crate.duty1? y: yes"));
    assert_eq!(press(&mut view, KeyCode::Char('n')), Deed::Nothing);
    press(&mut view, KeyCode::Char('p'));
    let deed = press(&mut view, KeyCode::Char('y'));
    assert_eq!(deed, Deed::Change("crate.duty1".to_owned(), Wish::Park));
    view.changed("crate.duty1", Wish::Park, Err(Failure::unavailable("no token")));
    assert!(text(&mut view, 80, 24).contains("no token"));
    press(&mut view, KeyCode::Tab);
    press(&mut view, KeyCode::Char('r'));
    assert!(view.confirm.is_none(), "only workers are restarted");
}

#[test]
fn keys_move_pause_help_and_end() {
    let mut view = view();
    press(&mut view, KeyCode::End);
    assert_eq!(view.workers.selected(), Some(13));
    press(&mut view, KeyCode::Down);
    assert_eq!(view.workers.selected(), Some(13));
    press(&mut view, KeyCode::Home);
    press(&mut view, KeyCode::Up);
    assert_eq!(view.workers.selected(), Some(0));
    press(&mut view, KeyCode::Char('?'));
    assert!(text(&mut view, 80, 24).contains("Any key closes this."));
    press(&mut view, KeyCode::Char('x'));
    assert!(!view.help);
    assert_eq!(press(&mut view, KeyCode::Char(' ')), Deed::Nothing);
    assert!(view.is_paused() && text(&mut view, 80, 24).contains("PAUSED"));
    assert_eq!(press(&mut view, KeyCode::Char(' ')), Deed::Look);
    assert_eq!(press(&mut view, KeyCode::Char('q')), Deed::Quit);
    assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Deed::Quit);
}

#[test]
fn fewer_rows_than_before_keep_the_cursor_inside() {
    let mut view = view();
    press(&mut view, KeyCode::End);
    let mut fewer = picture();
    fewer.health.workers.truncate(2);
    view.take(Instant::now(), 0, Ok(fewer));
    assert_eq!(view.workers.selected(), Some(1));
}

#[test]
fn without_colours_no_cell_has_one() {
    let colours = |colour: bool| {
        let mut view = View::new(ADDRESS.parse().unwrap(), colour);
        view.take(Instant::now(), 100_000, Ok(picture()));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| screen::draw(frame, &mut view)).unwrap();
        let cells = terminal.backend().buffer().content();
        cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(colours(true) && !colours(false));
}
