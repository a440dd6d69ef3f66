//! Logs: one line per event on standard error; text on a terminal, JSON otherwise. The level can
//! be changed while the service runs.

use std::io::{self, IsTerminal as _, Write};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

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

/// Starts logging. Lines appear above the bars of `screen`, where there are any.
///
/// # Errors
/// When the filter cannot be read, or logging was started before.
pub fn start(filter: &str, format: LogFormat, screen: &MultiProgress) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let writer = AboveBars(screen.clone());
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = if format.is_json() {
        layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        layer.with_ansi(io::stderr().is_terminal()).with_target(true).compact().boxed()
    };
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    Ok(LogLevel(handle))
}

/// Writes whole lines to standard error while the progress bars step aside.
#[derive(Clone)]
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

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
