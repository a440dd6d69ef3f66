//! The log as whoever collects it sees it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::bed::Bed;

const TOKEN: &str = "a token of the tests, long enough";

/// `GET /v1/logs` with or without a token.
fn logs(bed: &Bed, query: &str, token: Option<&str>) -> (u16, Value) {
    let mut stream = TcpStream::connect(bed.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let (host, token) = (bed.address, token.unwrap_or_default());
    write!(stream, "GET /v1/logs{query} HTTP/1.0\r\nHost: {host}\r\n{token}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[test]
fn every_line_is_one_json_object_with_the_same_names() {
    let bed = Bed::new();
    let mut running = bed.start(bed.command(&["serve"]).env("WEATHERLIGHT_HTTP_TOKEN", TOKEN));

    // The same lines again, for who has the token.
    assert_eq!(logs(&bed, "", None).0, 401);
    assert_eq!(logs(&bed, "", Some("another token, also long enough")).0, 403);
    let (status, tail) = logs(&bed, "", Some(TOKEN));
    assert_eq!(status, 200);
    let lines = tail["lines"].as_array().unwrap();
    let is_up = |line: &&Value| line["message"] == "service is up";
    assert_eq!(lines.iter().filter(is_up).count(), 1, "{tail}");
    let after = tail["last"].as_u64().unwrap();
    assert_eq!(after, lines.len() as u64);

    let restart = bed
        .command(&["workers", "restart", "weatherlight.telemetry"])
        .env("WEATHERLIGHT_HTTP_TOKEN", TOKEN)
        .output()
        .unwrap();
    assert_eq!(restart.status.code(), Some(0));
    let line = running.wait_for("restart asked for");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["worker"], "weatherlight.telemetry");
    let (_, more) = logs(&bed, &format!("?after={after}"), Some(TOKEN));
    let newer = more["lines"].as_array().unwrap();
    assert!(newer.contains(&line) && !newer.iter().any(|line| is_up(&line)), "{more}");

    let (_, metrics) = bed.get("/metrics");
    assert!(metrics.contains("weatherlight_log_lines_total{level=\"info\"}"), "{metrics}");
    assert!(metrics.contains("weatherlight_log_dropped_total 0"), "{metrics}");

    running.signal(Signal::TERM);
    let (code, rest) = running.end();
    assert_eq!(code, Some(0), "{rest}");
    let lines: Vec<Value> =
        rest.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for line in &lines {
        for name in ["time", "level", "target", "message"] {
            assert!(line[name].is_string(), "{name}: {line}");
        }
    }
    // Nothing is lost at the end.
    assert_eq!(lines.last().unwrap()["message"], "service has stopped", "{rest}");
}

#[test]
fn text_lines_have_no_escape_sequences_where_there_is_no_terminal() {
    let bed = Bed::new();
    let running = bed.start(&mut bed.command(&["serve", "--log-format", "text"]));
    running.signal(Signal::TERM);
    let (code, rest) = running.end();
    assert_eq!(code, Some(0), "{rest}");
    let last = rest.lines().last().unwrap();
    assert!(last.ends_with("weatherlight::service::start: service has stopped code=0"), "{last}");
    assert!(!rest.contains('\u{1b}'), "{rest:?}");
}
