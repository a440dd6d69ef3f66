//! The secret is rotated while the service runs and serves: no restart, nobody refused who has a
//! secret in force.

use std::fs;

use crate::redis::{Client, Server};
use crate::service::{Home, Service};
use crate::wire::{Field, SECRET, fields, now_ms, prefetch_request, sign_with, text};
use crate::{REQUESTS, refused};

const NEXT: &str = "the next secret for the black-box test";
const TOKEN: &str = "a token for the black-box test";
const READY: u64 = 7;

struct Bench {
    home: Home,
    client: Client,
    service: Service,
    /// Where reading the answers goes on.
    place: String,
}

impl Bench {
    fn write(&self, name: &str, content: &str) {
        // As editors and Kubernetes do it: another file takes the name.
        let new = self.home.directory.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.home.directory.path().join(name)).unwrap();
    }

    fn ask(&mut self, id: &str, secret: &str) {
        let payload = prefetch_request(id, "BP001", now_ms());
        self.client.add(REQUESTS, &payload, &sign_with(secret, &payload));
    }

    /// Reads on until the request is answered, and demands that this secret signed the answer.
    fn is_answered(&mut self, wanted: &str, secret: &str) {
        loop {
            let command = [
                &b"XREAD"[..],
                b"BLOCK",
                b"30000",
                b"STREAMS",
                b"oona.kernels.ready",
                self.place.as_bytes(),
            ];
            let reply = self.client.call(&command);
            assert!(!reply.list().is_empty(), "{wanted} is not answered within 30 s");
            for entry in reply.list()[0].list()[1].list() {
                let [id, pairs] = entry.list() else { panic!("an entry is a pair") };
                self.place = String::from_utf8(id.bytes().to_vec()).unwrap();
                let pairs = pairs.list();
                let of = |name: &[u8]| {
                    pairs.chunks(2).find(|pair| pair[0].bytes() == name).unwrap()[1].bytes()
                };
                let (payload, signature) = (of(b"payload"), of(b"signature"));
                let outer = fields(payload);
                let Some((_, Field::Bytes(body))) = outer.iter().find(|(number, _)| *number == 2)
                else {
                    panic!("an envelope has a payload")
                };
                let is_ready = outer[0] == (1, Field::Number(READY));
                if is_ready && text(&fields(body), 1) == wanted {
                    assert_eq!(sign_with(secret, payload).as_bytes(), signature, "{wanted}");
                    return;
                }
            }
        }
    }

    /// `weatherlight config reload`: the answer comes once the settings are in force.
    fn reload(&self) -> String {
        let mut command = self.home.command(&["config", "reload", "--json"]);
        command
            .env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{}", self.service.http))
            .env("WEATHERLIGHT_HTTP_TOKEN", TOKEN);
        let (code, report) = self.home.run(&mut command);
        assert_eq!(code, 0, "{report}");
        assert!(!report.contains(SECRET) && !report.contains(NEXT), "{report}");
        report
    }
}

#[test]
fn a_secret_is_rotated_without_a_restart() {
    let redis = Server::start();
    let home = Home::new();
    fs::write(home.directory.path().join("secret"), SECRET).unwrap();
    let service = home.serve_with(&redis, |command| {
        command
            .env_remove("ESPER_LEYLINE_SECRET")
            .env("ESPER_LEYLINE_SECRET_FILE", "secret")
            .env("WEATHERLIGHT_HTTP_TOKEN", TOKEN)
            // The test says when; the watch has a test of its own.
            .env("WEATHERLIGHT_WATCH_SETTINGS", "false");
    });
    let mut bench = Bench { home, client: redis.client(), service, place: "0".to_owned() };
    bench.ask("before", SECRET);
    bench.is_answered("before", SECRET);

    // The new one signs, both are understood.
    bench.write("previous", SECRET);
    bench.write("secret", NEXT);
    bench.write("weatherlight.toml", "[leyline]\nsecret_previous_file = \"previous\"\n");
    let report = bench.reload();
    assert_eq!(report.matches("took_effect").count(), 2, "{report}");
    for (id, secret) in [("old during", SECRET), ("new during", NEXT)] {
        bench.ask(id, secret);
        bench.is_answered(id, NEXT);
    }
    assert_eq!(refused(&bench.service, "bad_signature"), 0.0);

    // A mistake on the way leaves everything as it is.
    bench.write("weatherlight.toml", "[leyline]\nsecret_previous_file = \"nowhere\"\n");
    let mut command = bench.home.command(&["config", "check"]);
    let (code, text) = bench.home.run(&mut command);
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("cannot read nowhere"), "{text}");

    // The old one is out of force.
    bench.write("weatherlight.toml", "");
    let report = bench.reload();
    assert!(report.contains("ESPER_LEYLINE_SECRET_PREVIOUS"), "{report}");
    bench.ask("old after", SECRET);
    bench.ask("new after", NEXT);
    bench.is_answered("new after", NEXT);
    assert_eq!(refused(&bench.service, "bad_signature"), 1.0);
    assert_eq!(bench.service.terminate().code(), Some(0));
}
