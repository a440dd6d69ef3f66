//! Addresses and connections.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionAddr, IntoConnectionInfo, RedisError};

use crate::error::BusError;

/// A server on the local network answers a connection attempt well within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// First delay before connecting again; it doubles, with jitter.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// So that a server that is back is found within a second.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);

/// Checks the URL and gives the client and an address that is safe to print.
pub(super) fn client(url: &str) -> Result<(Client, String), BusError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme).ok_or(BusError::BadUrl)?;
    if scheme != "redis" {
        return Err(BusError::UnsupportedUrl { scheme: scheme.to_owned() });
    }
    let info = url.into_connection_info().map_err(|_| BusError::BadUrl)?;
    let database = info.redis_settings().db();
    let ConnectionAddr::Tcp(host, port) = info.addr() else {
        return Err(BusError::BadUrl);
    };
    let address = format!("redis://{host}:{port}/{database}");
    Ok((Client::open(info).map_err(|_| BusError::BadUrl)?, address))
}

/// A shared connection that comes back by itself, with growing delays and jitter.
pub(super) fn manager(
    client: &Client,
    command_timeout: Duration,
) -> Result<ConnectionManager, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(command_timeout))
        .set_min_delay(RECONNECT_DELAY_MIN)
        .set_max_delay(RECONNECT_DELAY_MAX);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// A connection for one blocking reader. It has no response time-out of its own: the reader sets
/// one that suits how long it blocks.
pub(super) async fn dedicated(
    client: &Client,
) -> Result<redis::aio::MultiplexedConnection, RedisError> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_urls_are_taken_and_credentials_are_not_shown() {
        let (_, address) = client("redis://user:hunter2@example.org:6380/3").unwrap();
        assert_eq!(address, "redis://example.org:6380/3");
        for (url, expected) in [
            ("rediss://localhost", "rediss"),
            ("redis-sentinel://localhost", "redis-sentinel"),
            ("redis-cluster://localhost", "redis-cluster"),
        ] {
            let error = client(url).unwrap_err();
            assert!(
                matches!(&error, BusError::UnsupportedUrl { scheme } if scheme == expected),
                "{error}"
            );
        }
        assert!(matches!(client("localhost:6379"), Err(BusError::BadUrl)));
        assert!(matches!(client("redis://host:notaport"), Err(BusError::BadUrl)));
    }
}
