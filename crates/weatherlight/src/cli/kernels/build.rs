//! `weatherlight kernels build`: compiling into the library, by the forge itself. It takes the same locks, writes the
//! same records and uses the same queue as a service's forge, so that both may run at once.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use karn::{Blueprint, Catalogue, Site};
use leyline::ids::BlueprintId;
use serde_json::{Value, json};
use tezzeret::{Brought, Desk, Forge, Handle, How, Job, OrderError, Strategy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::failure::Failure;
use super::super::{block_on, table};
use super::open;
use crate::blueprints::Blueprints;
use crate::service::AllMetrics;
use crate::settings::EsperSettings;
use crate::supervisor::{Exit, chain};
use crate::wiring;

/// Exit code of a command that Ctrl-C ended: 128 and the number of `SIGINT`.
const INTERRUPTED: u8 = 130;

/// Shown below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  weatherlight kernels build                      every blueprint that can be grafted
  weatherlight kernels build BP009 BP010 --jobs 1
  weatherlight kernels build BP009 --parameters depth=4 --site vector[64]
  weatherlight kernels build BP009 --detach       leave it to the service on this library

Exit codes: 0 all are in the library (or queued, with --detach), 2 the command line cannot be read, 69 library
or queue cannot be used, 70 a blueprint was given up, 78 no such blueprint, parameter or site, or they do not fit, 130 Ctrl-C.";

#[derive(Debug, Args)]
pub struct Options {
    /// Ids of blueprints [default: every one that can be grafted]
    #[arg(value_name = "BLUEPRINT")]
    blueprints: Vec<String>,
    /// Set a parameter; may be repeated. Those not set take the middle of their interval
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',')]
    parameters: Vec<String>,
    /// Activation it is built for: vector[64], image[8x16x16], sequence[12x64] [default: the forge's]
    #[arg(long, value_name = "SITE")]
    site: Option<Site>,
    /// Time for each: standard, conservative or emergency [default: TEZZERET_STRATEGY]
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<Strategy>,
    /// How many at a time [default: TEZZERET_JOBS_MAX]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Queue the jobs for the service on this library, running now or later, and end
    #[arg(long)]
    detach: bool,
}

pub(super) fn run(
    settings: &EsperSettings,
    options: &Options,
    as_json: bool,
) -> Result<u8, Failure> {
    let blueprints =
        Blueprints::load(settings).map_err(|faults| Failure::configuration(faults.to_string()))?;
    let mut config = blueprints.forge(wiring::forge_config(settings));
    config.jobs_max = options.jobs.map_or(config.jobs_max, usize::from);
    config.strategy = options.strategy.unwrap_or(config.strategy);
    let jobs = jobs(options, &config)?;
    if options.detach {
        return detach(settings, &jobs, &config, as_json);
    }
    block_on(build(settings, jobs, config, as_json))?
}

/// The jobs that were asked for.
fn jobs(options: &Options, config: &tezzeret::Config) -> Result<Vec<Job>, Failure> {
    let mut given = Vec::new();
    for text in &options.parameters {
        let value = text.split_once('=').and_then(|(name, value)| {
            Some((name.trim().to_owned(), value.trim().parse::<f64>().ok()?))
        });
        given.push(value.ok_or_else(|| {
            Failure::configuration(format!(
                "{text:?} is no parameter; write NAME=VALUE with a number"
            ))
        })?);
    }
    let job = |blueprint: &'static Blueprint| {
        let mut parameters = blueprint.midpoints();
        given.iter().for_each(|(name, value)| parameters.insert(name.clone(), *value));
        let site = options.site.unwrap_or(config.site);
        let job = Job::with(blueprint, parameters, site, config)
            .map_err(|fault| Failure::configuration(fault.to_string()))?;
        // What cannot be built would wait in the queue to fail there for good.
        fits(&job)?;
        Ok(job)
    };
    select(&options.blueprints, &config.catalogue)?.into_iter().map(job).collect()
}

fn fits(job: &Job) -> Result<(), Failure> {
    let blueprint = job.blueprint();
    if !blueprint.graftable() {
        let id = blueprint.id();
        return Err(Failure::configuration(format!(
            "{id} is built in quarantine only; `weatherlight kernels quarantine {id}` tries it"
        )));
    }
    let checked = karn::check(blueprint, job.parameters(), job.site());
    checked.map(drop).map_err(|fault| Failure::configuration(fault.full_text()))
}

fn select(names: &[String], catalogue: &Catalogue) -> Result<Vec<&'static Blueprint>, Failure> {
    if names.is_empty() {
        return Ok(catalogue.served().collect());
    }
    let find = |name: &String| {
        let known = |name: &str| catalogue.find(&BlueprintId::from(name));
        known(name).or_else(|| known(&name.to_ascii_uppercase())).ok_or_else(|| {
            Failure::configuration(format!(
                "there is no blueprint {name}; `weatherlight blueprints list` names them"
            ))
        })
    };
    names.iter().map(find).collect()
}

fn detach(
    settings: &EsperSettings,
    jobs: &[Job],
    config: &tezzeret::Config,
    as_json: bool,
) -> Result<u8, Failure> {
    let dir = wiring::queue_dir(settings);
    tezzeret::detach(&dir, jobs, config).map_err(|error| Failure::unavailable_because(&error))?;
    if as_json {
        let queued = jobs.iter().map(|job| {
            let mut about = about(job);
            about["outcome"] = "queued".into();
            about
        });
        table::print_json(&queued.collect::<Vec<Value>>());
    } else {
        for job in jobs {
            table::print(&format!("{} queued", name(job)));
        }
        let dir = dir.display();
        table::print(&format!("queued in {dir}: a service on this library takes them up"));
    }
    Ok(0)
}

async fn build(
    settings: &EsperSettings,
    jobs: Vec<Job>,
    config: tezzeret::Config,
    as_json: bool,
) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let (desk, _, handle) = Desk::open();
    let (metrics, _) = AllMetrics::register();
    let forge = Forge {
        config,
        library: library.clone(),
        bus: None,
        queue_dir: wiring::queue_dir(settings),
        desk,
        metrics: metrics.tezzeret,
        heartbeat: oona::Heartbeat::detached(),
    };
    let (stop, interrupt) = (CancellationToken::new(), CancellationToken::new());
    let ordering = async {
        let summary = order(&handle, jobs, &interrupt, as_json).await;
        stop.cancel();
        summary
    };
    let forging = async {
        let ended = forge.run_orders(stop.clone()).await;
        // One that could not begin answers no order.
        interrupt.cancel();
        ended
    };
    let (ended, summary) = tokio::join!(forging, ordering);
    library.close().await;
    ended.map_err(|error| Failure::unavailable_because(&error))?;
    Ok(summary.exit(as_json))
}

/// How each job ended.
#[derive(Debug, Default)]
struct Summary {
    told: Vec<Value>,
    failed: usize,
    left: Vec<String>,
}

impl Summary {
    fn exit(self, as_json: bool) -> u8 {
        if as_json {
            table::print_json(&self.told);
        }
        if !self.left.is_empty() {
            if !as_json {
                let (count, names) = (self.left.len(), self.left.join(" "));
                table::print(&format!("stopped; {count} left: {names}"));
            }
            return INTERRUPTED;
        }
        if self.failed > 0 { Exit::Software.code() } else { 0 }
    }
}

/// Orders every job and shows how it ends, until all have, or Ctrl-C.
async fn order(
    handle: &Handle,
    jobs: Vec<Job>,
    interrupt: &CancellationToken,
    as_json: bool,
) -> Summary {
    let bar = bar(jobs.len(), as_json);
    let mut summary = Summary::default();
    let mut left: Vec<String> = jobs.iter().map(name).collect();
    let mut orders: FuturesUnordered<_> =
        jobs.into_iter().map(|job| async move { (job.clone(), handle.bring(job).await) }).collect();
    let mut progress = handle.progress();
    loop {
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => break,
            () = interrupt.cancelled() => break,
            Some((job, outcome)) = orders.next() => {
                left.retain(|one| *one != name(&job));
                tell(&job, outcome, &bar, as_json, &mut summary);
                bar.inc(1);
                if left.is_empty() {
                    break;
                }
            }
            Ok(()) = progress.changed() => show(&bar, &mut progress),
            else => break,
        }
    }
    bar.finish_and_clear();
    summary.left.extend(left);
    summary
}

fn bar(len: usize, as_json: bool) -> ProgressBar {
    if as_json || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(len as u64);
    let style = ProgressStyle::with_template(
        "{prefix} {bar:30.cyan/dim} {pos}/{len} {elapsed:.dim} {msg:.dim}",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix("compiling");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn show(bar: &ProgressBar, progress: &mut watch::Receiver<tezzeret::Progress>) {
    let now = progress.borrow_and_update();
    let current: Vec<&str> = now.current.iter().map(BlueprintId::as_str).collect();
    bar.set_message(current.join(" "));
}

fn tell(
    job: &Job,
    outcome: Result<Brought, OrderError>,
    bar: &ProgressBar,
    as_json: bool,
    summary: &mut Summary,
) {
    let mut about = about(job);
    let line = match outcome {
        Ok(Brought { record, how }) => {
            about["checksum"] = record.digest.to_hex().into();
            about["strategy"] = record.strategy.clone().into();
            match how {
                How::Found => {
                    about["outcome"] = "found".into();
                    "was there".to_owned()
                }
                How::Compiled => {
                    about["outcome"] = "compiled".into();
                    about["compile_ms"] = record.compile_ms.into();
                    about["prewarm_p50_ms"] = record.prewarm.p50_ms().into();
                    format!("compiled in {:.1} ms", record.compile_ms)
                }
            }
        }
        Err(OrderError::Stopped) => {
            summary.left.push(name(job));
            return;
        }
        Err(error) => {
            summary.failed += 1;
            let error = chain(&error);
            about["outcome"] = "failed".into();
            about["error"] = error.clone().into();
            format!("FAILED: {error}")
        }
    };
    summary.told.push(about);
    if !as_json {
        // The bar makes way for the line.
        bar.suspend(|| table::print(&format!("{} {line}", name(job))));
    }
}

/// How a job is called: its blueprint.
fn name(job: &Job) -> String {
    job.blueprint().id().to_string()
}

fn about(job: &Job) -> Value {
    let parameters: serde_json::Map<String, Value> =
        job.parameters().iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({
        "blueprint_id": job.blueprint().id().as_str(),
        "site": job.site().to_string(),
        "parameters": parameters,
    })
}
