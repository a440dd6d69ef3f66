//! Logs: one line per event on standard error; text on a terminal, JSON otherwise. The level can
//! be changed while the service runs.
//!
//! Reading order: `layer` (from `tracing` to a `record`), `fold` (repetitions become a count),
//! `desk` (the bounded queue and its writer), `form` (the line), `escape` (what text may not do).

mod desk;
mod escape;
mod fold;
mod form;
mod layer;
mod metrics;
mod record;

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::MultiProgress;
use nissa::LogTail;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use desk::{Desk, Form};
use form::Colours;
use layer::LogLayer;
pub use metrics::LogMetrics;

/// How long the end of the process waits for whoever reads the log.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Reads the setting's word; its kind allows no other.
    pub fn from_setting(word: &str) -> Self {
        match word {
            "text" => Self::Text,
            "json" => Self::Json,
            _ => Self::Auto,
        }
    }

    fn is_json(self) -> bool {
        match self {
            Self::Auto => !io::stderr().is_terminal(),
            Self::Text => false,
            Self::Json => true,
        }
    }
}

/// Changes the level of the running process.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Puts another filter into force.
    ///
    /// # Errors
    /// When the filter cannot be read; the old one stays.
    pub fn set(&self, filter: &str) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(filter)?;
        Ok(self.0.reload(filter)?)
    }
}

/// The log of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    desk: Arc<Desk>,
}

impl Logs {
    /// The log that [`start`] began, in a process that has begun one.
    pub fn current() -> Option<Self> {
        tracing::dispatcher::get_default(|dispatch| {
            dispatch.downcast_ref::<LogLayer>().map(|layer| layer.0.clone())
        })
    }

    /// What is counted.
    pub fn metrics(&self) -> LogMetrics {
        self.desk.metrics().clone()
    }

    /// The newest lines.
    pub fn tail(&self) -> LogTail {
        self.desk.tail().clone()
    }
}

/// Writes what was logged so far, counts of repetitions included. Before the process ends, by whatever
/// way: nothing is lost then, unless whoever reads the log has not read for half a second.
pub fn flush() {
    if let Some(logs) = Logs::current() {
        logs.desk.flush(FLUSH_TIMEOUT);
    }
}

/// Starts logging. Lines appear above the bars of `screen`, where there are any.
///
/// # Errors
/// When the filter cannot be read, logging was started before, or there is no thread for it.
pub fn start(filter: &str, format: LogFormat, screen: &MultiProgress) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let form = if format.is_json() { Form::Json } else { Form::Text(colours()) };
    let desk = Arc::new(Desk::new(form, LogMetrics::default(), LogTail::default()));
    let layer = LogLayer(Logs { desk: Arc::clone(&desk) });
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    let mut sink = AboveBars(screen.clone());
    // It lives as long as the process: its last line is the process's last.
    std::thread::Builder::new()
        .name("weatherlight-log".to_owned())
        .spawn(move || desk.write_all(&mut sink))?;
    Ok(LogLevel(handle))
}

/// Colours on a terminal, unless its owner wants none (<https://no-color.org>).
fn colours() -> Colours {
    let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if io::stderr().is_terminal() && !wants_none { Colours::On } else { Colours::Off }
}

/// Writes whole lines to standard error while the progress bars step aside.
struct AboveBars(MultiProgress);

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
