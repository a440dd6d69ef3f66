//! The operator's commands against a Redis that a service uses.

use serde_json::Value;

use crate::redis::Server;
use crate::service::Home;
use crate::wire::{self, now_ms, prefetch_request, sign};
use crate::{Answers, REQUESTS, request};

const DEAD: &str = "oona.deadletter";

/// Runs a command on this Redis: exit code, and everything it printed.
fn run(home: &Home, redis: &Server, arguments: &[&str]) -> (i32, String) {
    let mut command = home.command(arguments);
    command.env("REDIS_URL", redis.url()).env("ESPER_LEYLINE_SECRET", wire::SECRET);
    command.env("WEATHERLIGHT_HTTP_ADDR", "127.0.0.1:9");
    let (code, text) = home.run(&mut command);
    assert!(!text.contains(wire::SECRET), "{arguments:?} shows the secret: {text}");
    (code, text)
}

fn json(home: &Home, redis: &Server, arguments: &[&str]) -> Value {
    let (code, text) = run(home, redis, arguments);
    assert_eq!(code, 0, "{arguments:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Puts an entry among the dead letters, as a consumer would.
fn bury(redis: &Server, payload: &[u8], signature: &str, reason: &str) -> String {
    let mut client = redis.client();
    let id = client.call(&[
        b"XADD",
        DEAD.as_bytes(),
        b"*",
        b"payload",
        payload,
        b"signature",
        signature.as_bytes(),
        b"reason",
        reason.as_bytes(),
        b"attempts",
        b"5",
        b"origin_stream",
        REQUESTS.as_bytes(),
        b"entry_id",
        b"1700000000000-3",
        b"group",
        b"weatherlight",
    ]);
    String::from_utf8(id.bytes().to_vec()).unwrap()
}

#[test]
fn dead_letters_come_back_and_are_answered() {
    let redis = Server::start();
    let home = Home::new();
    // Long dead: as it stands it would be refused as stale.
    let payload = prefetch_request("lazarus", "BP001", now_ms() - 3_600_000);
    let id = bury(&redis, &payload, &sign(&payload), "the disk was full");
    let forged = bury(&redis, &payload, &sign(b"something else"), "forged \u{1b}[2J");

    let list = json(&home, &redis, &["dlq", "list", "--json"]);
    assert_eq!(list["letters"].as_array().unwrap().len(), 2);
    let first = &list["letters"][0];
    assert_eq!(first["entry"]["id"], id.as_str());
    assert_eq!(first["entry"]["kind"], "kernel_prefetch_request");
    assert_eq!(first["entry"]["key"], "lazarus");
    assert_eq!(first["entry"]["mark"], "current");
    assert_eq!((&first["attempts"], &first["reason"]), (&5.into(), &"the disk was full".into()));
    let filtered = ["dlq", "list", "--json", "--reason", "DISK", "--stream", "kernel-requests"];
    let found = json(&home, &redis, &[&filtered[..], &["--since", "1h"]].concat());
    assert_eq!(found["letters"].as_array().unwrap().len(), 1);
    let (_, table) = run(&home, &redis, &["dlq", "list"]);
    assert!(table.contains("lazarus") && !table.contains('\u{1b}'), "{table}");

    let (code, shown) = run(&home, &redis, &["dlq", "show", &id, "--raw"]);
    assert_eq!(code, 0, "{shown}");
    for word in ["the disk was full", "BP001", "1700000000000-3", "fields", "  signature = "] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    let (code, text) = run(&home, &redis, &["dlq", "show", "1-1"]);
    assert_eq!(code, 65, "{text}");
    assert_eq!(run(&home, &redis, &["dlq", "list", "--stream", "nowhere"]).0, 78);

    let (code, preview) = run(&home, &redis, &["dlq", "replay", "--all", "--dry-run"]);
    assert_eq!(code, 65, "one of the two is refused: {preview}");
    assert!(preview.contains("would be replayed") && preview.contains("REFUSED"), "{preview}");
    let mut client = redis.client();
    assert_eq!(client.command(&format!("XLEN {DEAD}")).number(), 2, "a dry run changes nothing");

    let replayed = json(&home, &redis, &["dlq", "replay", &id, "--json"]);
    assert_eq!(replayed[0]["stream"], "kernel_requests");
    let (code, text) = run(&home, &redis, &["dlq", "replay", &id]);
    assert_eq!(code, 65, "it is no longer there: {text}");
    let (code, text) = run(&home, &redis, &["dlq", "replay", &forged]);
    assert_eq!(code, 65, "{text}");
    assert!(text.contains("ESPER_LEYLINE_SECRET_PREVIOUS"), "{text}");

    let service = home.serve(&redis);
    let answer = Answers::new(&redis).to("lazarus");
    assert!(matches!(answer, wire::Answer::Ready { .. }), "{answer:?}");
    assert_eq!(service.terminate().code(), Some(0));

    let (code, text) = run(&home, &redis, &["dlq", "purge", "--all"]);
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("1 dead letters") && text.contains("--yes"), "{text}");
    let purged = json(&home, &redis, &["dlq", "purge", "--all", "--yes", "--json"]);
    assert_eq!(purged[0]["dead_letter"], forged.as_str());
    assert_eq!(client.command(&format!("XLEN {DEAD}")).number(), 0);
}

#[test]
fn the_bus_is_shown_and_nothing_of_it_is_consumed() {
    let redis = Server::start();
    let home = Home::new();
    let mut client = redis.client();
    let honest = request(&mut client, "honest", "BP001");
    client.add(REQUESTS, &honest, &sign(b"something else"));
    client.command(&format!("XADD {REQUESTS} * bootstrap 1"));
    let taps = ["bus", "tap", "kernel_requests", "--from-start", "--count", "3"];
    let (code, text) = run(&home, &redis, &taps);
    assert_eq!(code, 0, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains(" kernel_prefetch_request - honest verified "), "{text}");
    assert!(lines[0].contains("BP001"), "{text}");
    assert!(lines[1].contains(" BAD-SIGNATURE "), "{text}");
    assert!(lines[2].contains(" UNSIGNED "), "{text}");
    let (_, text) = run(&home, &redis, &[&taps[..5], &["1", "--json"]].concat());
    let entry: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!((&entry["key"], &entry["mark"]), (&"honest".into(), &"current".into()));
    assert_eq!(entry["body"]["blueprint_id"], "BP001");

    // Live: what comes after it began. Of other types nothing is shown.
    let mut tap =
        home.command(&["bus", "tap", "--count", "1", "--json", "--type", "kernel-catalog-update"]);
    tap.env("REDIS_URL", redis.url()).env("ESPER_LEYLINE_SECRET", wire::SECRET);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (code, text) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = redis.client();
            let update = wire::catalog_update("BP007");
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                request(&mut client, "other", "BP002");
                client.add("oona.kernels.ready", &update, &sign(&update));
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
        });
        let ended = home.run(&mut tap);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        ended
    });
    assert_eq!(code, 0, "{text}");
    let entry: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(entry["stream"], "kernel_ready");
    assert_eq!(entry["body"]["blueprint_id"], "BP007");

    let stats = json(&home, &redis, &["bus", "stats", "--json"]);
    assert_eq!((&stats["log"], &stats["service"]), (&"redis".into(), &Value::Null));
    let of = |name: &str| {
        let streams = stats["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["stream"] == name).unwrap().clone()
    };
    let server = stats["server"].as_str().expect("the server tells its version");
    assert!(server.contains("Redis ") || server.contains("Valkey "), "{server}");
    assert_eq!(of("normal")["durability"], "none");
    assert!(of("kernel_requests")["length"].as_u64().unwrap() >= 4);
    assert_eq!(of("kernel_requests")["groups"], Value::Array(Vec::new()), "nobody made a group");
    assert_eq!(of("policy")["oldest_age_ms"], Value::Null);
    let (code, text) = run(&home, &redis, &["bus", "stats"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("kernel_requests") && text.contains("no service answers"), "{text}");
}
