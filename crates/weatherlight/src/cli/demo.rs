//! `weatherlight demo`: everything in one process, from the boot to the report.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use indicatif::MultiProgress;
use leyline::ids::RunId;
use nissa::ProcessPhase;
use tokio_util::sync::CancellationToken;
use tolaria::{Checkpoint, Outcome, Prepared, TrainError};

use super::failure::Failure;
use super::serve::{source, start_logging};
use super::{Global, on_runtime, table};
use crate::preflight::{self, Port};
use crate::service::{self, Opened, Service, Starting};
use crate::settings::{EsperSettings, Resolved, SecretText, Value};
use crate::supervisor::signals::Signals;
use crate::supervisor::{Exit, Handle};
use crate::training::{self, Ask};
use crate::wiring;

/// What the demo logs when nobody asked for more: its own lines tell the rest.
const QUIET: &str = "warn";

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    ask: Ask,
    /// Keep the page up afterwards, until Ctrl-C
    #[arg(long)]
    stay: bool,
}

pub(super) fn run(global: &Global, options: &Options) -> Result<u8, Failure> {
    let mut resolved = global.load()?;
    let screen = MultiProgress::new();
    quieten(&mut resolved);
    let level = start_logging(global, &resolved, &screen)?;
    let run = RunId::new(format!("demo-{}", uuid::Uuid::now_v7()));
    let prepared = prepare(&options.ask, &resolved.settings, run.clone())?;
    adapt(&mut resolved, &screen)?;
    let secret = resolved.settings.leyline_secret.clone();
    let source = source(global, level, move |resolved| readapt(resolved, secret.as_ref()));
    on_runtime(async {
        let signals = Signals::listen().map_err(|error| Failure::software(&error))?;
        let listener = preflight(&resolved, &screen).await?;
        let service = service::start(Starting { resolved, listener, source, trainer: Some(run) })
            .map_err(|error| Failure::configuration(format!("{error:#}")))?;
        let handle = service.handle.clone();
        tokio::select! {
            ended = demonstrate(global, options, prepared, service, &screen) => ended,
            never = signals.forward(&handle) => match never {},
        }
    })?
}

/// Reads the data before anything is started: a fault in it is the user's to see first. So is a
/// directory in which the weights could not be kept.
pub(super) fn prepare(
    ask: &Ask,
    settings: &EsperSettings,
    run: RunId,
) -> Result<Prepared, Failure> {
    let config = wiring::training_config(settings, ask.config(run));
    let prepared = Prepared::load(config).map_err(|error| match error {
        TrainError::Data(error) => Failure::data(&error),
        error => Failure::configuration(crate::supervisor::chain(&error)),
    })?;
    if let Some(directory) = &prepared.config.checkpoints {
        fs::create_dir_all(directory).map_err(|error| {
            Failure::configuration(format!(
                "cannot keep weights in {}: {error}; make the directory writable, or set TOLARIA_CHECKPOINT_DIR to another (TOLARIA_CHECKPOINT_EPOCHS=0 keeps none)",
                directory.display()
            ))
        })?;
    }
    Ok(prepared)
}

/// The log stays quiet unless somebody asked for more.
fn quieten(resolved: &mut Resolved) {
    if !resolved.is_given("ESP_LOG_LEVEL") {
        resolved.replace("ESP_LOG_LEVEL", Value::Text(QUIET.to_owned()));
    }
}

/// The same to settings that were read again, without words.
fn readapt(resolved: &mut Resolved, secret: Option<&SecretText>) {
    quieten(resolved);
    resolved.replace("REDIS_URL", Value::Absent);
    if let (None, Some(secret)) = (&resolved.settings.leyline_secret, secret) {
        resolved.replace("ESPER_LEYLINE_SECRET", Value::Secret(secret.clone()));
    }
}

/// The demo needs neither Redis nor a secret, and says what it does instead.
fn adapt(resolved: &mut Resolved, screen: &MultiProgress) -> Result<(), Failure> {
    if resolved.settings.redis_url.is_some() {
        resolved.replace("REDIS_URL", Value::Absent);
        say(screen, "REDIS_URL is set and not used: the demo runs on its own embedded log");
    }
    if resolved.settings.leyline_secret.is_none() {
        let path = resolved.settings.state_dir.join("demo-secret");
        let (secret, is_new) = demo_secret(&path).map_err(|error| {
            Failure::configuration(format!(
                "cannot keep the demo's secret in {}: {error}; make the directory writable, or set ESPER_LEYLINE_SECRET",
                path.display()
            ))
        })?;
        resolved.replace("ESPER_LEYLINE_SECRET", Value::Secret(secret));
        let how = if is_new { "made one" } else { "using the one" };
        say(
            screen,
            &format!("ESPER_LEYLINE_SECRET is not set: {how} for this demo in {}", path.display()),
        );
    }
    Ok(())
}

/// The secret of earlier demos here, so that a restart can read its own log; else a random one,
/// readable by this user alone.
fn demo_secret(path: &Path) -> io::Result<(SecretText, bool)> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok((SecretText::new(&text), false)),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let bytes: [u8; 32] = rand::random();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    Ok((SecretText::new(&text), true))
}

/// The checks of a start; a taken port is no fault here, any free one will do.
async fn preflight(resolved: &Resolved, screen: &MultiProgress) -> Result<TcpListener, Failure> {
    let (mut findings, port) = preflight::check(&resolved.settings).await;
    let listener = match port {
        Port::Bound(listener) => listener,
        Port::Taken => {
            findings.forget("http port");
            let wanted = resolved.settings.http_addr;
            let listener = TcpListener::bind(SocketAddr::new(wanted.ip(), 0)).map_err(|error| {
                Failure::unavailable(format!("no port is free on {}: {error}", wanted.ip()))
            })?;
            say(screen, &format!("{wanted} is taken: the page is on another port"));
            listener
        }
    };
    match findings.exit() {
        Some(exit) => {
            Err(Failure::exit(exit, format!("the demo cannot start:\n{}", findings.report())))
        }
        None => Ok(listener),
    }
}

async fn demonstrate(
    global: &Global,
    options: &Options,
    prepared: Prepared,
    service: Service,
    screen: &MultiProgress,
) -> Result<u8, Failure> {
    let Service { handle, address, opened, run } = service;
    say(screen, &format!("the service boots; its page is http://{address}/"));
    let story = async {
        let told = tell(global, options, prepared, &handle, opened, screen).await;
        if told.is_ok() && options.stay {
            say(screen, &format!("the page stays up at http://{address}/ until Ctrl-C"));
            until_draining(&handle).await;
        }
        handle.finish();
        told
    };
    let (exit, told) = tokio::join!(run, story);
    told.map(|()| exit.code())
}

/// The demo's story: forge, training, tables, report.
async fn tell(
    global: &Global,
    options: &Options,
    prepared: Prepared,
    handle: &Handle,
    opened: tokio::sync::oneshot::Receiver<Opened>,
    screen: &MultiProgress,
) -> Result<(), Failure> {
    let Ok(Opened { parts, trainer: Some(ports) }) = opened.await else {
        return Err(Failure::unavailable("the service did not come up; the log above says why"));
    };
    let kernels = tokio::select! {
        line = training::wait_for_kernels(parts.forge.handle.progress(), screen) => line,
        () = until_draining(handle) => return Err(Failure::unavailable("stopped before training")),
    };
    say(screen, &kernels);
    say(screen, &format!("training on {}", prepared.config.source.name()));
    let shown = prepared.clone();
    let outcome = train(prepared, ports, handle, screen).await?;
    conclude(global, &options.ask, "demo", &shown, &outcome)
}

/// Trains on a thread of its own until it is over or the service stops.
pub(super) async fn train(
    prepared: Prepared,
    ports: crate::service::TrainerPorts,
    handle: &Handle,
    screen: &MultiProgress,
) -> Result<Outcome, Failure> {
    let stop = CancellationToken::new();
    let run = training::start(prepared, ports, stop.clone())
        .map_err(|error| Failure::software(&error))?;
    let watching = async {
        training::follow(run.progress, screen).await;
        std::future::pending::<Infallible>().await
    };
    let stopping = async {
        until_draining(handle).await;
        stop.cancel();
        std::future::pending::<Infallible>().await
    };
    let outcome = tokio::select! {
        outcome = run.outcome => outcome,
        never = watching => match never {},
        never = stopping => match never {},
    };
    match outcome {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(Failure::software(&error)),
        Err(_) => Err(Failure::exit(Exit::Software, "the training thread panicked; see the log")),
    }
}

/// Prints what came out and writes the report.
pub(super) fn conclude(
    global: &Global,
    ask: &Ask,
    command: &str,
    prepared: &Prepared,
    outcome: &Outcome,
) -> Result<(), Failure> {
    let written = training::write_report(ask, command, prepared, outcome);
    let weights = prepared.config.checkpoints.as_deref().map(Checkpoint::path);
    let weights = weights.filter(|path| path.exists());
    if global.json {
        let report = written.is_ok().then_some(ask.report.as_path());
        table::print_json(&training::summary(outcome, report, weights.as_deref()));
    } else {
        training::print(outcome);
    }
    written.map_err(|error| Failure::data(&error))?;
    if !global.json {
        table::print(&format!("report: {}", ask.report.display()));
        if let Some(weights) = weights {
            table::print(&format!("weights: {}", weights.display()));
        }
    }
    Ok(())
}

/// Waits until the service begins to stop.
pub(super) async fn until_draining(handle: &Handle) {
    let mut health = handle.health();
    // An error means that the supervisor is gone altogether.
    let _ = health.wait_for(|health| health.phase == ProcessPhase::Draining).await;
}

/// A line for people, above the bars.
pub(super) fn say(screen: &MultiProgress, line: &str) {
    screen.suspend(|| eprintln!("{line}"));
}

/// Whether the settings name what a run over Redis needs.
pub(super) fn redis_of(settings: &EsperSettings) -> Result<(), Failure> {
    if settings.redis_url.is_some() {
        return Ok(());
    }
    Err(Failure::configuration(
        "training against a running service needs the Redis that both speak over: set REDIS_URL (`weatherlight demo` needs no server)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_demos_secret_is_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("var/demo-secret");
        let (first, is_new) = demo_secret(&path).unwrap();
        assert!(is_new && !first.signing().is_weak());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (second, is_new) = demo_secret(&path).unwrap();
        assert!(!is_new && first == second);
    }
}
