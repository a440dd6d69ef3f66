//! The boot: the endpoint first, then the bus, the library and everything on them.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use leyline::ids::RunId;
use nissa::{HttpConfig, ReloadPort, WorkerControl};
use oona::{Bus, BusError};
use tokio::sync::{oneshot, watch};

use super::boot_table::{self, Endpoint};
use super::emergency::EmergencyPicture;
use super::live::{self, InForce, Values};
use super::metrics::AllMetrics;
use super::parts::{
    ForgePorts, OpenError, Parts, open_bus, open_library, open_policies, read_blueprints,
};
use super::reload::{Keeper, Source};
use super::trainer::{self, Attachment, TrainerPorts};
use crate::logging::Logs;
use crate::otlp::Otlp;
use crate::settings::{EsperSettings, Resolved};
use crate::supervisor::{
    Boot, BootFailure, BusPicture, Exit, Handle, Identity, RestartPolicy, Row, Setup, Supervisor,
    Watchdog,
};
use crate::wiring;

/// How long the log may take to be tidied up and become durable at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the catalogue may take to take back its connections at the end.
const LIBRARY_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a service is started with.
pub struct Starting {
    /// Settings that passed every check.
    pub resolved: Resolved,
    /// Where the endpoint listens: bound by the preflight.
    pub listener: TcpListener,
    /// How they are read again.
    pub source: Source,
    /// A training run in this process, as in the demo.
    pub trainer: Option<RunId>,
}

/// What was opened.
#[derive(Debug)]
pub struct Opened {
    /// The service's parts.
    pub parts: Parts,
    /// The ends of the training thread, where there is one.
    pub trainer: Option<TrainerPorts>,
}

/// A service that was put together; it lives while [`Service::run`] is awaited.
pub struct Service {
    /// The asking end.
    pub handle: Handle,
    /// Where the endpoint listens.
    pub address: SocketAddr,
    /// What was opened, once it is; nothing comes when the boot fails.
    pub opened: oneshot::Receiver<Opened>,
    /// Runs the service to its end.
    pub run: Pin<Box<dyn Future<Output = Exit> + Send>>,
}

/// Puts a service together. Opens nothing: that is the boot's, under supervision.
///
/// # Errors
/// When the listener, the secret or the token cannot be used, or the watchdog gets no thread.
pub fn start(starting: Starting) -> anyhow::Result<Service> {
    let Starting { resolved, listener, source, trainer } = starting;
    let address = listener.local_addr()?;
    let settings = Arc::new(resolved.settings.clone());
    let (senders, live) = live::channel(Values::of(&settings)?);
    let (reload, reloads) = ReloadPort::channel();
    let keeper = Keeper::new(source, resolved, senders, reloads);
    let signalled = reload.clone();
    let (metrics, registry) = AllMetrics::register();
    let otlp = Otlp::open(&settings, &registry, &metrics.own.otlp)?;
    let (board, board_source) = nissa::channel(&wiring::ingest_config(&settings));
    let (control, requests) = WorkerControl::channel();
    let bus_picture = watch::Sender::new(BusPicture::default());

    let (watchdog, watched) = Watchdog::start()?;
    let (supervisor, handle) = Supervisor::new(Setup {
        policy: RestartPolicy::default(),
        drain_timeout: settings.drain_timeout,
        identity: Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log: if settings.redis_url.is_some() { "redis" } else { "embedded" }.to_owned(),
        },
        control: requests,
        bus: bus_picture.subscribe(),
        reload: Box::new(move || signalled.nudge()),
        watched,
    });
    let token = live.token.clone().into();
    let kernel_token = match &settings.urza_http_token {
        Some(token) => nissa::Token::new(token.expose()).context("URZA_HTTP_TOKEN")?.into(),
        None => nissa::TokenSource::default(),
    };
    let (shown_bus, bus_source) = watch::channel(None);
    let (shown_library, kernels) = watch::channel(None);
    let endpoint = Endpoint {
        listener,
        config: Arc::new(HttpConfig { token, kernel_token, ..HttpConfig::default() }),
        health: handle.health(),
        logs: Logs::current().map(|logs| logs.tail()).unwrap_or_default(),
        board: board_source,
        bus: bus_source,
        kernels,
        registry,
        control,
        reload,
        metrics: metrics.nissa.clone(),
    };
    let first =
        vec![boot_table::http(&settings, endpoint), boot_table::settings(&settings, keeper)];

    let (bus_sender, opened_bus) = oneshot::channel();
    let (library_sender, opened_library) = oneshot::channel();
    let (sender, opened) = oneshot::channel();
    let foundation = Foundation {
        settings,
        live,
        metrics,
        otlp,
        health: handle.health(),
        bus_picture,
        board,
        trainer,
        shown_bus,
        shown_library,
        opened: bus_sender,
        opened_library: library_sender,
    };
    let trained = foundation.trainer.clone();
    let boot: Boot = Box::pin(boot(foundation, sender));
    let ending = (handle.clone(), watchdog);
    let run = Box::pin(async move {
        let exit = run(supervisor, ending, first, boot, opened_bus, trained).await;
        close_library(opened_library).await;
        exit
    });
    Ok(Service { handle, address, opened, run })
}

/// What exists before anything is opened.
struct Foundation {
    settings: Arc<EsperSettings>,
    live: InForce,
    metrics: AllMetrics,
    otlp: Option<Otlp>,
    health: nissa::HealthSource,
    bus_picture: watch::Sender<BusPicture>,
    board: nissa::BoardSink,
    trainer: Option<RunId>,
    /// Where the endpoint finds the bus.
    shown_bus: watch::Sender<Option<Bus>>,
    /// Where it finds the library.
    shown_library: watch::Sender<Option<urza::Library>>,
    opened: oneshot::Sender<Bus>,
    opened_library: oneshot::Sender<urza::Library>,
}

async fn boot(
    foundation: Foundation,
    opened: oneshot::Sender<Opened>,
) -> Result<Vec<Row>, BootFailure> {
    let Foundation {
        settings,
        live,
        metrics,
        otlp,
        health,
        bus_picture,
        board,
        trainer,
        shown_bus,
        shown_library,
        opened: opened_bus,
        opened_library,
    } = foundation;
    let blueprints = read_blueprints(&settings).await?;
    let tracer = otlp.as_ref().map(Otlp::tracer).unwrap_or_default();
    let bus = open_bus(&settings, live.bus.clone(), &metrics, tracer).await?;
    shown_bus.send_replace(Some(bus.clone()));
    // Nobody waits for it any more only when the service has ended.
    let _ = opened_bus.send(bus.clone());
    let library = open_library(&settings, &metrics).await?;
    shown_library.send_replace(Some(library.clone()));
    // As above.
    let _ = opened_library.send(library.clone());
    let policies = open_policies(wiring::policy_config(&settings)).await?;
    let parts = Parts {
        settings,
        blueprints,
        live,
        metrics,
        health,
        bus_picture,
        emergency: watch::Sender::new(EmergencyPicture::default()),
        board,
        bus,
        library,
        forge: ForgePorts::open(),
        policies,
    };
    let mut rows = boot_table::rows(&parts);
    let trainer = match trainer {
        Some(run) => {
            let (ports, more) = attach_trainer(&parts, run).await?;
            rows.extend(more);
            Some(ports)
        }
        None => {
            let idle = trainer::idle(&parts.settings, &parts.bus, &parts.metrics).await;
            rows.extend(idle.map_err(OpenError::from)?);
            None
        }
    };
    if let Some(otlp) = otlp {
        rows.push(boot_table::otlp(&parts.settings, otlp));
    }
    // A plain service needs the parts nowhere else.
    let _ = opened.send(Opened { parts, trainer });
    Ok(rows)
}

/// The workers of a training run in this process.
async fn attach_trainer(parts: &Parts, run: RunId) -> Result<(TrainerPorts, Vec<Row>), OpenError> {
    let keyring = wiring::keyring(&parts.settings).ok_or(OpenError::NoSecret)?;
    trainer::ensure_groups(&parts.bus, &run).await?;
    let attachment = Attachment {
        run,
        bus: parts.bus.clone(),
        policies: parts.policies.clone(),
        policy_config: parts.blueprints.policy(wiring::policy_config(&parts.settings)),
        blueprints: parts.blueprints.clone(),
        metrics: parts.metrics.clone(),
    };
    Ok(trainer::attach(&parts.settings, keyring, &attachment))
}

pub(super) async fn run(
    supervisor: Supervisor,
    (handle, watchdog): (Handle, Watchdog),
    first: Vec<Row>,
    boot: Boot,
    mut bus: oneshot::Receiver<Bus>,
    trained: Option<RunId>,
) -> Exit {
    let exit = supervisor.run(first, boot).await;
    if let Ok(bus) = bus.try_recv() {
        let closing = tokio::time::timeout(CLOSE_TIMEOUT, close(&bus, trained.as_ref()));
        tokio::select! {
            biased;
            closed = closing => match closed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the log was not left tidy"
                ),
                Err(_) => tracing::warn!("the log was not left tidy in time"),
            },
            () = handle.at_once() => tracing::warn!("the log was not left tidy: stopped at once"),
        }
    }
    tracing::info!(code = exit.code(), "service has stopped");
    drop(watchdog);
    exit
}

/// What was looked up when the stop came gives its connection back while the runtime still turns,
/// not while that is taken down.
async fn close_library(mut opened: oneshot::Receiver<urza::Library>) {
    let Ok(library) = opened.try_recv() else { return };
    if tokio::time::timeout(LIBRARY_CLOSE_TIMEOUT, library.close()).await.is_err() {
        tracing::warn!("the catalogue was not closed in time");
    }
}

/// Removes the groups of a run that is over, so that they hold nothing back, and makes everything
/// durable. Nobody reads any more by now.
async fn close(bus: &Bus, trained: Option<&RunId>) -> Result<(), BusError> {
    // What the log sent on connections that were being closed, others shall have at once as well.
    bus.release_all().await?;
    if let Some(run) = trained {
        trainer::remove_groups(bus, run).await?;
    }
    bus.flush().await
}
