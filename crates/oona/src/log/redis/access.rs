//! The way in: what the URL says, the password and the certificates beside it, made into clients.

use std::path::{Path, PathBuf};

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    Client, ClientTlsConfig, ConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
    TlsMode,
};

use super::url::{Parsed, Topology, parse};
use crate::config::RedisAccess;
use crate::error::BusError;

/// How often a command is sent again after a redirection or while a slot moves.
const CLUSTER_RETRIES: u32 = 4;

/// Where the log stands and how to get in. Makes clients; holds no connection.
pub(super) struct Access {
    pub(super) shown: String,
    topology: Topology,
    /// Set when the connections are encrypted.
    certificates: Option<TlsCertificates>,
}

impl Access {
    /// Reads the URL and the files named beside it.
    pub(super) fn of(url: &str, beside: &RedisAccess) -> Result<Self, BusError> {
        let Parsed { topology, encrypted, shown } = parse(url)?;
        let certificates = if encrypted { Some(certificates(beside)?) } else { None };
        let topology = match &beside.password {
            Some(password) => with_password(topology, password),
            None => topology,
        };
        Ok(Self { shown, topology, certificates })
    }

    /// Who to connect to; a sentinel or a cluster has yet to be asked for the server.
    pub(super) fn door(&self) -> Result<Door, RedisError> {
        if self.certificates.is_some() {
            // Of several threads the first one does it.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(match &self.topology {
            Topology::Single(info) => Door::Server(self.client(info)?),
            Topology::Sentinel { sentinels, master, node } => {
                Door::Sentinel(Box::new(self.sentinel(sentinels, master, node)?))
            }
            Topology::Cluster { nodes } => Door::Cluster(Box::new(self.cluster(nodes)?)),
        })
    }

    fn client(&self, info: &ConnectionInfo) -> Result<Client, RedisError> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(info.clone(), certificates.clone()),
            None => Client::open(info.clone()),
        }
    }

    fn cluster(&self, nodes: &[ConnectionInfo]) -> Result<ClusterClient, RedisError> {
        let mut builder = ClusterClientBuilder::new(nodes.to_vec()).retries(CLUSTER_RETRIES);
        builder = builder.connection_timeout(super::link::CONNECT_TIMEOUT);
        if let Some(certificates) = &self.certificates {
            builder = builder.tls(TlsMode::Secure).certs(certificates.clone());
        }
        builder.build()
    }

    fn sentinel(
        &self,
        sentinels: &[ConnectionInfo],
        master: &str,
        node: &RedisConnectionInfo,
    ) -> Result<SentinelClient, RedisError> {
        let addresses = sentinels.iter().map(|sentinel| sentinel.addr().clone());
        let kind = SentinelServerType::Master;
        let mut builder =
            SentinelClientBuilder::new(addresses, master, kind)?.set_client_to_redis_db(node.db());
        if let Some(user) = node.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = node.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        let asked = sentinels.first().map(ConnectionInfo::redis_settings);
        if let Some(user) = asked.and_then(RedisConnectionInfo::username) {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = asked.and_then(RedisConnectionInfo::password) {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(certificates) = &self.certificates {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()
    }
}

/// A client of one of the three kinds.
#[expect(clippy::large_enum_variant, reason = "lives for one attempt to connect")]
pub(super) enum Door {
    Server(Client),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

fn with_password(topology: Topology, password: &str) -> Topology {
    let known = |info: ConnectionInfo| {
        let settings = info.redis_settings().clone().set_password(password);
        info.set_redis_settings(settings)
    };
    match topology {
        Topology::Single(info) => Topology::Single(Box::new(known(*info))),
        Topology::Sentinel { sentinels, master, node } => {
            let node = Box::new((*node).set_password(password));
            Topology::Sentinel { sentinels, master, node }
        }
        Topology::Cluster { nodes } => {
            Topology::Cluster { nodes: nodes.into_iter().map(known).collect() }
        }
    }
}

fn certificates(beside: &RedisAccess) -> Result<TlsCertificates, BusError> {
    let client_tls = match (&beside.cert_file, &beside.key_file) {
        (Some(cert), Some(key)) => {
            Some(ClientTlsConfig { client_cert: pem(cert)?, client_key: pem(key)? })
        }
        _ => None,
    };
    let root_cert = beside.ca_file.as_deref().map(pem).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

fn pem(path: impl AsRef<Path>) -> Result<Vec<u8>, BusError> {
    let path: PathBuf = path.as_ref().to_path_buf();
    std::fs::read(&path).map_err(|source| BusError::Certificate { path, source })
}
