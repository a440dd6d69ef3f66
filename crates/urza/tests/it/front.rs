//! TLS in front of a server that has none, as a proxy gives it, and an authority for its certificate.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, version};

use crate::proxy::{Running, listen};

/// An authority; its certificate and what it has signed are PEM files: `NAME.pem` and `NAME.key`.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    /// Has signed `server` for `localhost`, and `expired`, which has.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Of its own: one of the same name would be taken for this one.
        let mut params = named(&format!("authority {}", directory.path().display()), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        let authority = Self { issuer, directory };
        authority.sign("server", named("server", &["localhost"]));
        let mut expired = named("expired", &["localhost"]);
        expired.not_before = rcgen::date_time_ymd(2020, 1, 1);
        expired.not_after = rcgen::date_time_ymd(2020, 2, 1);
        authority.sign("expired", expired);
        authority
    }

    pub fn sign(&self, name: &str, params: CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, name: &str) -> ServerConfig {
        let chain = CertificateDer::from_pem_file(self.file(&format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap();
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap()
    }
}

/// What a certificate says, for these hosts.
pub fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Takes TLS connections and passes on what comes in them.
pub struct Front {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _server: Running,
}

impl Front {
    /// With the certificate of this name.
    pub fn start(target: SocketAddr, authority: &Authority, name: &str) -> Self {
        let (listener, address) = listen();
        let acceptor = TlsAcceptor::from(Arc::new(authority.config(name)));
        let connections = Arc::<AtomicUsize>::default();
        let opened = Arc::clone(&connections);
        let server = Running::start(move || async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                opened.fetch_add(1, Ordering::SeqCst);
                open.spawn(pass(stream, acceptor.clone(), target));
            }
        });
        Self { address, connections, _server: server }
    }

    /// Where it is, by the name that its certificate bears.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Connections that clients have made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn pass(stream: TcpStream, acceptor: TlsAcceptor, target: SocketAddr) {
    let Ok(mut client) = acceptor.accept(stream).await else { return };
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
