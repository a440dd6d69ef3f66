//! `weatherlight serve`: the service alone, until it is told to stop.

use indicatif::MultiProgress;

use super::failure::Failure;
use super::{Global, on_runtime};
use crate::logging::{self, LogFormat, LogLevel};
use crate::preflight::{self, Port};
use crate::service::{self, Starting};
use crate::settings::{Reload as When, Resolved};
use crate::supervisor::signals::Signals;
use crate::supervisor::{Reload, panics};

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
    let settings = resolved.settings.clone();
    let reload = reload(global.clone(), resolved, level);
    let service = service::start(Starting { settings, listener, reload, trainer: None })
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

/// What SIGHUP does: reads all settings again, puts into force what can be, and says per changed
/// setting what became of it. Invalid settings change nothing.
pub(super) fn reload(global: Global, mut before: Resolved, level: LogLevel) -> Reload {
    Box::new(move || {
        let now = match global.load() {
            Ok(now) => now,
            Err(failure) => {
                tracing::error!(%failure, "settings not reloaded, the old ones stay");
                return;
            }
        };
        for (old, new) in before.in_force.iter().zip(&now.in_force) {
            if old.value == new.value {
                continue;
            }
            let setting = new.definition.env;
            match new.definition.reload {
                When::Live => tracing::info!(setting, value = new.shown, "setting took effect"),
                When::Restart => tracing::warn!(setting, "changed setting needs a restart"),
                When::Never => tracing::warn!(setting, "changed setting has no effect"),
            }
        }
        if let Err(error) = level.set(&now.settings.log_level) {
            tracing::error!(%error, "log level not changed");
        }
        tracing::info!("settings reloaded");
        before = now;
    })
}
