//! What a URL says: which servers, how they stand together, and as whom to speak to them. Pure.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};

use crate::error::BusError;

/// The port on which sentinels listen.
const SENTINEL_PORT: u16 = 26_379;

/// How the servers stand together.
#[derive(Debug, Clone)]
pub(super) enum Topology {
    /// One server, by TCP, TLS or a socket file.
    Single(Box<ConnectionInfo>),
    /// A master and its replicas; the sentinels know which is which at the moment.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        master: String,
        /// As whom, and to which database of the master.
        node: Box<RedisConnectionInfo>,
    },
    /// A cluster, found by any of these nodes.
    Cluster { nodes: Vec<ConnectionInfo> },
}

/// A URL that was understood.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    pub(super) topology: Topology,
    pub(super) encrypted: bool,
    /// The URL without credentials, for errors and logs.
    pub(super) shown: String,
}

/// Reads a URL. Errors name what is wrong with it and never repeat it.
pub(super) fn parse(url: &str) -> Result<Parsed, BusError> {
    let (scheme, rest) = url.split_once("://").ok_or(bad("it has no scheme"))?;
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "redis" | "rediss" | "valkey" | "valkeys" => single(&scheme, rest),
        "unix" | "redis+unix" | "valkey+unix" => socket(rest),
        "redis-sentinel" | "rediss-sentinel" => sentinel(&scheme, rest),
        "redis-cluster" | "rediss-cluster" => cluster(&scheme, rest),
        _ => Err(BusError::UnsupportedUrl { scheme }),
    }
}

/// Reads a Redis URL and says what is wrong with it, without connecting.
///
/// # Errors
/// [`BusError::BadUrl`] or [`BusError::UnsupportedUrl`]; neither shows credentials.
pub fn check_url(url: &str) -> Result<(), BusError> {
    parse(url).map(|_| ())
}

/// Whether this is the URL of a cluster, however badly written.
pub(crate) fn is_cluster(url: &str) -> bool {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    ["redis-cluster", "rediss-cluster"].iter().any(|known| known.eq_ignore_ascii_case(scheme))
}

fn single(scheme: &str, rest: &str) -> Result<Parsed, BusError> {
    let encrypted = matches!(scheme, "rediss" | "valkeys");
    let plain = if encrypted { "rediss" } else { "redis" };
    let info = connection(&format!("{plain}://{rest}"))?;
    let shown = format!("{plain}://{}/{}", info.addr(), info.redis_settings().db());
    Ok(Parsed { topology: Topology::Single(Box::new(info)), encrypted, shown })
}

fn socket(rest: &str) -> Result<Parsed, BusError> {
    let info = connection(&format!("redis+unix://{rest}"))?;
    let ConnectionAddr::Unix(path) = info.addr() else { return Err(bad("it names no socket")) };
    let shown = format!("unix://{}?db={}", path.display(), info.redis_settings().db());
    Ok(Parsed { topology: Topology::Single(Box::new(info)), encrypted: false, shown })
}

fn sentinel(scheme: &str, rest: &str) -> Result<Parsed, BusError> {
    let encrypted = scheme.starts_with("rediss");
    let parts = Parts::of(rest);
    let mut path = parts.path.split('/');
    let (master, database) = (path.next().unwrap_or_default(), path.next().unwrap_or("0"));
    if master.is_empty() || path.next().is_some() {
        return Err(bad("behind the sentinels it needs /MASTER or /MASTER/DATABASE"));
    }
    // The credentials in front are those of the master; sentinels have their own, if any.
    let node = connection(&format!("redis://{}any/{database}", parts.credentials))?;
    let sentinel_credentials =
        match (parts.option("sentinel_user"), parts.option("sentinel_password")) {
            (None, None) => String::new(),
            (user, password) => {
                format!("{}:{}@", user.unwrap_or_default(), password.unwrap_or_default())
            }
        };
    let sentinels = parts.nodes(encrypted, &sentinel_credentials, Some(SENTINEL_PORT))?;
    let shown = format!("{scheme}://{}/{master}/{database}", addresses(&sentinels));
    let topology = Topology::Sentinel {
        sentinels,
        master: master.to_owned(),
        node: Box::new(node.redis_settings().clone()),
    };
    Ok(Parsed { topology, encrypted, shown })
}

fn cluster(scheme: &str, rest: &str) -> Result<Parsed, BusError> {
    let encrypted = scheme.starts_with("rediss");
    let parts = Parts::of(rest);
    if !matches!(parts.path, "" | "0") {
        return Err(bad("a cluster has database 0 only"));
    }
    let nodes = parts.nodes(encrypted, parts.credentials, None)?;
    let shown = format!("{scheme}://{}", addresses(&nodes));
    Ok(Parsed { topology: Topology::Cluster { nodes }, encrypted, shown })
}

/// A URL with several hosts, which the client's own parser does not read.
struct Parts<'a> {
    /// `user:password@`, or nothing.
    credentials: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let at = authority.rfind('@').map_or(0, |at| at + 1);
        let (credentials, hosts) = authority.split_at(at);
        Self { credentials, hosts, path: path.trim_end_matches('/'), query }
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    fn nodes(
        &self,
        encrypted: bool,
        credentials: &str,
        port: Option<u16>,
    ) -> Result<Vec<ConnectionInfo>, BusError> {
        let scheme = if encrypted { "rediss" } else { "redis" };
        let mut nodes = Vec::new();
        for host in self.hosts.split(',').map(str::trim) {
            if host.is_empty() {
                return Err(bad("it names no host, or has a comma too many"));
            }
            let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
            let url = match port {
                Some(port) if !has_port => format!("{scheme}://{credentials}{host}:{port}/0"),
                _ => format!("{scheme}://{credentials}{host}/0"),
            };
            nodes.push(connection(&url)?);
        }
        Ok(nodes)
    }
}

fn connection(url: &str) -> Result<ConnectionInfo, BusError> {
    url.into_connection_info()
        .map_err(|_| bad("host, port, database or credentials cannot be read"))
}

fn addresses(nodes: &[ConnectionInfo]) -> String {
    nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>().join(",")
}

fn bad(problem: &'static str) -> BusError {
    BusError::BadUrl { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shown(url: &str, expected: &str) {
        let parsed = parse(url).unwrap();
        assert_eq!(parsed.shown, expected);
        assert!(!parsed.shown.contains("hunter2"));
    }

    #[test]
    fn every_kind_of_url_is_read_and_shown_without_credentials() {
        shown("redis://user:hunter2@example.org:6380/3", "redis://example.org:6380/3");
        shown("valkey://localhost", "redis://localhost:6379/0");
        shown("rediss://:hunter2@example.org/", "rediss://example.org:6379/0");
        shown("unix:///run/redis.sock?db=2&pass=hunter2", "unix:///run/redis.sock?db=2");
        shown("redis+unix:///run/redis.sock", "unix:///run/redis.sock?db=0");
        shown(
            "redis-sentinel://u:hunter2@a,b:1/main/2?sentinel_password=hunter2",
            "redis-sentinel://a:26379,b:1/main/2",
        );
        shown("rediss-sentinel://[::1]/main", "rediss-sentinel://::1:26379/main/0");
        shown("redis-cluster://u:hunter2@a,b:7001", "redis-cluster://a:6379,b:7001");
        shown("REDISS-CLUSTER://a/0", "rediss-cluster://a:6379");
    }

    #[test]
    fn credentials_go_to_whom_they_are_meant_for() {
        let url = "redis-sentinel://me:p%40w@a,b/main/2?sentinel_user=s&sentinel_password=x%2Fy";
        let Topology::Sentinel { sentinels, master, node } = parse(url).unwrap().topology else {
            panic!("a sentinel URL");
        };
        assert_eq!((master.as_str(), sentinels.len(), node.db()), ("main", 2, 2));
        assert_eq!((node.username(), node.password()), (Some("me"), Some("p@w")));
        let asked = sentinels[1].redis_settings();
        assert_eq!((asked.username(), asked.password()), (Some("s"), Some("x/y")));
        let Topology::Cluster { nodes } = parse("redis-cluster://me:pw@a,b").unwrap().topology
        else {
            panic!("a cluster URL");
        };
        for node in nodes {
            assert_eq!(node.redis_settings().password(), Some("pw"));
        }
    }

    #[test]
    fn what_cannot_be_read_is_a_fault_that_shows_no_credentials() {
        for url in [
            "localhost:6379",
            "redis://",
            "redis://host:notaport",
            "redis://:hunter2@host/notadatabase",
            "redis-sentinel://:hunter2@a,b",
            "redis-sentinel://a/main/0/more",
            "redis-sentinel://a,,b/main",
            "redis-sentinel://a/main/notadatabase",
            "redis-cluster://",
            "redis-cluster://:hunter2@a/3",
            "unix://",
        ] {
            let error = parse(url).unwrap_err();
            assert!(matches!(error, BusError::BadUrl { .. }), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        let error = parse("http://:hunter2@localhost").unwrap_err();
        assert!(matches!(&error, BusError::UnsupportedUrl { scheme } if scheme == "http"));
    }
}
