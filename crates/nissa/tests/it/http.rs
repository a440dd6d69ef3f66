//! Probes, metrics, the page, changes, and who is refused.

use std::time::Duration;

use nissa::{
    BreakerHealth, BreakerState, ChangeOutcome, ControlRefused, Health, HttpConfig, LaneHealth,
    RecentRestart, ReloadReport, SettingChange, SystemMode, Token, WorkerAction, WorkerHealth,
    WorkerState,
};

use crate::support::{ask, get, healthy, serve};

const TOKEN: &str = "0123456789abcdef0123";

/// Path, headers, expected status.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);

#[tokio::test]
async fn a_reload_is_asked_for_with_the_token_in_force_and_answered_with_its_report() {
    let (rotation, token) = tokio::sync::watch::channel(Some(Token::new(TOKEN).unwrap()));
    let config = HttpConfig { token: token.into(), ..HttpConfig::default() };
    serve(config, |mut server| async move {
        let bearer = |token: &str| format!("Bearer {token}");
        let ask_with = async |token: String| {
            ask(server.address, "POST", "/v1/reload", &[("authorization", &token)]).await
        };
        assert_eq!(ask(server.address, "POST", "/v1/reload", &[]).await.status, 401);
        let change = SettingChange {
            setting: "ESP_LOG_LEVEL".to_owned(),
            was: Some("INFO".to_owned()),
            now: Some("DEBUG".to_owned()),
            origin: "weatherlight.toml:2:9".to_owned(),
            outcome: ChangeOutcome::TookEffect,
        };
        let good = ReloadReport { applied: true, changes: vec![change], faults: vec![] };
        let reports = [good.clone(), ReloadReport::default()];
        for (report, status) in reports.into_iter().zip([200, 422]) {
            let answered = async {
                server.reloads.recv().await.unwrap().send(report.clone()).unwrap();
            };
            let (answer, ()) = tokio::join!(ask_with(bearer(TOKEN)), answered);
            assert_eq!(answer.status, status);
            assert_eq!(serde_json::from_str::<ReloadReport>(&answer.body).unwrap(), report);
        }
        // Another token from now on; then none.
        let other = "another token, long enough";
        rotation.send_replace(Some(Token::new(other).unwrap()));
        assert_eq!(ask_with(bearer(TOKEN)).await.status, 403);
        drop(server.reloads);
        assert_eq!(ask_with(bearer(other)).await.status, 503);
        rotation.send_replace(None);
        assert_eq!(ask_with(bearer(other)).await.status, 403);
    })
    .await;
}

fn with_token() -> HttpConfig {
    HttpConfig { token: Token::new(TOKEN).unwrap().into(), ..HttpConfig::default() }
}

#[tokio::test]
async fn liveness_follows_the_supervisors_loop() {
    serve(HttpConfig::default(), |server| async move {
        assert_eq!(get(server.address, "/livez").await.status, 200);
        server.health.send_modify(|health| health.at -= Duration::from_secs(60));
        let silent = get(server.address, "/livez").await;
        assert_eq!((silent.status, silent.json()["alive"].as_bool()), (503, Some(false)));
        let ready = get(server.address, "/readyz").await;
        assert_eq!(ready.status, 503, "who is silent is not ready either");

        server.health.send_replace(Health { hung: vec!["urza.prefetch".to_owned()], ..healthy() });
        let hung = get(server.address, "/livez").await;
        assert_eq!((hung.status, hung.json()["hung"][0].as_str()), (503, Some("urza.prefetch")));
    })
    .await;
}

#[tokio::test]
async fn readiness_says_why_not() {
    serve(HttpConfig::default(), |server| async move {
        assert_eq!(get(server.address, "/readyz").await.status, 200);
        server.health.send_replace(Health::booting("1", "redis"));
        let booting = get(server.address, "/readyz").await;
        assert_eq!(booting.status, 503);
        assert_eq!(booting.json()["reasons"][0], "the service is booting");
    })
    .await;
}

#[tokio::test]
async fn health_is_the_whole_picture() {
    let picture = Health {
        system_mode: SystemMode::Degraded,
        lost: vec!["compiling".to_owned()],
        workers: vec![WorkerHealth {
            name: "tezzeret.forge".to_owned(),
            state: WorkerState::BackingOff,
            critical: false,
            restarts: 4,
            backoff_s: 2.5,
            last_error: Some("disk full".to_owned()),
            recent_restarts: vec![RecentRestart {
                uptime_s: 12.5,
                unix_ms: 1_700_000_000_000,
                reason: "write: disk full".to_owned(),
                causes: vec!["write".to_owned(), "disk full".to_owned()],
            }],
            heartbeat_age_ms: None,
            last_phase: Some("compiling".to_owned()),
            depends_on: vec!["urza".to_owned()],
            ..WorkerHealth::new("", WorkerState::Running)
        }],
        breakers: vec![BreakerHealth { name: "publish".to_owned(), state: BreakerState::HalfOpen }],
        lanes: vec![LaneHealth {
            stream: "oona.normal".to_owned(),
            depth: 7,
            oldest_ms: Some(1_250),
        }],
        ..healthy()
    };
    serve(HttpConfig::default(), |server| async move {
        server.health.send_replace(picture.clone());
        let answer = get(server.address, "/healthz").await;
        let json = answer.json();
        assert_eq!(json["system_mode"], "degraded");
        assert_eq!(json["workers"][0]["state"], "backing_off");
        assert_eq!(json["workers"][0]["recent_restarts"][0]["uptime_s"], 12.5);
        assert_eq!(json["workers"][0]["recent_restarts"][0]["reason"], "write: disk full");
        assert_eq!(json["workers"][0]["recent_restarts"][0]["causes"][1], "disk full");
        assert_eq!(json["lanes"][0]["oldest_ms"], 1_250);
        assert_eq!(json["alerts_active"], 0);
        let read: Health = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(Health { at: picture.at, ..read }, picture);
    })
    .await;
}

#[tokio::test]
async fn metrics_are_open_metrics_and_count_requests() {
    serve(HttpConfig::default(), |server| async move {
        assert_eq!(get(server.address, "/nowhere").await.status, 404);
        let answer = get(server.address, "/metrics").await;
        assert!(answer.headers["content-type"].starts_with("application/openmetrics-text"));
        assert!(answer.body.ends_with("# EOF\n"));
        let line = "nissa_http_requests_total{endpoint=\"unknown\",answer=\"refused\"} 1";
        assert!(answer.body.contains(line), "{}", answer.body);
        assert!(!answer.body.contains("_total_total"));
    })
    .await;
}

#[tokio::test]
async fn an_empty_service_has_a_state() {
    serve(HttpConfig::default(), |server| async move {
        let state = get(server.address, "/v1/state?run=none").await.json();
        assert!(state["run"].is_null());
        assert_eq!(state["kernels"]["requested"], 0);
        let summary = get(server.address, "/metrics/summary").await.json();
        assert_eq!(summary, serde_json::json!({ "slo": {}, "alerts": {} }));
        assert_eq!(get(server.address, "/v1/sources").await.json(), serde_json::json!({}));
    })
    .await;
}

#[tokio::test]
async fn the_page_is_one_file_that_talks_to_nobody_else() {
    serve(HttpConfig::default(), |server| async move {
        let answer = get(server.address, "/").await;
        assert!(answer.headers["content-type"].starts_with("text/html"));
        let policy = &answer.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(policy.matches("sha256-").count(), 2);
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        let foreign = answer.body.replace("http://www.w3.org/2000/svg", "");
        for never in ["http://", "https://", "//cdn", "src=", "@import", "innerHTML", " style="] {
            assert!(!foreign.contains(never), "the page contains {never}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_needs_the_token() {
    for path in ["/v1/workers/urza.prefetch/restart", "/v1/workers/urza.prefetch/park"] {
        changes_only_with_the_token(path).await;
    }
}

async fn changes_only_with_the_token(path: &'static str) {
    serve(HttpConfig::default(), |server| async move {
        let bearer = format!("Bearer {TOKEN}");
        let off = ask(server.address, "POST", path, &[("authorization", &bearer)]).await;
        assert_eq!((off.status, off.json()["reason"].as_str()), (403, Some("changes_off")));
    })
    .await;
    serve(with_token(), |server| async move {
        let none = ask(server.address, "POST", path, &[]).await;
        assert_eq!((none.status, none.headers["www-authenticate"].as_str()), (401, "Bearer"));
        for wrong in ["Basic 0123456789abcdef0123", "Bearer"] {
            let answer = ask(server.address, "POST", path, &[("authorization", wrong)]).await;
            assert_eq!(answer.status, 401, "{wrong}");
        }
        for wrong in ["Bearer x", "Bearer 0123456789abcdef012", "bearer 0123456789ABCDEF0123"] {
            let answer = ask(server.address, "POST", path, &[("authorization", wrong)]).await;
            assert_eq!(answer.status, 403, "{wrong}");
        }
        assert_eq!(get(server.address, path).await.status, 405);
        assert!(server.requests.is_empty(), "nothing may have reached the supervisor");
    })
    .await;
}

#[tokio::test]
async fn with_the_token_the_supervisor_is_asked() {
    serve(with_token(), |mut server| async move {
        let bearer = format!("Bearer {TOKEN}");
        let (restart, park) = (WorkerAction::Restart, WorkerAction::Park);
        let critical = || ControlRefused::Critical { name: "urza.prefetch".to_owned() };
        for (name, action, answer, status) in [
            ("urza.prefetch", restart, Ok(()), 202),
            ("nobody", restart, Err(ControlRefused::UnknownWorker { name: "nobody".into() }), 404),
            ("late", restart, Err(ControlRefused::Stopping), 503),
            ("tezzeret.forge", park, Ok(()), 202),
            ("urza.prefetch", park, Err(critical()), 409),
        ] {
            let verb = if action == park { "park" } else { "restart" };
            let path = format!("/v1/workers/{name}/{verb}");
            let headers = [("authorization", bearer.as_str())];
            let asked = ask(server.address, "POST", &path, &headers);
            let answered = async {
                let request = server.requests.recv().await.unwrap();
                assert_eq!((request.worker.as_str(), request.action), (name, action));
                request.answer.send(answer).unwrap();
            };
            let (response, ()) = tokio::join!(asked, answered);
            assert_eq!(response.status, status, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_supervisor_that_does_not_answer_is_not_waited_for_for_ever() {
    let config = HttpConfig { request_timeout: Duration::from_millis(50), ..with_token() };
    serve(config, |server| async move {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("authorization", bearer.as_str())];
        let answer = ask(server.address, "POST", "/v1/workers/x/restart", &headers).await;
        assert_eq!(answer.status, 504);
        drop(server.requests);
    })
    .await;
}

#[tokio::test]
async fn other_sites_are_refused() {
    let config = HttpConfig { hosts: vec!["grow.example".to_owned()], ..HttpConfig::default() };
    serve(config, |server| async move {
        let own = format!("http://{}", server.address);
        let link = ("sec-fetch-mode", "navigate");
        let cases: [Case; 11] = [
            ("/v1/state", &[("origin", &own)], 200),
            ("/v1/state", &[("origin", "http://evil.example")], 403),
            ("/v1/state", &[("origin", "null")], 403),
            ("/v1/state", &[("sec-fetch-site", "same-origin")], 200),
            ("/v1/state", &[("sec-fetch-site", "none")], 200),
            ("/v1/events", &[("sec-fetch-site", "cross-site")], 403),
            ("/v1/state", &[("sec-fetch-site", "same-site")], 403),
            ("/", &[("sec-fetch-site", "cross-site"), link], 200),
            ("/v1/state", &[("sec-fetch-site", "cross-site"), link], 403),
            ("/livez", &[("host", "rebound.example:9100")], 421),
            ("/livez", &[("host", "grow.example:9100")], 200),
        ];
        for (path, headers, status) in cases {
            let answer = ask(server.address, "GET", path, headers).await;
            assert_eq!(answer.status, status, "{path} {headers:?}");
        }
        for host in ["localhost", "localhost:1", "[::1]:9100", "127.0.0.1"] {
            let answer = ask(server.address, "GET", "/livez", &[("host", host)]).await;
            assert_eq!(answer.status, 200, "{host}");
        }
    })
    .await;
}

/// A page elsewhere may know the token of a careless operator; its browser still may not use it.
#[tokio::test]
async fn the_token_does_not_help_another_site() {
    serve(with_token(), |server| async move {
        let bearer = format!("Bearer {TOKEN}");
        let token = ("authorization", bearer.as_str());
        let paths = ["/v1/workers/x/restart", "/v1/workers/x/park", "/v1/dlq/purge?id=1-0"];
        let signs: [&[(&str, &str)]; 4] = [
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        ];
        for path in paths {
            for sign in signs {
                let headers = [&[token], sign].concat();
                let answer = ask(server.address, "POST", path, &headers).await;
                assert_eq!(answer.status, 403, "{path} {sign:?}");
                assert_eq!(answer.json()["reason"], "cross_site", "{path} {sign:?}");
            }
            let rebound = [token, ("host", "rebound.example")];
            assert_eq!(ask(server.address, "POST", path, &rebound).await.status, 421, "{path}");
        }
        assert!(server.requests.is_empty(), "nothing may have reached the supervisor");
    })
    .await;
}

#[test]
fn a_weak_token_is_refused_and_none_is_shown() {
    assert!(Token::new("short").is_err());
    let token = Token::new("an-unlikely-word-123").unwrap();
    assert!(!format!("{token:?}").contains("unlikely"));
}

#[tokio::test]
async fn the_bus_is_changed_by_nobody_without_the_token() {
    const CHANGES: [&str; 2] = ["/v1/dlq/replay?id=1-0", "/v1/dlq/purge?id=1-0"];
    let bearer = format!("Bearer {TOKEN}");
    serve(HttpConfig::default(), |server| async move {
        for path in CHANGES {
            let answer = ask(server.address, "POST", path, &[("authorization", &bearer)]).await;
            assert_eq!(answer.status, 403, "{path}");
            assert_eq!(answer.json()["reason"], "changes_off");
        }
    })
    .await;
    let bearer = format!("Bearer {TOKEN}");
    serve(with_token(), |server| async move {
        for path in CHANGES {
            let asked = async |headers: &[(&str, &str)]| {
                ask(server.address, "POST", path, headers).await.status
            };
            assert_eq!(asked(&[]).await, 401, "{path}");
            assert_eq!(asked(&[("authorization", "Bearer 0123456789abcdef0124")]).await, 403);
            // The token is right, but nothing is open yet.
            assert_eq!(asked(&[("authorization", &bearer)]).await, 503);
            assert_eq!(ask(server.address, "GET", path, &[]).await.status, 405);
        }
        let raw = "/v1/dlq/1-0?raw=true";
        assert_eq!(get(server.address, raw).await.status, 401, "raw bytes hold the signature");
        for path in ["/v1/bus/streams", "/v1/bus/entries", "/v1/dlq", "/v1/dlq/1-0"] {
            let answer = get(server.address, path).await;
            assert_eq!(answer.status, 503, "{path}");
            assert!(answer.json()["error"].as_str().unwrap().contains("not open"), "{path}");
        }
    })
    .await;
}
