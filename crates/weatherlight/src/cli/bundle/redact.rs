//! Takes every known secret out of a text.

use crate::settings::{DEFINITIONS, MASK, Resolved, Value};

/// Shorter ones are no secrets, and masking them would make every text unreadable. What prints
/// settings masks them at the source anyway.
const SECRET_BYTES_MIN: usize = 4;

/// The secrets that are known here.
#[derive(Default)]
pub(super) struct Redactor(Vec<String>);

impl Redactor {
    /// What the environment holds, also where the settings as a whole cannot be used.
    pub(super) fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut redactor = Self::default();
        for row in DEFINITIONS {
            let named_file = variable(&format!("{}_FILE", row.env));
            let in_file = named_file.and_then(|path| std::fs::read_to_string(path.trim()).ok());
            for text in variable(row.env).into_iter().chain(in_file) {
                if row.kind.is_secret() {
                    redactor.learn(&text);
                } else if row.kind.is_url() {
                    redactor.learn_url(&text);
                }
            }
        }
        redactor
    }

    /// What the settings in force hold.
    pub(super) fn add(&mut self, resolved: &Resolved) {
        for row in &resolved.in_force {
            match &row.value {
                Value::Secret(secret) => self.learn(secret.expose()),
                Value::Url(url) => self.learn_url(url.expose()),
                _ => {}
            }
        }
    }

    fn learn(&mut self, secret: &str) {
        let secret = secret.trim();
        for form in [secret.to_owned(), decoded(secret), escaped(secret)] {
            if form.len() >= SECRET_BYTES_MIN && !self.0.contains(&form) {
                self.0.push(form);
            }
        }
        // The longest first, else a part of it would be left.
        self.0.sort_by_key(|known| std::cmp::Reverse(known.len()));
    }

    /// Passwords stand in front of an `@`, or behind the question mark.
    fn learn_url(&mut self, url: &str) {
        let Some((_, rest)) = url.split_once("://") else { return };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        for part in rest.split(',') {
            if let Some((user, _)) = part.rsplit_once('@')
                && let Some((_, password)) = user.split_once(':')
            {
                self.learn(password);
            }
        }
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or(("", ""));
            let name = name.to_ascii_lowercase();
            if ["pass", "secret", "token", "key"].iter().any(|word| name.contains(word)) {
                self.learn(value);
            }
        }
    }

    /// Masks each of them wherever it stands.
    pub(super) fn redact(&self, content: &mut Vec<u8>) {
        for secret in &self.0 {
            while let Some(at) = find(content, secret.as_bytes()) {
                content.splice(at..at + secret.len(), MASK.bytes());
            }
        }
    }
}

fn find(content: &[u8], wanted: &[u8]) -> Option<usize> {
    content.windows(wanted.len()).position(|window| window == wanted)
}

/// `%XX` as what it stands for.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let hex = more.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As it stands within a JSON text.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    #[test]
    fn secrets_go_in_every_form() {
        let environment = [
            ("ESPER_LEYLINE_SECRET", "a \"quoted\" secret of the tests"),
            ("WEATHERLIGHT_HTTP_TOKEN", "token-token-token-1"),
            ("REDIS_URL", "redis://user:pa%40ss-word@host:6379/0"),
            ("PROMETHEUS_PUSHGATEWAY", "http://h:9091/?token=query-secret"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sources = Sources { environment: environment.to_vec(), ..Sources::default() };
        let mut redactor = Redactor::default();
        redactor.add(&resolve(&sources).unwrap());
        let told = serde_json::json!({
            "a": "a \"quoted\" secret of the tests",
            "b": "Bearer token-token-token-1, token-token-token-1",
            "c": "redis://user:pa%40ss-word@host",
            "d": "pa@ss-word",
            "e": "query-secret",
        });
        let mut content = told.to_string().into_bytes();
        redactor.redact(&mut content);
        let text = String::from_utf8(content).unwrap();
        for gone in ["quoted", "token-token", "ss-word", "query-secret"] {
            assert!(!text.contains(gone), "{gone} in {text}");
        }
        assert!(text.contains(MASK) && text.contains("redis://user:"), "{text}");
    }

    #[test]
    fn the_environment_is_enough() {
        let redactor = Redactor::of_environment(|name| {
            (name == "ESPER_LEYLINE_SECRET").then(|| "only in the environment".to_owned())
        });
        let mut content = b"x only in the environment y".to_vec();
        redactor.redact(&mut content);
        assert_eq!(content, format!("x {MASK} y").into_bytes());
    }
}
