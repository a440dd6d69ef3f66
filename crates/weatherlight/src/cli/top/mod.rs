//! `weatherlight top`: the running service on one terminal screen, once a second.
//!
//! `view` is the state and what keys do to it, `screen` draws it; both are pure. Here are the
//! terminal and the waiting.

mod screen;
mod view;

use std::io::{self, IsTerminal as _};
use std::pin::Pin;
use std::time::{Duration, Instant};

use clap::Args;
use leyline::time::now_unix_ms;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};

use self::view::{Deed, View};
use super::asking::{Wish, change};
use super::failure::Failure;
use super::picture::Picture;
use super::{Global, block_on, table};
use crate::settings::EsperSettings;

/// Between two looks at the service.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at the keyboard: an answer within this feels immediate.
const TICK: Duration = Duration::from_millis(50);
/// What one frame has where no terminal tells its size.
const SIZE_WITHOUT_TERMINAL: (u16, u16) = (100, 48);

#[derive(Debug, Args)]
pub struct Options {
    /// Print one frame as text and end; needs no terminal
    #[arg(long)]
    once: bool,
}

pub(super) fn run(global: &Global, options: &Options) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    if options.once || global.json {
        return once(global, &settings);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "`weatherlight top` needs a terminal; `weatherlight top --once` prints one frame as text, `weatherlight status --json` the same for programs",
        ));
    }
    let mut terminal = ratatui::try_init().map_err(|error| Failure::software(&error))?;
    let shown = block_on(show(&settings, &mut terminal));
    // Nothing can be done about a terminal that does not take this.
    let _ = ratatui::try_restore();
    shown??;
    Ok(0)
}

fn once(global: &Global, settings: &EsperSettings) -> Result<u8, Failure> {
    let picture = block_on(Picture::take(settings))??;
    if global.json {
        table::print_json(&picture);
        return Ok(0);
    }
    let mut view = View::new(settings.http_addr, false);
    view.take(Instant::now(), now_unix_ms(), Ok(picture));
    let size = console::Term::stdout().size_checked().map(|(height, width)| (width, height));
    let (width, height) = size.unwrap_or(SIZE_WITHOUT_TERMINAL);
    let frame = text(&mut view, width, height);
    // A reader of text needs no room between the tables.
    let lines: Vec<&str> = frame.lines().filter(|line| !line.is_empty()).collect();
    table::print(&lines.join("\n"));
    Ok(0)
}

/// One frame as text, without the blanks at the ends of lines.
fn text(view: &mut View, width: u16, height: u16) -> String {
    let drawn = Terminal::new(TestBackend::new(width, height)).and_then(|mut terminal| {
        terminal.draw(|frame| screen::draw(frame, view))?;
        Ok(terminal.backend().to_string())
    });
    let quoted = drawn.unwrap_or_else(|error| match error {});
    let lines = quoted.lines().map(|line| line.trim_matches('"').trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

/// What is under way.
type Asking<T> = Option<Pin<Box<dyn Future<Output = T>>>>;

/// Draws, waits for a key, an answer or the next look, and begins again.
async fn show(
    settings: &EsperSettings,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
    let mut view = View::new(settings.http_addr, colour);
    let mut stop = signal(SignalKind::terminate()).map_err(|error| Failure::software(&error))?;
    let mut looking: Asking<Result<Picture, Failure>> = None;
    let mut changing: Asking<(String, Wish, Result<(), Failure>)> = None;
    let mut next_look = Instant::now();
    loop {
        if looking.is_none() && !view.is_paused() && Instant::now() >= next_look {
            let settings = settings.clone();
            looking = Some(Box::pin(async move { Picture::take(&settings).await }));
            next_look = Instant::now() + INTERVAL;
        }
        view.now(Instant::now());
        terminal
            .draw(|frame| screen::draw(frame, &mut view))
            .map_err(|error| Failure::software(&error))?;
        tokio::select! {
            taken = pending(&mut looking) => view.take(Instant::now(), now_unix_ms(), taken),
            (name, wish, done) = pending(&mut changing) => view.changed(&name, wish, done),
            _ = stop.recv() => return Ok(()),
            () = tokio::time::sleep(TICK) => {}
        }
        while event::poll(Duration::ZERO).map_err(|error| Failure::software(&error))? {
            let happened = event::read().map_err(|error| Failure::software(&error))?;
            let Event::Key(key) = happened else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match view.key(key) {
                Deed::Nothing => {}
                Deed::Quit => return Ok(()),
                Deed::Look => next_look = Instant::now(),
                Deed::Change(name, wish) if changing.is_none() => {
                    let settings = settings.clone();
                    changing = Some(Box::pin(async move {
                        let done = change(&settings, &name, wish).await;
                        (name, wish, done)
                    }));
                }
                Deed::Change(..) => view.say("the change before is still under way"),
            }
        }
    }
}

/// The end of what is under way; never, when nothing is.
async fn pending<T>(asking: &mut Asking<T>) -> T {
    match asking {
        Some(future) => {
            let answer = future.as_mut().await;
            *asking = None;
            answer
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
