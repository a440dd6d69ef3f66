//! Redis as the log: reachable, new enough, durable, and with a clock that agrees.

use std::time::Duration;

use leyline::time::now_unix_ms;
use oona::{About, BusError, Config, Durability, LogError, Stream};

use super::{Finding, Verdict, clock};
use crate::supervisor::chain;

const CHECK: &str = "log";
/// How long the whole look may take: sentinels and their master may each take a second.
const CHECK_TIMEOUT: Duration = Duration::from_secs(4);
/// What to do when there is no server to look at.
const START: &str =
    "start Redis 7.0 or later there, correct REDIS_URL, or unset it to use the embedded log";

pub(super) async fn check(url: &str, config: &Config) -> Vec<Finding> {
    let shown = crate::settings::masked_url(url);
    let looked = tokio::time::timeout(CHECK_TIMEOUT, oona::probe(url, &config.redis)).await;
    match looked {
        Ok(Ok(about)) => judge(&about, config),
        Ok(Err(error)) => vec![unusable(&error, &shown)],
        Err(_) => {
            let seconds = CHECK_TIMEOUT.as_secs();
            let message = format!("Redis at {shown} gives no answer within {seconds} s");
            vec![Finding::new(CHECK, Verdict::Unavailable, message, START)]
        }
    }
}

fn unusable(error: &BusError, shown: &str) -> Finding {
    let told = chain(error);
    let (verdict, remedy) = match error {
        BusError::BadUrl { .. } | BusError::UnsupportedUrl { .. } => {
            (Verdict::Misconfigured, "correct REDIS_URL")
        }
        BusError::Certificate { .. } => {
            (Verdict::Misconfigured, "name files that this user can read")
        }
        BusError::TooOld { .. } => (Verdict::Unavailable, "upgrade it to 7.0 or later"),
        BusError::Log(LogError::Untrusted { .. }) => {
            (Verdict::Misconfigured, "correct the certificates")
        }
        BusError::Log(LogError::Refused { .. }) => {
            (Verdict::Misconfigured, "correct user and password, in REDIS_URL or REDIS_PASSWORD")
        }
        _ => (Verdict::Unavailable, START),
    };
    Finding::new(CHECK, verdict, format!("Redis at {shown} cannot be used: {told}"), remedy)
}

fn judge(about: &About, config: &Config) -> Vec<Finding> {
    let log = &about.log;
    let mut findings = vec![Finding::good(CHECK, format!("{} at {log}", about.capabilities))];
    let mut find = |verdict, message: &str, remedy: &str| {
        findings.push(Finding::new(CHECK, verdict, message, remedy));
    };
    if about.is_replica == Some(true) {
        find(
            Verdict::Unavailable,
            "this Redis is a replica, to which nothing can be appended",
            "let REDIS_URL name the master, or the sentinels (redis-sentinel://)",
        );
    }
    if about.aof == Some(false) {
        find(
            Verdict::Warning,
            "Redis keeps no append-only file, so a crash of Redis loses accepted messages",
            "set `appendonly yes` in redis.conf",
        );
    } else if about.appendfsync.as_deref() == Some("no") {
        find(
            Verdict::Warning,
            "Redis leaves it to the system when its append-only file reaches the disk, so a power cut loses up to half a minute of accepted messages",
            "set `appendfsync everysec`, or `always`",
        );
    }
    if about.eviction.as_deref().is_some_and(|policy| policy != "noeviction") {
        find(
            Verdict::Warning,
            "Redis may evict keys when memory runs out, streams and nonces included",
            "set `maxmemory-policy noeviction`",
        );
    }
    for class in asked(config) {
        let (verdict, message, remedy) = match durability(about, class) {
            Some(finding) => finding,
            None => continue,
        };
        find(verdict, &message, remedy);
    }
    if let Some(time_ms) = about.time_ms {
        findings.push(clock::against(now_unix_ms(), time_ms));
    }
    findings
}

/// Each durability that some stream asks for, once.
fn asked(config: &Config) -> Vec<Durability> {
    let mut asked: Vec<Durability> = Vec::new();
    for class in Stream::ALL.map(|stream| config.durability.of(stream)) {
        if !asked.contains(&class) {
            asked.push(class);
        }
    }
    asked
}

fn durability(about: &About, class: Durability) -> Option<(Verdict, String, &'static str)> {
    let wanted = match class {
        Durability::None | Durability::Fsync => return None,
        Durability::Wait { replicas } => replicas,
        Durability::WaitAof { .. } if !about.capabilities.waitaof => {
            let message =
                format!("OONA_DURABILITY asks for {class}, and this server has no WAITAOF");
            let remedy = "use Redis 7.2 or later, or Valkey, or ask for less";
            return Some((Verdict::Misconfigured, message, remedy));
        }
        Durability::WaitAof { .. } if about.aof == Some(false) => {
            let message =
                format!("OONA_DURABILITY asks for {class}, and there is no append-only file");
            return Some((
                Verdict::Misconfigured,
                message,
                "set `appendonly yes`, or ask for less",
            ));
        }
        Durability::WaitAof { replicas } => replicas,
    };
    let replicas = about.replicas.filter(|replicas| *replicas < wanted)?;
    let message = format!(
        "OONA_DURABILITY asks for {class}, and {replicas} replica(s) are connected, so every such publish fails after its time-out"
    );
    Some((Verdict::Warning, message, "start the replicas, or ask for less"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            log: "redis://h".to_owned(),
            capabilities: oona::Capabilities {
                server: oona::ServerKind::Redis,
                version: (7, 0, 15),
                waitaof: false,
                acked_trim: false,
                claiming_read: false,
                idempotent_append: false,
            },
            aof: Some(true),
            appendfsync: Some("everysec".to_owned()),
            eviction: None,
            is_replica: Some(false),
            replicas: Some(0),
            time_ms: Some(now_unix_ms()),
        }
    }

    #[track_caller]
    fn verdicts(about: &About, durability: &str, expected: &[Verdict]) {
        let config = Config { durability: durability.parse().unwrap(), ..Config::default() };
        let found: Vec<_> = judge(about, &config).iter().map(|finding| finding.verdict).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_redis_that_forgets_is_warned_about() {
        use Verdict::{Good, Warning};
        verdicts(&about(), "none", &[Good, Good]);
        let forgetful =
            About { aof: Some(false), eviction: Some("allkeys-lru".to_owned()), ..about() };
        verdicts(&forgetful, "none", &[Good, Warning, Warning, Good]);
        let lazy = About { appendfsync: Some("no".to_owned()), ..about() };
        verdicts(&lazy, "none", &[Good, Warning, Good]);
    }

    #[test]
    fn a_replica_is_no_log() {
        let replica = About { is_replica: Some(true), ..about() };
        verdicts(&replica, "none", &[Verdict::Good, Verdict::Unavailable, Verdict::Good]);
    }

    #[test]
    fn what_the_server_cannot_give_is_said_before_the_start() {
        use Verdict::{Good, Misconfigured, Warning};
        verdicts(&about(), "none,policy=wait:1", &[Good, Warning, Good]);
        verdicts(&about(), "waitaof", &[Good, Misconfigured, Good]);
        let mut newer = about();
        newer.capabilities.waitaof = true;
        verdicts(&newer, "waitaof", &[Good, Good]);
        verdicts(&newer, "waitaof:1", &[Good, Warning, Good]);
        newer.aof = Some(false);
        verdicts(&newer, "waitaof", &[Good, Warning, Misconfigured, Good]);
    }

    #[tokio::test]
    async fn an_unreachable_redis_is_unavailable_and_its_password_stays_hidden() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = format!("redis://:hunter2@127.0.0.1:{port}/0");
        let findings = check(&url, &Config::default()).await;
        assert_eq!(findings[0].verdict, Verdict::Unavailable);
        let shown = format!("{findings:?}");
        assert!(shown.contains("REDIS_URL") && !shown.contains("hunter2"), "{shown}");
    }
}
