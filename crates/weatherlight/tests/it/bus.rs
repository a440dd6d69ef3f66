//! The operator's commands on the embedded log: with nobody on it, and with the service that holds it.

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{KernelPrefetchRequest, MessagePriority};
use oona::{Bus, Config, ConsumerSpec, LogChoice, Metrics, Stream};
use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{Bed, SECRET};

const TOKEN: &str = "a token of the tests, long enough";

/// A bus on the log that the service will use.
async fn open(bed: &Bed) -> Bus {
    let path = bed.path().join("var/oona/log.redb");
    let config = Config { log: LogChoice::Embedded { path }, attempts_max: 1, ..Config::default() };
    let keyring = Keyring::new(&Secret::new(SECRET), None);
    Bus::open(config, keyring, Metrics::detached()).await.unwrap()
}

fn wanted(id: &str) -> Message {
    let issued_at = Some(leyline::time::timestamp(leyline::time::now_unix_ms()));
    let (request_id, training_run_id) = (id.to_owned(), "run".to_owned());
    let blueprint_id = "BP999".to_owned();
    KernelPrefetchRequest { request_id, blueprint_id, training_run_id, issued_at }.into()
}

/// Requests that failed their only attempt, as the service's own group.
#[tokio::main(flavor = "current_thread")]
async fn bury(bed: &Bed, ids: &[&str]) {
    let bus = open(bed).await;
    let mut consumer = bus.consumer(ConsumerSpec::new(Stream::KernelRequests, "weatherlight"));
    for id in ids {
        let message = wanted(id);
        let sent = bus.publish(Stream::KernelRequests, MessagePriority::Normal, "test", &message);
        assert!(sent.await.unwrap().is_sent());
        consumer.recv().await.unwrap().fail("the disk was full").await.unwrap();
    }
    bus.flush().await.unwrap();
}

fn run(bed: &Bed, token: Option<&str>, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = bed.command(arguments);
    token.map(|token| command.env("WEATHERLIGHT_HTTP_TOKEN", token));
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains(SECRET) && !text.contains(TOKEN), "{arguments:?}: {text}");
    (output.status.code(), text)
}

fn json(bed: &Bed, token: Option<&str>, arguments: &[&str]) -> Value {
    let (code, text) = run(bed, token, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn ids(list: &Value) -> Vec<String> {
    let letters = list["letters"].as_array().unwrap();
    letters.iter().map(|letter| letter["entry"]["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn with_nobody_on_the_log_the_file_is_opened() {
    let bed = Bed::new();
    let (code, text) = run(&bed, None, &["dlq", "list"]);
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("log.redb") && text.contains("REDIS_URL"), "{text}");
    assert!(!bed.path().join("var/oona").exists(), "looking makes no log");

    bury(&bed, &["one", "two"]);
    let found = ids(&json(&bed, None, &["dlq", "list", "--json"]));
    let [first, second] = found.as_slice() else { panic!("{found:?}") };
    let (code, text) = run(&bed, None, &["dlq", "show", first, "--raw"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the disk was full") && text.contains("  payload = "), "{text}");
    let replayed = json(&bed, None, &["dlq", "replay", first, "--json"]);
    assert_eq!(replayed[0]["stream"], "kernel_requests");
    let purged = json(&bed, None, &["dlq", "purge", second, "--yes", "--json"]);
    assert_eq!(purged[0]["outcome"], "purged");
    assert_eq!(ids(&json(&bed, None, &["dlq", "list", "--json"])), [""; 0]);

    let (code, text) = run(&bed, None, &["bus", "tap"]);
    assert_eq!(code, Some(69), "nothing can happen: {text}");
    assert!(text.contains("--from-start"), "{text}");
    let (code, text) = run(&bed, None, &["bus", "tap", "--from-start"]);
    assert_eq!(code, Some(0), "it ends where the log ends: {text}");
    assert_eq!(text.lines().count(), 3, "two requests and one replayed: {text}");
    let stats = json(&bed, None, &["bus", "stats", "--json"]);
    assert_eq!(stats["log"], "embedded");
    assert_eq!(stats["streams"][4]["groups"][0]["lag"], 1, "{stats}");
}

#[test]
fn a_service_that_holds_the_log_is_asked() {
    let bed = Bed::new();
    bury(&bed, &["one", "two", "three"]);
    let running = bed.start(bed.command(&["serve"]).env("WEATHERLIGHT_HTTP_TOKEN", TOKEN));

    let found = ids(&json(&bed, None, &["dlq", "list", "--json", "--limit", "2"]));
    assert_eq!(found.len(), 2);
    let after = json(&bed, None, &["dlq", "list", "--json", "--after", &found[1]]);
    assert_eq!(ids(&after).len(), 1);
    let (code, text) = run(&bed, None, &["dlq", "show", &found[0]]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the disk was full") && text.contains("BP999"), "{text}");

    // Changes, and the bytes as they were signed, need the token.
    for arguments in [
        &["dlq", "replay", &found[0]][..],
        &["dlq", "purge", &found[0], "--yes"],
        &["dlq", "show", &found[0], "--raw"],
    ] {
        let (code, text) = run(&bed, None, arguments);
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains("WEATHERLIGHT_HTTP_TOKEN"), "{text}");
        let (code, text) = run(&bed, Some("another token, also long enough"), arguments);
        assert_eq!(code, Some(78), "{text}");
    }
    let (code, text) = run(&bed, Some(TOKEN), &["dlq", "show", &found[0], "--raw"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("  signature = "), "{text}");
    assert_eq!(bed.get(&format!("/v1/dlq/{}", found[0])).0, 200);
    assert_eq!(bed.get(&format!("/v1/dlq/{}?raw=true", found[0])).0, 401);

    let replayed = json(&bed, Some(TOKEN), &["dlq", "replay", &found[0], "--json"]);
    assert_eq!(replayed[0]["stream"], "kernel_requests");
    let (code, text) = run(&bed, Some(TOKEN), &["dlq", "replay", &found[0]]);
    assert_eq!(code, Some(65), "{text}");
    // There is no BP999, and the service says so: the replayed request was handled.
    let taps = ["bus", "tap", "kernel_errors", "--from-start", "--count", "1", "--json"];
    let answer = json(&bed, None, &taps);
    assert_eq!(answer["body"]["request_id"], "one");
    assert_eq!(answer["mark"], "current");

    let purged = json(&bed, Some(TOKEN), &["dlq", "purge", "--all", "--yes", "--json"]);
    assert_eq!(purged.as_array().unwrap().len(), 2);
    let stats = json(&bed, None, &["bus", "stats", "--json"]);
    assert_eq!((&stats["dead_letters"], &stats["log"]), (&0.into(), &"embedded".into()));
    assert!(stats["service"]["breakers"].as_array().is_some_and(|all| !all.is_empty()), "{stats}");
    assert!(stats["keys"][0]["verified"].as_u64().unwrap() > 0, "{stats}");
    let (code, text) = run(&bed, None, &["bus", "stats"]);
    assert_eq!(code, Some(0), "{text}");
    for word in ["kernel_requests", "weatherlight-", "oona.publish", "current"] {
        assert!(text.contains(word), "{word} in {text}");
    }

    running.signal(Signal::TERM);
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_log_held_by_somebody_who_does_not_answer_is_named() {
    let bed = Bed::new();
    bury(&bed, &["one"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bus = runtime.block_on(open(&bed));
    let (code, text) = run(&bed, None, &["dlq", "list"]);
    assert_eq!(code, Some(69), "{text}");
    let holder = std::process::id().to_string();
    for word in ["log.redb", &holder, "WEATHERLIGHT_HTTP_ADDR"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    drop(bus);
}
