//! Asking the running service over HTTP: its health, and changes with the token.

use nissa::Health;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::client::{self, Answer};
use crate::settings::EsperSettings;

/// Asks for something as JSON.
pub(super) async fn get<T: DeserializeOwned>(
    settings: &EsperSettings,
    path: &str,
) -> Result<T, Failure> {
    let address = settings.http_addr;
    let Answer { status, body } = client::request(address, "GET", path, None)
        .await
        .map_err(|error| Failure::unavailable(error.to_string()))?;
    serde_json::from_str(&body).map_err(|error| {
        Failure::unavailable(format!(
            "what answers {path} at {address} (status {status}) is no Weatherlight of this version: {error}"
        ))
    })
}

/// The whole picture of the running service.
pub(super) async fn health(settings: &EsperSettings) -> Result<Health, Failure> {
    get(settings, "/healthz").await
}

/// What an operator may ask for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Start it now.
    Restart,
    /// Let it stay down.
    Park,
}

impl Wish {
    const fn word(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Park => "park",
        }
    }
}

/// What the service says when it does not do what it is asked.
#[derive(Debug, Deserialize)]
struct Told {
    error: String,
    reason: Option<String>,
}

/// Asks the supervisor to do something with a worker.
pub(super) async fn change(
    settings: &EsperSettings,
    name: &str,
    wish: Wish,
) -> Result<(), Failure> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || !name.chars().all(is_plain) {
        return Err(Failure::unusable(format!("{name:?} is no worker's name")));
    }
    let Some(token) = &settings.http_token else {
        return Err(Failure::configuration(
            "changing a worker needs WEATHERLIGHT_HTTP_TOKEN, the same here and at the service",
        )
        .named("no_token"));
    };
    let path = format!("/v1/workers/{name}/{}", wish.word());
    let answer = client::request(settings.http_addr, "POST", &path, Some(token))
        .await
        .map_err(|error| Failure::unavailable(error.to_string()))?;
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    Err(refused(&answer))
}

fn refused(answer: &Answer) -> Failure {
    let told: Result<Told, _> = serde_json::from_str(&answer.body);
    let (error, reason) = match told {
        Ok(Told { error, reason }) => (error, reason),
        Err(_) => (answer.body.trim().to_owned(), None),
    };
    let message = format!("the service refuses: {error}");
    match (answer.status, reason) {
        (404, _) => Failure::unusable(message).named("worker_unknown"),
        (409, _) => Failure::unusable(message).named("worker_critical"),
        (503, None) => Failure::unavailable(message).named("worker_stopping"),
        (401 | 403, reason) => {
            let known = reason.as_deref().and_then(|reason| {
                crate::codes::find(&format!("http/{reason}")).first().map(|code| code.code)
            });
            Failure::configuration(message).named(known.unwrap_or("no_token"))
        }
        (status, _) => Failure::unavailable(format!("the service answers {status}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, body: &str, exit: u8, word: &str) {
        let failure = refused(&Answer { status, body: body.to_owned() });
        assert_eq!((failure.code(), failure.word()), (exit, word), "{failure}");
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        check(404, r#"{"error":"there is no worker x"}"#, 65, "worker_unknown");
        check(409, r#"{"error":"x is critical"}"#, 65, "worker_critical");
        check(403, r#"{"error":"no","reason":"changes_off"}"#, 78, "changes_off");
        check(403, r#"{"error":"no","reason":"bad_token"}"#, 78, "bad_token");
        check(503, r#"{"error":"the service is stopping"}"#, 69, "worker_stopping");
        check(500, "oops", 69, "unavailable");
    }
}
