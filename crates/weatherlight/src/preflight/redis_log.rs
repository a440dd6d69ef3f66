//! Redis as the log: reachable, new enough, durable, and with a clock that agrees.

use std::time::Duration;

use leyline::time::now_unix_ms;
use redis::aio::MultiplexedConnection;

use super::{Finding, Verdict, clock};
use crate::settings::masked_url;

const CHECK: &str = "log";
/// How long the whole look may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams behave as the bus needs from this version on.
const VERSION_MIN: (u32, u32) = (7, 0);

/// What Redis told about itself.
struct About {
    info: String,
    seconds_and_micros: (u64, u64),
}

pub(super) async fn check(url: &str) -> Vec<Finding> {
    let shown = masked_url(url);
    let remedy =
        "start Redis 7.0 or later there, correct REDIS_URL, or unset it to use the embedded log";
    let looked = tokio::time::timeout(CHECK_TIMEOUT, look(url)).await;
    let failure = match looked {
        Ok(Ok(about)) => return judge(&about, &shown),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", CHECK_TIMEOUT.as_secs()),
    };
    let message = format!("Redis at {shown} cannot be reached: {failure}");
    vec![Finding::new(CHECK, Verdict::Unavailable, message, remedy)]
}

async fn look(url: &str) -> redis::RedisResult<About> {
    let client = redis::Client::open(url)?;
    let mut connection: MultiplexedConnection = client.get_multiplexed_async_connection().await?;
    let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
    let seconds_and_micros = redis::cmd("TIME").query_async(&mut connection).await?;
    Ok(About { info, seconds_and_micros })
}

fn judge(about: &About, shown: &str) -> Vec<Finding> {
    let field = |name: &str| {
        let mut lines = about.info.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let version = field("redis_version").unwrap_or("0.0");
    let mut findings = Vec::new();
    if version_of(version) < VERSION_MIN {
        let message = format!("Redis at {shown} is version {version}");
        findings.push(Finding::new(
            CHECK,
            Verdict::Unavailable,
            message,
            "upgrade it to 7.0 or later",
        ));
    } else {
        findings.push(Finding::good(CHECK, format!("Redis {version} at {shown}")));
    }
    if field("aof_enabled") == Some("0") {
        findings.push(Finding::new(
            CHECK,
            Verdict::Warning,
            "Redis keeps no append-only file, so a crash of Redis loses accepted messages",
            "set `appendonly yes` in redis.conf",
        ));
    }
    let evicts = field("maxmemory").is_some_and(|bytes| bytes != "0")
        && field("maxmemory_policy").is_some_and(|policy| policy != "noeviction");
    if evicts {
        findings.push(Finding::new(
            CHECK,
            Verdict::Warning,
            "Redis may evict keys when memory runs out, streams and nonces included",
            "set `maxmemory-policy noeviction`",
        ));
    }
    let (seconds, micros) = about.seconds_and_micros;
    findings.push(clock::against(now_unix_ms(), seconds * 1000 + micros / 1000));
    findings
}

fn version_of(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(info: &str) -> Vec<Verdict> {
        let now = now_unix_ms();
        let about = About { info: info.into(), seconds_and_micros: (now / 1000, 0) };
        judge(&about, "redis://h").iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn an_old_redis_is_refused() {
        let found = verdicts("redis_version:6.2.7\r\naof_enabled:1\r\nmaxmemory:0\r\n");
        assert_eq!(found, [Verdict::Unavailable, Verdict::Good]);
    }

    #[test]
    fn a_redis_that_forgets_is_warned_about() {
        let found = verdicts(
            "redis_version:7.2.4\r\naof_enabled:0\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n",
        );
        assert_eq!(found, [Verdict::Good, Verdict::Warning, Verdict::Warning, Verdict::Good]);
    }

    #[tokio::test]
    async fn an_unreachable_redis_is_unavailable_and_its_password_stays_hidden() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let findings = check(&format!("redis://:hunter2@127.0.0.1:{port}/0")).await;
        assert_eq!(findings[0].verdict, Verdict::Unavailable);
        let shown = format!("{findings:?}");
        assert!(shown.contains("REDIS_URL") && !shown.contains("hunter2"), "{shown}");
    }
}
