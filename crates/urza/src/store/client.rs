//! The HTTP client of whatever travels here: TLS by rustls with ring, no redirects, bounded waits.

use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector};

/// A client for `http` and `https`. Redirects are not followed: they could carry a token, or a
/// request, to somewhere nobody named.
///
/// # Errors
/// When the system's certificates cannot be used.
pub(crate) fn client(connect: Duration, idle: Duration) -> reqwest::Result<reqwest::Client> {
    // The workspace compiles no other provider in; one that is installed already is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(connect)
        .read_timeout(idle)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("urza/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Hands that client to the object store's library.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) connect: Duration,
    pub(super) idle: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = client(self.connect, self.idle).map_err(|source| {
            object_store::Error::Generic { store: "S3", source: source.into() }
        })?;
        Ok(HttpClient::new(client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_can_be_made() {
        client(Duration::from_secs(1), Duration::from_secs(1)).unwrap();
    }
}
