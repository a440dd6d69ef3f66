//! A scripted server for what no server at hand has: Redis 8.2 and its trimming of the acknowledged.
//! It speaks enough of the protocol for a bus to open and to trim, and writes down what it was asked.

use std::sync::{Arc, Mutex};

use oona::{Bus, LogChoice, Metrics, Stream};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::*;

/// What the stub makes of `ACKED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acked {
    Known,
    /// As after a failover to an older server.
    Refused,
}

/// How far its clock is ahead of ours, in milliseconds.
const NO_LEAD: u64 = 0;

type Asked = Arc<Mutex<Vec<Vec<String>>>>;

/// Serves until the test ends.
async fn serve(listener: TcpListener, acked: Acked, lead_ms: u64, asked: Asked) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(talk(stream, acked, lead_ms, Arc::clone(&asked)));
    }
}

async fn talk(stream: TcpStream, acked: Acked, lead_ms: u64, asked: Asked) {
    let mut stream = BufReader::new(stream);
    while let Some(words) = command(&mut stream).await {
        let answer = answer(&words, acked, lead_ms);
        asked.lock().unwrap().push(words);
        stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
    }
}

/// One array of strings.
async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let count = head(stream).await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; head(stream).await? + 2];
        stream.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Some(words)
}

/// `*3` or `$5`.
async fn head(stream: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim().parse().ok()
}

fn answer(words: &[String], acked: Acked, lead_ms: u64) -> String {
    let now = now_ms() + lead_ms;
    let is_acked = words.last().is_some_and(|word| word == "ACKED");
    match words[0].as_str() {
        "INFO" => {
            let info = "# Server\r\nredis_version:8.2.1\r\naof_enabled:1\r\nrole:master\r\n";
            format!("${}\r\n{info}\r\n", info.len())
        }
        "COMMAND" => "*2\r\n*1\r\n$7\r\nwaitaof\r\n*1\r\n$7\r\nxackdel\r\n".to_owned(),
        "CONFIG" => "*2\r\n$11\r\nappendfsync\r\n$6\r\nalways\r\n".to_owned(),
        "TIME" => format!("*2\r\n$10\r\n{}\r\n$1\r\n0\r\n", now / 1000),
        // No groups: nobody needs anything, and what is old enough is trimmed.
        "XINFO" => "*0\r\n".to_owned(),
        "XADD" => format!("$15\r\n{now}-0\r\n"),
        "XLEN" => ":3\r\n".to_owned(),
        "XRANGE" => "*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n".to_owned(),
        "XTRIM" if is_acked && acked == Acked::Refused => "-ERR syntax error\r\n".to_owned(),
        "XTRIM" => ":3\r\n".to_owned(),
        _ => "+OK\r\n".to_owned(),
    }
}

/// The trims that two rounds of upkeep over one stream asked for.
async fn trims(acked: Acked) -> Vec<Vec<String>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/0", listener.local_addr().unwrap());
    let asked = Asked::default();
    let work = async {
        let config = quick(LogChoice::Redis { url });
        let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
        let capabilities = bus.capabilities().unwrap();
        assert!(capabilities.acked_trim && capabilities.waitaof, "{capabilities}");
        assert_eq!(capabilities.version, (8, 2, 1));
        for _ in 0..2 {
            bus.sweep(Stream::Normal).await.unwrap();
        }
    };
    tokio::select! {
        () = serve(listener, acked, NO_LEAD, Arc::clone(&asked)) => unreachable!("it serves for ever"),
        () = work => {}
    }
    let asked = asked.lock().unwrap();
    let trims = asked.iter().filter(|words| words[0] == "XTRIM");
    trims.map(|words| words.iter().filter(|word| !word.contains('-')).cloned().collect()).collect()
}

const PLAIN: [&str; 3] = ["XTRIM", "oona.normal", "MINID"];
const ACKED: [&str; 4] = ["XTRIM", "oona.normal", "MINID", "ACKED"];

#[tokio::test]
async fn a_server_that_knows_what_is_acknowledged_is_asked_to_spare_the_rest() {
    let found = trims(Acked::Known).await;
    assert_eq!(found, [ACKED, ACKED]);
}

#[tokio::test]
async fn a_server_that_refuses_is_asked_once() {
    let found = trims(Acked::Refused).await;
    assert_eq!(found.len(), 3);
    assert_eq!(found[0], ACKED);
    assert_eq!(found[1..], [PLAIN, PLAIN]);
}

/// Readers judge a message's age by the log's clock, so that is the one it is stamped by: else a step of this machine's
/// clock, here seen from the other side, would have everything refused that it sends.
#[tokio::test]
async fn messages_are_stamped_by_the_logs_clock() {
    const HOUR_MS: u64 = 3_600_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/0", listener.local_addr().unwrap());
    let asked = Asked::default();
    let work = async {
        let config = quick(LogChoice::Redis { url });
        let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
        bus.ping().await.unwrap();
        let message = state("run", 1);
        let sent = bus
            .publish(Stream::Normal, leyline::wire::MessagePriority::Critical, "test", &message)
            .await;
        assert!(sent.unwrap().is_sent());
    };
    tokio::select! {
        () = serve(listener, Acked::Known, HOUR_MS, Arc::clone(&asked)) => unreachable!("it serves for ever"),
        () = work => {}
    }
    let asked = asked.lock().unwrap();
    let words = asked.iter().find(|words| words[0] == "XADD").unwrap();
    let payload = words.iter().find(|word| word.contains("oona-issued-at-ms")).unwrap();
    let (_, behind) = payload.split_once("oona-issued-at-ms").unwrap();
    let issued: String = behind
        .chars()
        .skip_while(|one| !one.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let ahead = issued.parse::<u64>().unwrap() - now_ms();
    assert!((HOUR_MS - 60_000..=HOUR_MS + 1_000).contains(&ahead), "{ahead} ms ahead");
}
