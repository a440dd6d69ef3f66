//! What the workers stand on: opened once, in boot order, and shared by cheap handles.

use std::sync::Arc;

use oona::{Bus, BusError, Stream};
use tokio::sync::watch;

use super::emergency::EmergencyPicture;
use super::metrics::AllMetrics;
use crate::settings::EsperSettings;
use crate::supervisor::{BootFailure, BusPicture, Exit};
use crate::wiring;

/// The service's consumer group.
pub const GROUP: &str = "weatherlight";
/// The streams it reads as that group, in the order in which their groups are made.
const OWN_STREAMS: [Stream; 3] = [Stream::Emergency, Stream::KernelRequests, Stream::Policy];

/// Why a part could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no secret. The preflight finds it first.
    #[error("there is no secret to sign messages with; set ESPER_LEYLINE_SECRET")]
    NoSecret,
    /// The bus.
    #[error("the message bus does not open")]
    Bus(#[from] BusError),
    /// The library's settings. They were checked when they were read.
    #[error("the library's settings cannot be used")]
    LibraryConfig(#[from] urza::ConfigFault),
    /// The library.
    #[error("the artifact library does not open")]
    Library(#[from] urza::OpenError),
}

impl From<OpenError> for BootFailure {
    fn from(error: OpenError) -> Self {
        let exit = match &error {
            OpenError::NoSecret
            | OpenError::LibraryConfig(_)
            | OpenError::Bus(
                BusError::Config(_) | BusError::BadUrl | BusError::UnsupportedUrl { .. },
            ) => Exit::Configuration,
            OpenError::Bus(_) | OpenError::Library(_) => Exit::Unavailable,
        };
        Self { exit, error: Box::new(error) }
    }
}

/// Everything that is opened. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The settings in force at the start.
    pub settings: Arc<EsperSettings>,
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
    /// The way to whoever builds what is missing.
    pub demand: urza::Demand,
}

/// Opens the bus and makes the service's groups, so that what is sent from now on is served.
///
/// # Errors
/// [`OpenError`]; a boot fails with the exit that it demands.
pub async fn open_bus(settings: &EsperSettings, metrics: &AllMetrics) -> Result<Bus, OpenError> {
    let keyring = wiring::keyring(settings).ok_or(OpenError::NoSecret)?;
    let bus = Bus::open(wiring::bus_config(settings), keyring, metrics.oona.clone()).await?;
    let groups = OWN_STREAMS.map(|stream| (stream, GROUP));
    bus.ensure_groups(&groups).await?;
    tracing::info!(log = ?bus.log_kind(), "bus is open");
    Ok(bus)
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
    let library = urza::Library::open(config, metrics.urza.clone()).await?;
    tracing::info!(artifacts = %settings.urza_artifact_dir.display(), "library is open");
    Ok(library)
}
