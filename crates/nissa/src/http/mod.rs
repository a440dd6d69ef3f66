//! The HTTP worker: probes, metrics, state and the page, on a listener that was bound before.
//!
//! `routes` says what is answered, `guard` who is refused before that, `live` how a page is kept up
//! to date, `view` what it shows. All connections are futures of this one worker: it spawns nothing,
//! so stopping it ends them.

mod bus;
mod connection;
mod exposition;
mod guard;
mod kernels;
mod live;
mod page;
mod routes;
mod view;

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use oona::Heartbeat;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::board::BoardSource;
use crate::bus::BusSource;
use crate::config::HttpConfig;
use crate::control::WorkerControl;
use crate::error::HttpError;
use crate::health::HealthSource;
use crate::log_tail::LogTail;
use crate::metrics::Metrics;
use crate::reload::ReloadPort;

/// The library, once it is open; it never is in a process that has none.
pub type KernelSource = tokio::sync::watch::Receiver<Option<urza::Library>>;

/// Pause after the system refused a connection, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves probes, metrics, state and the page until told to stop.
///
/// Holds nothing that must outlive it. The supervisor keeps the listener and passes a clone
/// (`try_clone`) to each start, so that the port stays bound over a restart.
#[derive(Debug)]
pub struct Http {
    /// Bound and listening.
    pub listener: StdListener,
    /// Limits and the token.
    pub config: Arc<HttpConfig>,
    /// The supervisor's newest picture.
    pub health: HealthSource,
    /// What was ingested.
    pub board: BoardSource,
    /// The bus, once it is open.
    pub bus: BusSource,
    /// The library whose kernels are handed out, once it is open.
    pub kernels: KernelSource,
    /// Every metric of the process.
    pub registry: Arc<Registry>,
    /// The newest lines of the log.
    pub logs: LogTail,
    /// Whom to ask for a restart.
    pub control: WorkerControl,
    /// Whom to ask to read the settings again.
    pub reload: ReloadPort,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Accepted(TcpStream),
    NotAccepted(std::io::Error),
    Ended,
    Idle,
    Stop,
}

type Connections = FuturesUnordered<BoxFuture<'static, ()>>;

impl Http {
    /// Serves until `stop`, then lets open requests end within the drain time-out.
    ///
    /// # Errors
    /// [`HttpError::Listener`] when the listener cannot be used.
    pub async fn run(self, stop: CancellationToken) -> Result<(), HttpError> {
        self.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(self.listener.try_clone()?)?;
        let local = listener.local_addr()?;
        // Cancelled at once when this worker stops, and when its future is dropped.
        let closing = CancellationToken::new();
        let _closes = closing.clone().drop_guard();
        let router = routes::router(&self, local.ip(), closing.clone());
        let mut open = Connections::new();
        loop {
            self.heartbeat.beat("serving");
            self.metrics.connections(open.len());
            match self.next_event(&listener, &mut open, &stop).await {
                Event::Accepted(stream) => open.push(self.serve(stream, &router, &closing)),
                Event::NotAccepted(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "connection not accepted"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Event::Ended | Event::Idle => {}
                Event::Stop => break,
            }
        }
        drop(listener);
        closing.cancel();
        self.drain(open).await;
        Ok(())
    }

    /// Waits for the next event, and lets the open connections run meanwhile.
    async fn next_event(
        &self,
        listener: &TcpListener,
        open: &mut Connections,
        stop: &CancellationToken,
    ) -> Event {
        let has_room = open.len() < self.config.connections_max.get();
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(()) = open.next() => Event::Ended,
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => Event::Accepted(stream),
                Err(error) => Event::NotAccepted(error),
            },
            () = tokio::time::sleep(Heartbeat::INTERVAL) => Event::Idle,
        }
    }

    fn serve(
        &self,
        stream: TcpStream,
        router: &Router,
        closing: &CancellationToken,
    ) -> BoxFuture<'static, ()> {
        connection::serve(stream, router.clone(), self.config.clone(), closing.clone()).boxed()
    }

    /// Ends the open connections; what has not ended in time is dropped.
    async fn drain(&self, mut open: Connections) {
        let end = Instant::now() + self.config.drain_timeout;
        while !open.is_empty() {
            self.heartbeat.beat("draining");
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(connections = open.len(), "connections cut off at the end");
                break;
            }
            // A time-out only means another turn: the bound is `end`.
            let _ = timeout(left.min(Heartbeat::INTERVAL), open.next()).await;
        }
        self.metrics.connections(0);
    }
}
