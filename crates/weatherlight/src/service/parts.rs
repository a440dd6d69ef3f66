//! What the workers stand on: opened once, in boot order, and shared by cheap handles.

use std::sync::Arc;
use std::time::Duration;

use oona::{Bus, BusError, Stream, Tracer};
use tokio::sync::watch;

use super::emergency::EmergencyPicture;
use super::live::InForce;
use super::metrics::AllMetrics;
use crate::blueprints::{BlueprintFaults, Blueprints};
use crate::settings::EsperSettings;
use crate::supervisor::{BootFailure, BusPicture, Exit};
use crate::wiring;

/// The service's consumer group.
pub const GROUP: &str = "weatherlight";
/// The streams it reads as that group, in the order in which their groups are made.
const OWN_STREAMS: [Stream; 3] = [Stream::Emergency, Stream::KernelRequests, Stream::Policy];

/// How long files may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a store may take to open that verifies and mends itself first: minutes where it is large.
const STORE_OPEN_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a part could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no secret. The preflight finds it first.
    #[error("there is no secret to sign messages with; set ESPER_LEYLINE_SECRET")]
    NoSecret,
    /// The bus.
    #[error("the message bus does not open")]
    Bus(#[from] BusError),
    /// The users' blueprints, or the approvals.
    #[error(transparent)]
    Blueprints(#[from] BlueprintFaults),
    /// The library's settings. They were checked when they were read.
    #[error("the library's settings cannot be used")]
    LibraryConfig(#[from] urza::ConfigFault),
    /// The library.
    #[error("the artifact library does not open")]
    Library(#[from] urza::OpenError),
    /// The policies on disk.
    #[error("the policies in TAMIYO_POLICY_DIR cannot be used")]
    Policies(#[from] tamiyo::ArchiveError),
    /// The disk does not answer.
    #[error("{what} did not open within {} s; is its disk there?", after.as_secs())]
    TimedOut {
        /// What was being opened.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
}

impl From<OpenError> for BootFailure {
    fn from(error: OpenError) -> Self {
        let exit = match &error {
            OpenError::NoSecret
            | OpenError::Blueprints(_)
            | OpenError::LibraryConfig(_)
            | OpenError::Bus(
                BusError::Config(_)
                | BusError::BadUrl { .. }
                | BusError::UnsupportedUrl { .. }
                | BusError::Certificate { .. }
                | BusError::Durability { .. },
            ) => Exit::Configuration,
            OpenError::Bus(_)
            | OpenError::Library(_)
            | OpenError::Policies(_)
            | OpenError::TimedOut { .. } => Exit::Unavailable,
        };
        Self { exit, error: Box::new(error) }
    }
}

/// Everything that is opened. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The settings in force at the start.
    pub settings: Arc<EsperSettings>,
    /// The blueprints of this process.
    pub blueprints: Blueprints,
    /// What may change while the service runs.
    pub live: InForce,
    /// Every crate's metrics.
    pub metrics: AllMetrics,
    /// The supervisor's picture.
    pub health: nissa::HealthSource,
    /// What the probe sees of the bus.
    pub bus_picture: watch::Sender<BusPicture>,
    /// What is known of emergencies.
    pub emergency: watch::Sender<EmergencyPicture>,
    /// Where the ingest worker publishes.
    pub board: nissa::BoardSink,
    /// The bus.
    pub bus: Bus,
    /// The library.
    pub library: urza::Library,
    /// The forge: where it takes orders in, how the library asks, and how everybody else does.
    pub forge: ForgePorts,
    /// Policies on disk, and the one in force.
    pub policies: tamiyo::PolicyStore,
}

/// The ends of the forge's desk.
#[derive(Debug, Clone)]
pub struct ForgePorts {
    /// The forge's own.
    pub desk: tezzeret::Desk,
    /// The library's, for what is missing.
    pub demand: urza::Demand,
    /// Everybody else's, with the progress.
    pub handle: tezzeret::Handle,
}

impl ForgePorts {
    /// Opens a desk.
    pub fn open() -> Self {
        let (desk, demand, handle) = tezzeret::Desk::open();
        Self { desk, demand, handle }
    }
}

/// Opens the bus and makes the service's groups, so that what is sent from now on is served.
///
/// # Errors
/// [`OpenError`]; a boot fails with the exit that it demands.
pub async fn open_bus(
    settings: &EsperSettings,
    live: oona::Live,
    metrics: &AllMetrics,
    tracer: Tracer,
) -> Result<Bus, OpenError> {
    let bus = Bus::open_live(wiring::bus_config(settings), live, metrics.oona.clone())
        .await?
        .traced(tracer);
    let groups = OWN_STREAMS.map(|stream| (stream, GROUP));
    bus.ensure_groups(&groups).await?;
    tracing::info!(log = ?bus.log_kind(), "bus is open");
    Ok(bus)
}

/// Opens the bus with the secrets it begins with, and makes no group.
///
/// # Errors
/// [`OpenError`]; a boot fails with the exit that it demands.
pub async fn open_bus_alone(
    settings: &EsperSettings,
    metrics: &AllMetrics,
    tracer: Tracer,
) -> Result<Bus, OpenError> {
    let keyring = wiring::keyring(settings).ok_or(OpenError::NoSecret)?;
    let opening = Bus::open(wiring::bus_config(settings), keyring, metrics.oona.clone());
    Ok(in_time("the log", opening).await??.traced(tracer))
}

/// Opens the artifact library.
///
/// # Errors
/// [`OpenError`]; a boot fails with the exit that it demands.
pub async fn open_library(
    settings: &EsperSettings,
    metrics: &AllMetrics,
) -> Result<urza::Library, OpenError> {
    let config = wiring::library_config(settings)?;
    let opening = urza::Library::open(config, metrics.urza.clone());
    let library = in_time("the library", opening).await??;
    tracing::info!(artifacts = %settings.urza_artifact_dir.display(), "library is open");
    Ok(library)
}

async fn in_time<T>(what: &'static str, opening: impl Future<Output = T>) -> Result<T, OpenError> {
    let after = STORE_OPEN_TIMEOUT;
    tokio::time::timeout(after, opening).await.map_err(|_| OpenError::TimedOut { what, after })
}

/// Reads the blueprints that the settings name, and examines those of users.
///
/// # Errors
/// [`OpenError`]; a boot fails with the exit that it demands.
pub async fn read_blueprints(settings: &Arc<EsperSettings>) -> Result<Blueprints, OpenError> {
    let settings = Arc::clone(settings);
    let reading = tokio::task::spawn_blocking(move || Blueprints::load(&settings));
    let read = in_time("KARN_BLUEPRINT_DIR", reading).await?;
    Ok(read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Opens the policies that are kept on disk; damaged ones were moved aside and are reported.
///
/// # Errors
/// [`OpenError`]; a boot fails with the exit that it demands.
pub async fn open_policies(config: tamiyo::Config) -> Result<tamiyo::PolicyStore, OpenError> {
    let opening = tokio::task::spawn_blocking(move || tamiyo::PolicyStore::open(&config));
    let opened = tokio::time::timeout(OPEN_TIMEOUT, opening)
        .await
        .map_err(|_| OpenError::TimedOut { what: "the policy directory", after: OPEN_TIMEOUT })?;
    let (store, damaged) =
        opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    for quarantined in &damaged {
        tracing::error!(?quarantined, "damaged policy moved aside");
    }
    Ok(store)
}
