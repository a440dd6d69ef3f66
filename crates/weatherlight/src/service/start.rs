//! The boot: the endpoint first, then the bus, the library and everything on them.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use nissa::{HttpConfig, Token, WorkerControl};
use oona::Bus;
use tokio::sync::{oneshot, watch};

use super::boot_table::{self, Endpoint};
use super::emergency::EmergencyPicture;
use super::metrics::AllMetrics;
use super::parts::{ForgePorts, Parts, open_bus, open_library, open_policies};
use crate::settings::EsperSettings;
use crate::supervisor::{
    Boot, BootFailure, BusPicture, Exit, Handle, Identity, Reload, RestartPolicy, Row, Setup,
    Supervisor,
};
use crate::wiring;

/// How long the log may take to become durable at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a service is started with.
pub struct Starting {
    /// Settings that passed every check.
    pub settings: EsperSettings,
    /// Where the endpoint listens: bound by the preflight.
    pub listener: TcpListener,
    /// What SIGHUP does.
    pub reload: Reload,
}

/// A service that was put together; it lives while [`Service::run`] is awaited.
pub struct Service {
    /// The asking end.
    pub handle: Handle,
    /// Where the endpoint listens.
    pub address: SocketAddr,
    /// What was opened, once it is; nothing comes when the boot fails.
    pub parts: oneshot::Receiver<Parts>,
    /// Runs the service to its end.
    pub run: Pin<Box<dyn Future<Output = Exit> + Send>>,
}

/// Puts a service together. Opens nothing: that is the boot's, under supervision.
///
/// # Errors
/// When the listener or the token cannot be used.
pub fn start(starting: Starting) -> anyhow::Result<Service> {
    let Starting { settings, listener, reload } = starting;
    let address = listener.local_addr()?;
    let settings = Arc::new(settings);
    let (metrics, registry) = AllMetrics::register();
    let (board, board_source) = nissa::channel(&wiring::ingest_config(&settings));
    let (control, requests) = WorkerControl::channel();
    let bus_picture = watch::Sender::new(BusPicture::default());

    let (supervisor, handle) = Supervisor::new(Setup {
        policy: RestartPolicy::default(),
        drain_timeout: settings.drain_timeout,
        identity: Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log: if settings.redis_url.is_some() { "redis" } else { "embedded" }.to_owned(),
        },
        control: requests,
        bus: bus_picture.subscribe(),
        reload,
    });
    let token = settings.http_token.as_ref().map(|token| Token::new(token.expose())).transpose()?;
    let endpoint = Endpoint {
        listener,
        config: Arc::new(HttpConfig { token, ..HttpConfig::default() }),
        health: handle.health(),
        board: board_source,
        registry,
        control,
        metrics: metrics.nissa.clone(),
    };
    let first = vec![boot_table::http(&settings, endpoint)];

    let (bus_sender, opened_bus) = oneshot::channel();
    let (parts_sender, parts) = oneshot::channel();
    let foundation = Foundation {
        settings,
        metrics,
        health: handle.health(),
        bus_picture,
        board,
        opened: bus_sender,
    };
    let boot: Boot = Box::pin(boot(foundation, parts_sender));
    let run = Box::pin(run(supervisor, first, boot, opened_bus));
    Ok(Service { handle, address, parts, run })
}

/// What exists before anything is opened.
struct Foundation {
    settings: Arc<EsperSettings>,
    metrics: AllMetrics,
    health: nissa::HealthSource,
    bus_picture: watch::Sender<BusPicture>,
    board: nissa::BoardSink,
    opened: oneshot::Sender<Bus>,
}

async fn boot(
    foundation: Foundation,
    opened: oneshot::Sender<Parts>,
) -> Result<Vec<Row>, BootFailure> {
    let Foundation { settings, metrics, health, bus_picture, board, opened: opened_bus } =
        foundation;
    let bus = open_bus(&settings, &metrics).await?;
    // Nobody waits for it any more only when the service has ended.
    let _ = opened_bus.send(bus.clone());
    let library = open_library(&settings, &metrics).await?;
    let policies = open_policies(wiring::policy_config(&settings)).await?;
    let parts = Parts {
        settings,
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
    let rows = boot_table::rows(&parts);
    // A plain service needs the parts nowhere else.
    let _ = opened.send(parts);
    Ok(rows)
}

async fn run(
    supervisor: Supervisor,
    first: Vec<Row>,
    boot: Boot,
    mut bus: oneshot::Receiver<Bus>,
) -> Exit {
    let exit = supervisor.run(first, boot).await;
    if let Ok(bus) = bus.try_recv() {
        match tokio::time::timeout(FLUSH_TIMEOUT, bus.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not flushed"),
            Err(_) => tracing::warn!("the log was not flushed in time"),
        }
    }
    tracing::info!(code = exit.code(), "service has stopped");
    exit
}
