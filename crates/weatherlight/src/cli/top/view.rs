//! What `top` shows and what keys do to it. No terminal, no clock, no I/O.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

use crate::cli::asking::Wish;
use crate::cli::failure::Failure;
use crate::cli::picture::{Figures, Picture};

/// Looks closer together than this say nothing about a rate.
const RATE_SPAN_MIN: Duration = Duration::from_millis(100);

/// What a key asks for beyond the screen itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// Nothing.
    Nothing,
    /// The end.
    Quit,
    /// A look at the service now.
    Look,
    /// A change of a worker.
    Change(String, Wish),
}

/// Which table the arrow keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pane {
    Workers,
    Streams,
    Seeds,
}

/// Messages per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) published: f64,
    pub(super) handled: f64,
    pub(super) refused: f64,
}

/// Everything that is drawn.
#[derive(Debug)]
pub(super) struct View {
    pub(super) address: SocketAddr,
    pub(super) colour: bool,
    pub(super) picture: Option<Picture>,
    /// When that was taken, Unix milliseconds.
    pub(super) taken_ms: u64,
    pub(super) rates: Option<Rates>,
    /// Why the newest look failed.
    pub(super) gone: Option<String>,
    /// How long the service has not answered.
    pub(super) gone_for: Duration,
    pub(super) pane: Pane,
    pub(super) workers: TableState,
    pub(super) streams: TableState,
    pub(super) seeds: TableState,
    /// What an operator is asked to confirm.
    pub(super) confirm: Option<(String, Wish)>,
    /// What became of the last change.
    pub(super) said: Option<String>,
    pub(super) help: bool,
    paused: bool,
    answered_at: Option<Instant>,
    began_at: Option<Instant>,
    figures: Option<(Instant, Figures)>,
}

impl View {
    pub(super) fn new(address: SocketAddr, colour: bool) -> Self {
        Self {
            address,
            colour,
            picture: None,
            taken_ms: 0,
            rates: None,
            gone: None,
            gone_for: Duration::ZERO,
            pane: Pane::Workers,
            workers: TableState::default().with_selected(Some(0)),
            streams: TableState::default().with_selected(Some(0)),
            seeds: TableState::default().with_selected(Some(0)),
            confirm: None,
            said: None,
            help: false,
            paused: false,
            answered_at: None,
            began_at: None,
            figures: None,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// The time goes on.
    pub(super) fn now(&mut self, at: Instant) {
        let began = *self.began_at.get_or_insert(at);
        self.gone_for = at.saturating_duration_since(self.answered_at.unwrap_or(began));
    }

    /// A look at the service has ended.
    pub(super) fn take(&mut self, at: Instant, unix_ms: u64, taken: Result<Picture, Failure>) {
        match taken {
            Ok(picture) => {
                self.rates = self.rate(at, picture.figures);
                self.figures = picture.figures.map(|figures| (at, figures));
                self.gone = None;
                self.answered_at = Some(at);
                self.taken_ms = unix_ms;
                self.picture = Some(picture);
                self.keep_selected_inside();
            }
            Err(failure) => {
                self.gone = Some(failure.to_string());
                // What was counted before says nothing about the service that comes back.
                self.rates = None;
                self.figures = None;
            }
        }
        self.now(at);
    }

    fn rate(&self, at: Instant, figures: Option<Figures>) -> Option<Rates> {
        let (before_at, before) = self.figures?;
        let now = figures?;
        let span = at.saturating_duration_since(before_at);
        let is_restarted = now.published < before.published || now.handled < before.handled;
        if span < RATE_SPAN_MIN || is_restarted {
            return None;
        }
        let per_second = |now: f64, before: f64| ((now - before) / span.as_secs_f64()).max(0.0);
        Some(Rates {
            published: per_second(now.published, before.published),
            handled: per_second(now.handled, before.handled),
            refused: per_second(now.refused, before.refused),
        })
    }

    /// A change has ended.
    pub(super) fn changed(&mut self, name: &str, wish: Wish, done: Result<(), Failure>) {
        self.said = Some(match (done, wish) {
            (Ok(()), Wish::Restart) => format!("{name} restarts"),
            (Ok(()), Wish::Park) => format!("{name} is parked"),
            (Err(failure), _) => failure.to_string(),
        });
    }

    pub(super) fn say(&mut self, line: &str) {
        self.said = Some(line.to_owned());
    }

    /// Name of the worker under the cursor.
    fn selected_worker(&self) -> Option<String> {
        let workers = &self.picture.as_ref()?.health.workers;
        Some(workers.get(self.workers.selected()?)?.name.clone())
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Deed {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Deed::Quit;
        }
        if let Some((name, wish)) = self.confirm.take() {
            return match key.code {
                KeyCode::Char('y' | 'Y') => Deed::Change(name, wish),
                _ => {
                    self.say("nothing was changed");
                    Deed::Nothing
                }
            };
        }
        self.said = None;
        if self.help {
            self.help = false;
            return Deed::Nothing;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Deed::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char(' ') => {
                self.paused = !self.paused;
                return if self.paused { Deed::Nothing } else { Deed::Look };
            }
            KeyCode::Tab => self.pane = self.pane.next(),
            KeyCode::BackTab => self.pane = self.pane.next().next(),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(10),
            KeyCode::PageUp => self.step(-10),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Char('r') => self.ask(Wish::Restart),
            KeyCode::Char('p') => self.ask(Wish::Park),
            _ => {}
        }
        Deed::Nothing
    }

    fn ask(&mut self, wish: Wish) {
        match self.selected_worker().filter(|_| self.pane == Pane::Workers) {
            Some(name) => self.confirm = Some((name, wish)),
            None => self.say("select a worker first (Tab, arrows)"),
        }
    }

    fn rows(&self) -> [usize; 3] {
        let Some(picture) = &self.picture else { return [0; 3] };
        let run = picture.board.as_ref().and_then(|board| board.run.as_ref());
        let seeds = run.map_or(0, |run| run.seeds.len());
        [picture.health.workers.len(), picture.health.lanes.len(), seeds]
    }

    fn step(&mut self, by: isize) {
        let [workers, streams, seeds] = self.rows();
        let (state, rows) = match self.pane {
            Pane::Workers => (&mut self.workers, workers),
            Pane::Streams => (&mut self.streams, streams),
            Pane::Seeds => (&mut self.seeds, seeds),
        };
        let at = state.selected().unwrap_or(0);
        state.select(Some(at.saturating_add_signed(by).min(rows.saturating_sub(1))));
    }

    /// Rows may be gone since.
    fn keep_selected_inside(&mut self) {
        let rows = self.rows();
        let states = [&mut self.workers, &mut self.streams, &mut self.seeds];
        for (state, rows) in states.into_iter().zip(rows) {
            let at = state.selected().unwrap_or(0);
            state.select(Some(at.min(rows.saturating_sub(1))));
        }
    }
}

impl Pane {
    fn next(self) -> Self {
        match self {
            Self::Workers => Self::Streams,
            Self::Streams => Self::Seeds,
            Self::Seeds => Self::Workers,
        }
    }
}
