//! Settings that change while the service runs: by their files, by SIGHUP, over HTTP.

use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{Bed, SECRET};

const TOKEN: &str = "a token of the tests, long enough";
const OTHER_TOKEN: &str = "another token of the tests";

/// What `config reload --json` says with this token, and its exit code.
fn asked(bed: &Bed, token: &str) -> (Option<i32>, Value) {
    let mut command = bed.command(&["config", "reload", "--json"]);
    let output = command.env("WEATHERLIGHT_HTTP_TOKEN", token).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

fn outcomes(report: &Value) -> Vec<(&str, &str)> {
    let changes = report["changes"].as_array().unwrap().iter();
    changes
        .map(|change| (change["setting"].as_str().unwrap(), change["outcome"].as_str().unwrap()))
        .collect()
}

/// No signal and no request: a save in the way of editors, then one in place.
#[test]
fn a_changed_file_is_noticed() {
    let bed = Bed::new();
    bed.write("weatherlight.toml", "[oona]\nmax_attempts = 5\n");
    let mut running = bed.start(&mut bed.command(&["serve"]));
    bed.write("new.toml", "[oona]\nemergency_max_per_min = 60\n");
    std::fs::rename(bed.path().join("new.toml"), bed.path().join("weatherlight.toml")).unwrap();
    let line = running.wait_for("setting took effect");
    assert!(line.contains("OONA_EMERGENCY_MAX_PER_MIN") && line.contains("60"), "{line}");
    running.wait_for("settings reloaded");
    bed.write("weatherlight.toml", "[oona]\nemergency_max_per_min = 61\nmax_attempts = 4\n");
    let line = running.wait_for("setting needs a restart");
    assert!(line.contains("OONA_MAX_ATTEMPTS") && line.contains("4"), "{line}");
    running.wait_for("setting took effect");
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn all_or_nothing_with_every_fault_in_the_answer() {
    let bed = Bed::new();
    bed.write("weatherlight.toml", "");
    let mut serve = bed.command(&["serve"]);
    // Only what is asked for is read: the test says when.
    serve.env("WEATHERLIGHT_HTTP_TOKEN", TOKEN).env("WEATHERLIGHT_WATCH_SETTINGS", "false");
    let mut running = bed.start(&mut serve);
    let good = "[oona]\nemergency_max_per_min = 60\n";
    bed.write(
        "weatherlight.toml",
        &format!("{good}max_attempts = 0\nqueue_depth_max = \"many\"\n"),
    );
    // The command reads the same file, so it is asked from another directory.
    let mut elsewhere = Bed::new();
    elsewhere.address = bed.address;
    let (code, report) = asked(&elsewhere, TOKEN);
    assert_eq!((code, &report["applied"]), (Some(78), &Value::Bool(false)), "{report}");
    let faults = report["faults"].as_array().unwrap();
    let named: Vec<&str> = faults.iter().map(|fault| fault["setting"].as_str().unwrap()).collect();
    assert_eq!(named, ["OONA_MAX_ATTEMPTS", "OONA_QUEUE_DEPTH_MAX"]);
    assert!(faults[0]["origin"].as_str().unwrap().ends_with("weatherlight.toml:3:16"), "{report}");
    let line = running.wait_for("settings not reloaded, the old ones stay");
    assert!(line.contains("OONA_MAX_ATTEMPTS") && line.contains("OONA_QUEUE_DEPTH_MAX"), "{line}");
    // Nothing of it was taken: the good one is still a change.
    bed.write("weatherlight.toml", good);
    let (code, report) = asked(&elsewhere, TOKEN);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(outcomes(&report), [("OONA_EMERGENCY_MAX_PER_MIN", "took_effect")]);
    assert_eq!(outcomes(&asked(&elsewhere, TOKEN).1), [("", ""); 0]);
    assert_ne!(asked(&elsewhere, OTHER_TOKEN).0, Some(0), "a wrong token is refused");
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_token_is_exchanged_by_its_file() {
    let bed = Bed::new();
    bed.write("token", TOKEN);
    let mut serve = bed.command(&["serve"]);
    serve.env("WEATHERLIGHT_HTTP_TOKEN_FILE", "token").env("WEATHERLIGHT_WATCH_SETTINGS", "false");
    let mut running = bed.start(&mut serve);
    assert_eq!(asked(&bed, TOKEN).0, Some(0));
    bed.write("token", OTHER_TOKEN);
    running.signal(Signal::HUP);
    let line = running.wait_for("setting took effect");
    assert!(line.contains("WEATHERLIGHT_HTTP_TOKEN") && !line.contains(OTHER_TOKEN), "{line}");
    assert_ne!(asked(&bed, TOKEN).0, Some(0));
    assert_eq!(asked(&bed, OTHER_TOKEN).0, Some(0));
    running.signal(Signal::TERM);
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(SECRET) && !log.contains(TOKEN), "{log}");
}

#[test]
fn a_diff_names_what_differs_and_shows_no_secret() {
    let bed = Bed::new();
    bed.write("weatherlight.toml", "[oona]\nmax_attempts = 4\n");
    bed.write(
        "other.toml",
        "[oona]\nmax_attempts = 3\n[leyline]\nsecret_previous = \"a former secret of all\"\n",
    );
    let run = |arguments: &[&str]| {
        let output = bed.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let rows: Value = serde_json::from_str(&run(&["config", "diff", "--json"])).unwrap();
    let of =
        |name: &str| rows.as_array().unwrap().iter().find(|row| row["setting"] == name).unwrap();
    assert_eq!(
        (&of("OONA_MAX_ATTEMPTS")["value"], &of("OONA_MAX_ATTEMPTS")["default"]),
        (&"4".into(), &"5".into())
    );
    assert_eq!(of("OONA_MAX_ATTEMPTS")["source"]["line"], 2);
    assert_eq!(of("ESPER_LEYLINE_SECRET")["secret"], true);
    let table = run(&["config", "diff", "other.toml"]);
    assert!(table.contains("OONA_MAX_ATTEMPTS") && table.contains("SECRET_PREVIOUS"), "{table}");
    for text in [table, rows.to_string()] {
        assert!(!text.contains("former secret") && !text.contains(SECRET), "{text}");
    }
}
