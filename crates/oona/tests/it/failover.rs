//! Sentinel: three sentinels, a master that is killed, and a replica that takes over.

use std::time::{Duration, Instant};

use leyline::wire::MessagePriority;
use oona::{Bus, BusError, LogChoice, Metrics, Stream};

use crate::redis_server::RedisServer;
use crate::rig::*;

struct Sentinels {
    master: RedisServer,
    replica: RedisServer,
    sentinels: Vec<RedisServer>,
}

impl Sentinels {
    async fn start() -> Self {
        let quiet = ["--save", "", "--appendonly", "no"];
        let master = RedisServer::start_with(&quiet);
        let port = master.port().to_string();
        let mut args = vec!["--replicaof", "127.0.0.1", port.as_str()];
        args.extend(quiet);
        let replica = RedisServer::start_with(&args);
        let sentinels = (0..3).map(|_| sentinel(&port)).collect();
        let all = Self { master, replica, sentinels };
        all.wait_until_all_know_all().await;
        all
    }

    async fn wait_until_all_know_all(&self) {
        let begun = Instant::now();
        for sentinel in &self.sentinels {
            loop {
                let told: Vec<String> = sentinel.ask(&["SENTINEL", "MASTER", "main"]).await;
                let field = |name: &str| {
                    let at = told.iter().position(|word| word == name).unwrap();
                    told[at + 1].clone()
                };
                if field("num-other-sentinels") == "2" && field("num-slaves") == "1" {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "the sentinels do not find one another");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn url(&self) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port())).collect();
        format!("redis-sentinel://{}/main/0", hosts.join(","))
    }
}

/// Quick to notice; in production a sentinel waits for tens of seconds.
fn sentinel(master_port: &str) -> RedisServer {
    RedisServer::start_sentinel(&format!(
        "sentinel monitor main 127.0.0.1 {master_port} 2\n\
         sentinel down-after-milliseconds main 1000\n\
         sentinel failover-timeout main 2000\n"
    ))
}

#[tokio::test]
async fn publishing_and_consuming_go_on_after_a_failover() {
    let mut set = Sentinels::start().await;
    let config = quick(LogChoice::Redis { url: set.url() });
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    for number in 0..40 {
        publish(&bus, &state("run", number)).await;
    }
    for number in 0..20 {
        let delivery = recv(&mut reader).await;
        assert_eq!(epoch(&delivery), number);
        delivery.ack().await.unwrap();
    }
    // Replication is asynchronous: what the replica has not got is not promised.
    let offset = async |server: &RedisServer, name: &str| {
        let info: String = server.ask(&["INFO", "replication"]).await;
        let line = info.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split_once(':').unwrap().1.trim().parse::<u64>().unwrap()
    };
    let begun = Instant::now();
    let written = offset(&set.master, "master_repl_offset:").await;
    while offset(&set.replica, "slave_repl_offset:").await < written {
        assert!(begun.elapsed() < PATIENCE, "the replica does not follow");
        tokio::task::yield_now().await;
    }
    set.master.kill();
    let killed = Instant::now();

    let message = state("run", 40);
    let publishing = async {
        loop {
            let sent =
                bus.publish(Stream::Normal, MessagePriority::Critical, "test", &message).await;
            if sent.is_ok_and(|outcome| outcome.is_sent()) {
                return;
            }
            assert!(killed.elapsed() < PATIENCE, "no new master is found");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let consuming = async {
        let mut seen = Vec::new();
        while !seen.contains(&40) {
            let delivery = recv(&mut reader).await;
            seen.push(epoch(&delivery));
            // One that finds nobody is owed, and made as soon as there is a master again.
            let acknowledged = delivery.ack().await;
            assert!(matches!(acknowledged, Ok(()) | Err(BusError::Log(_))), "{acknowledged:?}");
        }
        seen
    };
    let ((), seen) = tokio::join!(publishing, consuming);
    for number in 20..=40 {
        assert!(seen.contains(&number), "{number} is lost: {seen:?}");
    }
    let role: Vec<redis::Value> = set.replica.ask(&["ROLE"]).await;
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    let about = oona::probe(&set.url(), &oona::RedisAccess::default()).await.unwrap();
    assert_eq!(about.is_replica, Some(false));
}
