//! Where telemetry goes, read from the settings that every OpenTelemetry program has.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::Scheme;

use super::wire::KeyValue;
use crate::settings::EsperSettings;

/// What cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OtlpFault {
    /// The endpoint.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT must be http://HOST[:PORT] or https://HOST[:PORT]")]
    Endpoint,
    /// The headers, which may hold a secret and are not shown.
    #[error("OTEL_EXPORTER_OTLP_HEADERS must be NAME=VALUE pairs, separated by commas")]
    Headers,
    /// The attributes of the resource.
    #[error("OTEL_RESOURCE_ATTRIBUTES must be NAME=VALUE pairs, separated by commas")]
    Attributes,
    /// The authorities that sign certificates.
    #[error("the system's certificate authorities, which an https endpoint needs, cannot be read")]
    Authorities(#[source] rustls::Error),
}

/// A collector's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    /// Before `/v1/...`, without a slash at its end.
    pub(super) path: String,
}

/// Where telemetry goes, and what is said with it.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) endpoint: Endpoint,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) resource: Vec<KeyValue>,
    pub(super) ratio: f64,
    pub(super) metric_interval: Duration,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
}

impl std::fmt::Debug for Config {
    /// Without the headers: they hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Config {
    /// Reads the settings; `None` when no endpoint is set.
    pub(super) fn read(settings: &EsperSettings) -> Result<Option<Self>, OtlpFault> {
        let Some(url) = &settings.otlp_endpoint else { return Ok(None) };
        let endpoint = endpoint(url.expose())?;
        let headers = match &settings.otlp_headers {
            Some(headers) => headers_of(headers.expose())?,
            None => Vec::new(),
        };
        let tls = if endpoint.is_tls { Some(tls()?) } else { None };
        Ok(Some(Self {
            endpoint,
            headers,
            resource: resource(settings)?,
            ratio: settings.otlp_sample_ratio,
            metric_interval: settings.otlp_metric_interval,
            tls,
        }))
    }
}

fn endpoint(url: &str) -> Result<Endpoint, OtlpFault> {
    let url: Uri = url.parse().map_err(|_| OtlpFault::Endpoint)?;
    let is_tls = match url.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        _ => return Err(OtlpFault::Endpoint),
    };
    let authority = url.authority().ok_or(OtlpFault::Endpoint)?;
    // A password in a URL ends up in places; the headers are for that.
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(OtlpFault::Endpoint);
    }
    Ok(Endpoint {
        host: authority.host().trim_matches(['[', ']']).to_owned(),
        port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 4318 }),
        is_tls,
        path: url.path().trim_end_matches('/').to_owned(),
    })
}

/// `NAME=VALUE` pairs behind commas, percent-encoded where needed, as the specification has them.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=')?;
            let name = decoded(name.trim())?;
            (!name.is_empty()).then_some((name, decoded(value.trim())?))
        })
        .collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

fn headers_of(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, OtlpFault> {
    let header = |(name, value): (String, String)| {
        let name = name.to_ascii_lowercase().parse::<HeaderName>().ok()?;
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    let pairs = pairs(text).ok_or(OtlpFault::Headers)?;
    pairs.into_iter().map(|pair| header(pair).ok_or(OtlpFault::Headers)).collect()
}

/// Who sends this. What is set by name goes before the list.
fn resource(settings: &EsperSettings) -> Result<Vec<KeyValue>, OtlpFault> {
    let mut own = vec![
        ("service.name".to_owned(), settings.otlp_service_name.clone()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id".to_owned(), uuid::Uuid::now_v7().to_string()),
    ];
    let more = settings.otlp_resource_attributes.as_deref().unwrap_or_default();
    for (name, value) in pairs(more).ok_or(OtlpFault::Attributes)? {
        match own.iter_mut().find(|(known, _)| *known == name) {
            Some(_) if name == "service.name" => {}
            Some((_, old)) => *old = value,
            None => own.push((name, value)),
        }
    }
    Ok(own.into_iter().map(|(name, value)| KeyValue::text(name, value)).collect())
}

/// Certificates are checked against the system's authorities.
fn tls() -> Result<Arc<rustls::ClientConfig>, OtlpFault> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(OtlpFault::Authorities)?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    fn read(overrides: &[&str]) -> Result<Option<Config>, OtlpFault> {
        let overrides = overrides.iter().map(|one| (*one).to_owned()).collect();
        let sources = Sources { overrides, ..Sources::default() };
        Config::read(&resolve(&sources).unwrap().settings)
    }

    #[test]
    fn without_an_endpoint_there_is_nothing() {
        assert!(read(&["OTEL_SERVICE_NAME=esper"]).unwrap().is_none());
    }

    #[test]
    fn the_usual_names_are_read() {
        let config = read(&[
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector/base/",
            "OTEL_EXPORTER_OTLP_HEADERS=Authorization=Bearer%20abc, x-tenant=7",
            "OTEL_SERVICE_NAME=esper",
            "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=test,service.name=other,a=b%2Cc",
            "OTEL_TRACES_SAMPLER_ARG=0.25",
            "OTEL_METRIC_EXPORT_INTERVAL=5000",
        ]);
        let config = config.unwrap().unwrap();
        let expected = Endpoint {
            host: "collector".to_owned(),
            port: 4318,
            is_tls: false,
            path: "/base".to_owned(),
        };
        assert_eq!(config.endpoint, expected);
        let header = |name: &str| {
            let found = config.headers.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header("authorization").as_deref(), Some("Bearer abc"));
        assert_eq!(header("x-tenant").as_deref(), Some("7"));
        for pair in [("service.name", "esper"), ("deployment.environment", "test"), ("a", "b,c")] {
            assert!(config.resource.contains(&KeyValue::text(pair.0, pair.1)), "{pair:?}");
        }
        assert_eq!((config.ratio, config.metric_interval), (0.25, Duration::from_secs(5)));
        assert!(!format!("{config:?}").contains("abc"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_showing_secrets() {
        for url in ["http://user:pass@collector", "http://:4318"] {
            assert!(endpoint(url).is_err(), "{url}");
        }
        assert!(endpoint("https://[::1]:99").is_ok_and(|end| end.host == "::1" && end.is_tls));
        let error = headers_of("secret-without-a-name").unwrap_err().to_string();
        assert!(!error.contains("secret-without"), "{error}");
        assert!(headers_of("a=%zz").is_err() && headers_of("a b=c").is_err());
    }
}
