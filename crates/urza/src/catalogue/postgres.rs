//! Opening a catalogue in PostgreSQL.

use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;

use super::database::{self, Pool};
use super::migrate;
use crate::config::{Config, PostgresUrl};
use crate::error::OpenError;
use crate::store::blocking;
use crate::trust;

/// Connections of one process at most. A server admits a hundred by default.
const CONNECTIONS_MAX: u32 = 8;
/// An unused connection is closed after this.
const IDLE: Duration = Duration::from_secs(300);

pub(super) async fn open(url: &PostgresUrl, config: &Config) -> Result<Pool, OpenError> {
    let pool = connect(url, config).await?;
    let prepared = migrate::up(&pool, &url.to_string(), None).await;
    if prepared.is_err() {
        pool.close().await;
    }
    prepared.map(|()| pool)
}

/// Opens the database as it is.
pub(super) async fn connect(url: &PostgresUrl, config: &Config) -> Result<Pool, OpenError> {
    let fault = |source: sqlx::Error| match trust::problem(&source) {
        Some(problem) => OpenError::Untrusted { catalogue: url.to_string(), problem },
        None => OpenError::Unreachable { catalogue: url.to_string(), source: source.into() },
    };
    let unreadable = blocking(config.file_timeout, {
        let url = url.clone();
        move || url.unreadable_file()
    });
    if let Some(problem) = unreadable.await.flatten() {
        return Err(OpenError::Untrusted { catalogue: url.to_string(), problem });
    }
    let options: PgConnectOptions = url.expose().parse().map_err(fault)?;
    let ms = config.query_timeout.as_millis().max(1);
    // A statement of a process that died or hangs must not hold the others up.
    let limits = format!(
        "SET statement_timeout = {ms}; SET lock_timeout = {ms}; \
         SET idle_in_transaction_session_timeout = {};",
        ms * 4
    );
    let pool = database::options(CONNECTIONS_MAX, config.query_timeout)
        .idle_timeout(IDLE)
        .after_connect(move |connection, _| {
            let limits = limits.clone();
            Box::pin(
                async move { sqlx::Executor::execute(connection, limits.as_str()).await.map(drop) },
            )
        })
        .connect_with(options.application_name("urza").disable_statement_logging())
        .await
        .map_err(fault)?;
    Ok(Pool::Postgres(pool))
}
