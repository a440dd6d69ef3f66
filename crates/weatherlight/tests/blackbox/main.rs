//! The built program against a real Redis, from a client that shares no code with the service.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forge;
mod kill_points;
mod library;
mod operations;
mod operator;
mod rebuild;
mod redis;
mod replicas;
mod rotation;
mod service;
mod supervision;
mod wire;

use std::collections::BTreeMap;

use redis::{Client, Server, exists, get, metric};
use service::{Home, Service};
use wire::{Answer, now_ms, prefetch_request, sign};

const REQUESTS: &str = "oona.kernels.requests";

/// Reads the two answer streams as any program may: without a group, from the beginning.
struct Answers {
    client: Client,
    ready: String,
    errors: String,
}

impl Answers {
    fn new(server: &Server) -> Self {
        Self { client: server.client(), ready: "0".to_owned(), errors: "0".to_owned() }
    }

    /// The next answers, in the order of their streams; waits until there is one.
    fn next(&mut self) -> Vec<Answer> {
        let reply = self.client.call(&[
            b"XREAD",
            b"BLOCK",
            b"30000",
            b"STREAMS",
            b"oona.kernels.ready",
            b"oona.kernels.errors",
            self.ready.as_bytes(),
            self.errors.as_bytes(),
        ]);
        assert!(!reply.list().is_empty(), "no answer within 30 s");
        let mut answers = Vec::new();
        for stream in reply.list() {
            let [name, entries] = stream.list() else { panic!("XREAD answers pairs") };
            for entry in entries.list() {
                let [id, pairs] = entry.list() else { panic!("an entry is a pair") };
                let id = String::from_utf8(id.bytes().to_vec()).unwrap();
                match name.bytes() {
                    b"oona.kernels.ready" => self.ready = id,
                    _ => self.errors = id,
                }
                let pairs: BTreeMap<&[u8], &[u8]> =
                    pairs.list().chunks(2).map(|pair| (pair[0].bytes(), pair[1].bytes())).collect();
                answers.push(wire::answer(pairs[&b"payload"[..]], pairs[&b"signature"[..]]));
            }
        }
        answers
    }

    /// Reads on until the request is answered.
    fn to(&mut self, wanted: &str) -> Answer {
        loop {
            for answer in self.next() {
                match &answer {
                    Answer::Ready { request, .. } | Answer::Failed { request, .. } => {
                        if request == wanted {
                            return answer;
                        }
                    }
                    Answer::CatalogUpdate { .. } => {}
                }
            }
        }
    }
}

fn request(client: &mut Client, id: &str, blueprint: &str) -> Vec<u8> {
    let payload = prefetch_request(id, blueprint, now_ms());
    client.add(REQUESTS, &payload, &sign(&payload));
    payload
}

fn refused(service: &Service, reason: &str) -> f64 {
    metric(service.http, "oona_refused_total", &[&format!("reason=\"{reason}\"")])
}

#[test]
fn kernels_are_served_and_what_is_not_authentic_is_not() {
    let redis = Server::start();
    let home = Home::new();
    let mut client = redis.client();
    // Sent before the service ever ran: its group begins at the beginning of the stream.
    request(&mut client, "before-boot", "BP009");
    let service = home.serve(&redis);
    let mut answers = Answers::new(&redis);

    let Answer::Ready { blueprint, path, checksum, guard, .. } = answers.to("before-boot") else {
        panic!("BP009 is graftable and therefore served");
    };
    assert_eq!(blueprint, "BP009");
    assert!(exists(&path), "{path} is an absolute path to a file");
    assert_eq!(wire::sha256_hex(&std::fs::read(&path).unwrap()), checksum);
    assert_eq!(guard.len(), 64, "the guard digest is a SHA-256: {guard}");

    request(&mut client, "unknown", "BP999");
    let Answer::Failed { reason, blueprint, .. } = answers.to("unknown") else {
        panic!("there is no BP999");
    };
    assert_eq!((reason.as_str(), blueprint.as_str()), ("missing_artifact", "BP999"));

    // Five kinds of entries that must not be answered, then an honest one behind them.
    let forged = prefetch_request("forged", "BP001", now_ms());
    client.add(REQUESTS, &forged, &sign(b"something else"));
    client.add(REQUESTS, &forged, "no Base64 \u{fffd}");
    let honest = request(&mut client, "honest", "BP001");
    client.add(REQUESTS, &honest, &sign(&honest));
    let stale = prefetch_request("stale", "BP001", now_ms() - 61_000);
    client.add(REQUESTS, &stale, &sign(&stale));
    let early = prefetch_request("early", "BP001", now_ms() + 3_600_000);
    client.add(REQUESTS, &early, &sign(&early));
    client.command(&format!("XADD {REQUESTS} * bootstrap 1"));
    request(&mut client, "last", "BP002");
    let mut seen = Vec::new();
    while !seen.iter().any(|id: &String| id == "last") || !seen.iter().any(|id| id == "honest") {
        for answer in answers.next() {
            if let Answer::Ready { request, .. } | Answer::Failed { request, .. } = answer {
                seen.push(request);
            }
        }
    }
    seen.sort();
    assert_eq!(seen, ["honest", "last"], "only authentic, fresh, first-time requests are answered");
    assert_eq!(refused(&service, "bad_signature"), 2.0);
    assert_eq!(refused(&service, "replay"), 1.0);
    assert_eq!(refused(&service, "stale"), 1.0);
    assert_eq!(refused(&service, "from_the_future"), 1.0);
    let foreign = metric(service.http, "oona_consume_total", &["outcome=\"foreign\""]);
    assert_eq!(foreign, 1.0, "another program's entry is counted and dropped");

    assert_eq!(get(service.http, "/livez").0, 200);
    assert_eq!(get(service.http, "/readyz").0, 200);
    let (status, health) = get(service.http, "/healthz");
    assert_eq!(status, 200);
    for worker in ["urza.prefetch", "kasmina.ready", "tamiyo.policy", "tezzeret.forge"] {
        assert!(health.contains(worker), "{worker} is reported in {health}");
    }
    assert!(get(service.http, "/").1.contains("<html"), "there is a page to look at");

    assert_eq!(service.terminate().code(), Some(0), "a clean drain ends with 0");
    // Refused or answered, every entry was acknowledged.
    let pending = client.command(&format!("XPENDING {REQUESTS} weatherlight"));
    assert_eq!(pending.list()[0].number(), 0);
}

#[test]
fn a_killed_service_answers_everything_after_its_restart() {
    const COUNT: usize = 200;
    let redis = Server::start();
    let home = Home::new();
    let service = home.serve(&redis);
    let mut client = redis.client();
    let mut answers = Answers::new(&redis);
    request(&mut client, "warm", "BP001");
    answers.to("warm");

    for index in 0..COUNT {
        request(&mut client, &format!("request-{index}"), &format!("BP{:03}", index % 18 + 1));
        if index == COUNT / 2 {
            service_is_working(&mut answers);
        }
    }
    service.kill();
    let service = home.serve(&redis);

    let mut answered: BTreeMap<String, Vec<Answer>> = BTreeMap::new();
    let mut all = Answers::new(&redis);
    while (0..COUNT).any(|index| !answered.contains_key(&format!("request-{index}"))) {
        for answer in all.next() {
            if let Answer::Ready { request, .. } | Answer::Failed { request, .. } = &answer {
                answered.entry(request.clone()).or_default().push(answer);
            }
        }
    }
    for (request, answers) in &answered {
        assert!(
            answers.iter().all(|answer| answer == &answers[0]),
            "{request} got different answers: {answers:?}"
        );
        assert!(matches!(answers[0], Answer::Ready { .. }), "{request}: {:?}", answers[0]);
    }
    assert_eq!(refused(&service, "replay"), 0.0, "a redelivery is no replay");
    assert_eq!(service.terminate().code(), Some(0));
}

fn service_is_working(answers: &mut Answers) {
    assert!(!answers.next().is_empty());
}

#[test]
fn a_replay_that_waits_for_a_restart_is_still_refused() {
    let redis = Server::start();
    let home = Home::new();
    let mut client = redis.client();
    let service = home.serve(&redis);
    let mut answers = Answers::new(&redis);
    let captured = request(&mut client, "captured", "BP001");
    answers.to("captured");
    service.kill();

    client.add(REQUESTS, &captured, &sign(&captured));
    let service = home.serve(&redis);
    request(&mut client, "after", "BP001");
    let answer = answers.to("after");
    assert!(matches!(answer, Answer::Ready { .. }), "{answer:?}");
    assert_eq!(refused(&service, "replay"), 1.0);
    assert_eq!(service.terminate().code(), Some(0));
}

/// Name, arguments, environment, exit code, and what the message says.
type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a [&'a str]);

#[test]
fn faults_stop_the_start_with_one_message_and_a_remedy() {
    let home = Home::new();
    let secret = ("ESPER_LEYLINE_SECRET", wire::SECRET);
    let closed = format!("redis://127.0.0.1:{}/0", redis::free_port());
    std::fs::write(home.directory.path().join("file"), "not a directory").unwrap();
    std::fs::write(home.directory.path().join("bad.toml"), "[oona]\nmax_atempts = 3\n").unwrap();
    let cases: [Case<'_>; 5] = [
        ("no secret", &["serve"], &[], 78, &["ESPER_LEYLINE_SECRET"]),
        (
            "weak secret",
            &["serve"],
            &[("ESPER_LEYLINE_SECRET", "short")],
            78,
            &["ESPER_LEYLINE_SECRET", "16"],
        ),
        ("no Redis", &["serve"], &[secret, ("REDIS_URL", &closed)], 69, &["REDIS_URL"]),
        (
            "no directory",
            &["serve"],
            &[secret, ("URZA_ARTIFACT_DIR", "file/artifacts")],
            78,
            &["URZA_ARTIFACT_DIR"],
        ),
        (
            "unknown key",
            &["serve", "--config", "bad.toml"],
            &[secret],
            78,
            &["bad.toml", "2", "max_atempts", "max_attempts"],
        ),
    ];
    for (name, arguments, environment, code, words) in cases {
        let mut command = home.command(arguments);
        command.env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{}", redis::free_port()));
        command.envs(environment.iter().copied());
        let (found, text) = home.run(&mut command);
        assert_eq!(found, code, "{name}: {text}");
        for word in words {
            assert!(text.contains(word), "{name}: {word} is missing in: {text}");
        }
        assert!(!text.contains(wire::SECRET), "{name} shows the secret: {text}");
    }
}
