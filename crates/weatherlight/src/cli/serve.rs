//! `weatherlight serve`: the service alone, until it is told to stop.

use std::sync::Arc;

use indicatif::MultiProgress;

use super::failure::Failure;
use super::{Global, on_runtime};
use crate::logging::{self, LogFormat, LogLevel};
use crate::preflight::{self, Port};
use crate::service::reload::Source;
use crate::service::{self, Starting};
use crate::settings::{DEFAULT_FILE, DOTENV_FILE, Resolved};
use crate::supervisor::panics;
use crate::supervisor::signals::Signals;

pub(super) fn run(global: &Global) -> Result<u8, Failure> {
    let resolved = global.load()?;
    let level = start_logging(global, &resolved, &MultiProgress::new())?;
    on_runtime(serve(global, resolved, level))?
}

async fn serve(global: &Global, resolved: Resolved, level: LogLevel) -> Result<u8, Failure> {
    // Listening from here on, so that a signal during the boot is an orderly stop.
    let signals = Signals::listen().map_err(|error| Failure::software(&error))?;
    let (findings, port) = preflight::check(&resolved.settings).await;
    if let Some(exit) = findings.exit() {
        return Err(Failure::exit(
            exit,
            format!("the service cannot start:\n{}", findings.report()),
        ));
    }
    for finding in findings.warnings() {
        tracing::warn!(check = finding.check, remedy = finding.remedy, "{}", finding.message);
    }
    let Port::Bound(listener) = port else {
        return Err(Failure::configuration("the HTTP port is taken"));
    };
    let source = source(global, level, |_| {});
    let service = service::start(Starting { resolved, listener, source, trainer: None })
        .map_err(|error| Failure::configuration(format!("{error:#}")))?;
    tracing::info!(address = %service.address, "page and health are up");
    let handle = service.handle.clone();
    tokio::select! {
        exit = service.run => Ok(exit.code()),
        never = signals.forward(&handle) => match never {},
    }
}

/// Starts logging as the settings and the command line say, and reports what looks like a setting
/// and is none.
pub(super) fn start_logging(
    global: &Global,
    resolved: &Resolved,
    screen: &MultiProgress,
) -> Result<LogLevel, Failure> {
    let settings = &resolved.settings;
    let format = global.log_format.unwrap_or_else(|| LogFormat::from_setting(&settings.log_format));
    let level = logging::start(&settings.log_level, format, screen)
        .map_err(|error| Failure::configuration(format!("{error:#}")))?;
    panics::install_hook();
    for warning in &resolved.warnings {
        tracing::warn!(origin = %warning.origin, "{}", warning.problem);
    }
    Ok(level)
}

/// How the settings of this command are read again; `adapt` does to them what the command did when
/// it started.
pub(super) fn source(
    global: &Global,
    level: LogLevel,
    adapt: impl Fn(&mut Resolved) + Send + Sync + 'static,
) -> Source {
    let reader = global.clone();
    let read = move || {
        let mut resolved = reader.resolve()?;
        adapt(&mut resolved);
        Ok(resolved)
    };
    let file = global.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    Source {
        read: Arc::new(read),
        paths: vec![file, DOTENV_FILE.into()],
        set_log_filter: Box::new(move |filter| level.set(filter)),
    }
}
