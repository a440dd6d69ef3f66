//! The HTTP client of whatever travels here: TLS by rustls with ring, no redirects, bounded waits.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::Certificate;

use crate::trust;

/// How a client waits and whom it trusts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientSettings<'a> {
    /// For a connection.
    pub(crate) connect: Duration,
    /// Without a byte.
    pub(crate) idle: Duration,
    /// PEM file of authorities that are trusted beside the system's own.
    pub(crate) ca_file: Option<&'a Path>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientFault {
    #[error("the authorities in {path} cannot be read: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no certificate of an authority in PEM")]
    NoAuthority { path: PathBuf },
    #[error("TLS cannot be set up")]
    Tls(#[source] reqwest::Error),
}

/// A client for `http` and `https`. Redirects are not followed: they could carry a token, or a
/// request, to somewhere nobody named. Blocks for the reading of some files.
///
/// # Errors
/// When the file of authorities cannot be used.
pub(crate) fn client(settings: ClientSettings<'_>) -> Result<reqwest::Client, ClientFault> {
    // The workspace compiles no other provider in; one that is installed already is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authorities = settings.ca_file.map(authorities).transpose()?.unwrap_or_default();
    let builder = || {
        reqwest::Client::builder()
            .connect_timeout(settings.connect)
            .read_timeout(settings.idle)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("urza/", env!("CARGO_PKG_VERSION")))
    };
    if !authorities.is_empty() {
        return builder().tls_certs_merge(authorities).build().map_err(ClientFault::Tls);
    }
    builder().build().or_else(|error| {
        // A system without authorities can still speak `http`; every `https` server is a stranger to it.
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "no authorities of the system can be read, so no https server is trusted; see SSL_CERT_FILE"
        );
        builder().tls_certs_only([]).build().map_err(ClientFault::Tls)
    })
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, ClientFault> {
    let pem = std::fs::read(path)
        .map_err(|source| ClientFault::Unreadable { path: path.to_owned(), source })?;
    let read = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if read.is_empty() {
        return Err(ClientFault::NoAuthority { path: path.to_owned() });
    }
    Ok(read)
}

/// Hands that client to the object store's library, which knows no difference between a server that is
/// away and one that is not trusted, and would ask the latter again and again.
#[derive(Debug, Clone)]
pub(super) struct Connector(pub(super) reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Connector {
    // Written out: what `async fn` in a trait of boxed futures stands for.
    fn call<'a, 'f>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let answered = self.0.call(request).await;
            answered.map_err(|error| match trust::problem(&error) {
                Some(_) => HttpError::new(HttpErrorKind::Unknown, error),
                None => error,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(ca_file: Option<&Path>) -> Result<reqwest::Client, ClientFault> {
        let second = Duration::from_secs(1);
        client(ClientSettings { connect: second, idle: second, ca_file })
    }

    #[test]
    fn a_client_can_be_made() {
        with(None).unwrap();
    }

    #[test]
    fn a_file_of_authorities_that_cannot_be_used_is_named() {
        let missing = with(Some(Path::new("/nonexistent/ca.pem"))).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/ca.pem"), "{missing}");
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in
            ["", "something", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            std::fs::write(file.path(), text).unwrap();
            let told = with(Some(file.path())).unwrap_err().to_string();
            assert!(told.contains(file.path().to_str().unwrap()) || told.contains("TLS"), "{told}");
        }
    }
}
