//! `weatherlight train`: a training run against a running service, over Redis.

use indicatif::MultiProgress;
use leyline::ids::RunId;

use super::demo::{conclude, prepare, redis_of, say, train};
use super::failure::Failure;
use super::serve::start_logging;
use super::{Global, on_runtime};
use crate::preflight;
use crate::service::{Trainer, start_trainer};
use crate::settings::EsperSettings;
use crate::supervisor::signals::Signals;
use crate::training::Ask;

pub(super) fn run(global: &Global, ask: &Ask) -> Result<u8, Failure> {
    let resolved = global.load()?;
    redis_of(&resolved.settings)?;
    let screen = MultiProgress::new();
    start_logging(global, &resolved, &screen)?;
    let run = RunId::new(format!("run-{}", uuid::Uuid::now_v7()));
    let prepared = prepare(ask, &resolved.settings, run.clone())?;
    on_runtime(async {
        let signals = Signals::listen().map_err(|error| Failure::software(&error))?;
        check(&resolved.settings).await?;
        let Trainer { handle, opened, run: workers } =
            start_trainer(resolved.settings, run.clone())
                .map_err(|error| Failure::configuration(format!("{error:#}")))?;
        let story = async {
            let told = async {
                let Ok(ports) = opened.await else {
                    let message = "the run did not come up; the log above says why";
                    return Err(Failure::unavailable(message));
                };
                say(&screen, &format!("run {run}: training on {}", prepared.config.source.name()));
                let shown = prepared.clone();
                let outcome = train(prepared, ports, &handle, &screen).await?;
                conclude(global, ask, "train", &shown, &outcome)
            }
            .await;
            handle.finish();
            told
        };
        let both = async {
            let (exit, told) = tokio::join!(workers, story);
            told.map(|()| exit.code())
        };
        tokio::select! {
            ended = both => ended,
            never = signals.forward(&handle) => match never {},
        }
    })?
}

/// The checks of a start, without those of the service's own port and catalogue.
async fn check(settings: &EsperSettings) -> Result<(), Failure> {
    let (mut findings, port) = preflight::check(settings).await;
    drop(port);
    findings.forget("http port");
    findings.forget("catalogue");
    match findings.exit() {
        Some(exit) => {
            Err(Failure::exit(exit, format!("the run cannot start:\n{}", findings.report())))
        }
        None => Ok(()),
    }
}
