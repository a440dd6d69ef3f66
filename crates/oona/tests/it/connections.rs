//! Ways to reach Redis: TLS, a socket file, a user with no more permissions than Oona needs.

use std::path::{Path, PathBuf};

use oona::{Bus, BusError, Config, LogChoice, LogError, Metrics, RedisAccess, Stream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::redis_server::RedisServer;
use crate::rig::*;

/// An authority, and what it has signed for the server and for a client; all as PEM files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = named("authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        let authority = Self { issuer, directory };
        authority.sign("server", &["localhost", "127.0.0.1"]);
        authority.sign("client", &["client"]);
        authority
    }

    fn sign(&self, name: &str, hosts: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let certificate = named(name, hosts).signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server that speaks nothing but TLS; `clients` says whether they need a certificate.
    fn server(&self, clients: &str) -> RedisServer {
        let file = |name| self.file(name).to_str().unwrap().to_owned();
        let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        RedisServer::start_with(&[
            "--port",
            "0",
            "--tls-port",
            "{port}",
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            clients,
            "--save",
            "",
        ])
    }

    fn access(&self) -> RedisAccess {
        RedisAccess { ca_file: Some(self.file("ca.pem")), ..RedisAccess::default() }
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, format!("{name} {}", rand::random::<u64>()));
    params
}

async fn open(url: &str, redis: RedisAccess) -> Result<Bus, BusError> {
    let log = LogChoice::Redis { url: url.to_owned() };
    Bus::open(Config { redis, ..quick(log) }, keyring(), Metrics::detached()).await
}
async fn carries_messages(bus: &Bus) {
    let mut reader = consumer(bus, Stream::Normal);
    publish(bus, &state("run", 7)).await;
    let delivery = recv(&mut reader).await;
    assert_eq!(epoch(&delivery), 7);
    delivery.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

#[tokio::test]
async fn tls_carries_messages_when_the_authority_is_known() {
    let authority = Authority::new();
    let server = authority.server("no");
    let url = format!("rediss://localhost:{}/0", server.port());
    carries_messages(&open(&url, authority.access()).await.unwrap()).await;
    let about = oona::probe(&url, &authority.access()).await.unwrap();
    assert!(about.log.starts_with("rediss://localhost:"), "{about:?}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = authority.server("no");
    let url = format!("rediss://:hunter2@localhost:{}/0", server.port());
    let error = open(&url, stranger.access()).await.unwrap_err();
    assert!(matches!(error, BusError::Log(LogError::Untrusted { .. })), "{error:?}");
    let told = format!("{error} {error:?}");
    assert!(told.contains("OONA_REDIS_CA_FILE") && !told.contains("hunter2"), "{told}");
    // The system's own authorities do not know it either.
    let error = open(&url, RedisAccess::default()).await.unwrap_err();
    assert!(matches!(error, BusError::Log(_)), "{error:?}");
}

#[tokio::test]
async fn a_server_may_ask_for_a_client_certificate() {
    let authority = Authority::new();
    let server = authority.server("yes");
    let url = format!("rediss://localhost:{}/0", server.port());
    let error = open(&url, authority.access()).await.unwrap_err();
    assert!(matches!(error, BusError::Log(_)), "{error:?}");
    let access = RedisAccess {
        cert_file: Some(authority.file("client.pem")),
        key_file: Some(authority.file("client.key")),
        ..authority.access()
    };
    carries_messages(&open(&url, access).await.unwrap()).await;
}

#[tokio::test]
async fn a_missing_certificate_file_is_named() {
    let access = RedisAccess {
        ca_file: Some(PathBuf::from("/nonexistent/ca.pem")),
        ..RedisAccess::default()
    };
    let error = open("rediss://localhost", access).await.unwrap_err();
    let BusError::Certificate { path, .. } = &error else { panic!("{error:?}") };
    assert_eq!(path, Path::new("/nonexistent/ca.pem"));
    let access = RedisAccess { cert_file: Some("client.pem".into()), ..RedisAccess::default() };
    let error = open("rediss://localhost", access).await.unwrap_err();
    assert!(error.to_string().contains("OONA_REDIS_KEY_FILE"), "{error}");
}

#[tokio::test]
async fn a_socket_file_serves_as_well() {
    let args = ["--unixsocket", "{dir}/redis.sock", "--save", ""];
    let server = RedisServer::start_with(&args);
    for scheme in ["unix", "redis+unix"] {
        let url = format!("{scheme}://{}/redis.sock", server.directory().display());
        carries_messages(&open(&url, RedisAccess::default()).await.unwrap()).await;
    }
}

/// The line that the manual gives for `users.acl`.
fn acl_line() -> Vec<&'static str> {
    let manual = include_str!("../../../../docs/oona.md");
    let line = manual.lines().find(|line| line.starts_with("user oona on ")).expect("an ACL line");
    line.split_whitespace().skip(1).collect()
}

#[tokio::test]
async fn the_permissions_in_the_manual_are_enough() {
    let server = RedisServer::start();
    let mut words = vec!["ACL", "SETUSER"];
    words.extend(acl_line().into_iter().filter(|word| !word.starts_with('>')));
    words.push(">hunter2");
    server.ask::<()>(&words).await;
    server.ask::<()>(&["ACL", "SETUSER", "default", "off"]).await;
    let url = format!("redis://oona@127.0.0.1:{}/0", server.port());
    let access = RedisAccess { password: Some("hunter2".to_owned()), ..RedisAccess::default() };

    let bus = open(&url, access.clone()).await.unwrap();
    carries_messages(&bus).await;
    everything_else(&bus).await;

    let wrong = RedisAccess { password: Some("wrong".to_owned()), ..RedisAccess::default() };
    let error = open(&url, wrong).await.unwrap_err();
    assert!(matches!(error, BusError::Log(LogError::Refused { .. })), "{error:?}");
}

/// What a bus asks of its log beside carrying messages: retries, dead letters, upkeep, looking.
pub async fn everything_else(bus: &Bus) {
    let mut reader = consumer(bus, Stream::Normal);
    publish(bus, &state("run", 8)).await;
    for _ in 0..bus.config().attempts_max {
        recv(&mut reader).await.fail("it does not work").await.unwrap();
    }
    let begun = std::time::Instant::now();
    while bus.len(Stream::DeadLetter).await.unwrap() == 0 {
        let nothing = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(nothing, reader.recv()).await.is_err());
        assert!(begun.elapsed() < PATIENCE, "no dead letter");
    }
    for stream in Stream::ALL {
        bus.sweep(stream).await.unwrap();
    }
    let letters = bus.peek(Stream::DeadLetter, oona::EntryId::ZERO, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    bus.ping().await.unwrap();
    bus.remove_group(Stream::Normal, GROUP).await.unwrap();
}
