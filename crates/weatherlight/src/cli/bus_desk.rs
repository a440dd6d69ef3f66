//! Where a command finds the bus: in the log itself, or at the service that holds it.
//!
//! Redis takes any number of processes. The embedded log takes one: where a service holds it, the
//! service is asked over HTTP; where nobody does, the command opens the file for as long as it runs.

use std::time::Duration;

use nissa::bus::{
    self, DeadLetterView, DeadLettersView, EntriesView, LetterQuery, Places, PurgedView,
    ReplayedView, StandingView,
};
use oona::{Bus, BusError, EntryId, LogKind, ReplayError, Stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::client;
use crate::service::OpenError;
use crate::settings::EsperSettings;
use crate::wiring;

/// The bus, wherever it is.
pub(super) enum Desk<'a> {
    /// The log itself.
    Log(Bus),
    /// The service that holds it.
    Service(&'a EsperSettings),
}

/// What a service says when it does not do what it is asked.
#[derive(Debug, Deserialize)]
struct Told {
    error: String,
}

impl<'a> Desk<'a> {
    /// Opens the log, or finds the service that holds it.
    pub(super) async fn open(settings: &'a EsperSettings) -> Result<Self, Failure> {
        if settings.redis_url.is_none() {
            let path = settings.state_dir.join("oona/log.redb");
            if !path.exists() {
                let path = path.display();
                return Err(Failure::unavailable(format!(
                    "there is no log: REDIS_URL is not set and {path} does not exist; run this where the service runs, with its settings"
                )));
            }
        }
        let keyring = wiring::keyring(settings)
            .ok_or_else(|| Failure::configuration(OpenError::NoSecret.to_string()))?;
        // The spool is the service's: a command that only looks must not send what waits there.
        let config = oona::Config { spool: None, ..wiring::bus_config(settings) };
        match Bus::open(config, keyring, oona::Metrics::detached()).await {
            Ok(bus) => Ok(Self::Log(bus)),
            Err(held @ BusError::Locked { .. }) => {
                let desk = Self::Service(settings);
                let asked = desk.ask::<StandingView>("GET", "/v1/bus/streams", With::Nothing);
                match asked.await {
                    Ok(_) => Ok(desk),
                    Err(failure) => {
                        Err(Failure::unavailable(format!("{held}; {failure}")).named(held.code()))
                    }
                }
            }
            Err(error) => Err(Failure::bus(&error)),
        }
    }

    /// Whether anything can happen on the log while this command runs: nobody else writes to an
    /// embedded log that the command itself holds.
    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Log(bus) => bus.log_kind() == LogKind::Redis,
            Self::Service(_) => true,
        }
    }

    pub(super) async fn standing(&self) -> Result<StandingView, Failure> {
        match self {
            Self::Log(bus) => bus::standing(bus).await.map_err(unavailable),
            Self::Service(_) => self.ask("GET", "/v1/bus/streams", With::Nothing).await,
        }
    }

    /// The ends of these streams.
    pub(super) async fn ends(&self, streams: &[Stream]) -> Result<Places, Failure> {
        match self {
            Self::Log(bus) => Places::ends(bus, streams).await.map_err(unavailable),
            Self::Service(_) => {
                let view: EntriesView = self.ask("GET", "/v1/bus/entries", With::Nothing).await?;
                let mut places = self.places(&view)?;
                places.0.retain(|(stream, _)| streams.contains(stream));
                Ok(places)
            }
        }
    }

    /// Waits for entries, and moves the places behind them.
    pub(super) async fn watch(
        &self,
        places: &mut Places,
        wait: Duration,
    ) -> Result<EntriesView, Failure> {
        let count = bus::ENTRIES_MAX;
        let view = match self {
            Self::Log(bus) => bus::watch(bus, places, count, wait).await.map_err(unavailable)?,
            Self::Service(_) => {
                let wait_ms = wait.as_millis();
                let path =
                    format!("/v1/bus/entries?after={places}&count={count}&wait_ms={wait_ms}");
                self.ask("GET", &path, With::Nothing).await?
            }
        };
        *places = self.places(&view)?;
        Ok(view)
    }

    fn places(&self, view: &EntriesView) -> Result<Places, Failure> {
        view.after.parse().map_err(|error| Failure::unavailable_because(&error as &bus::BadPlaces))
    }

    pub(super) async fn letters(&self, query: &LetterQuery) -> Result<DeadLettersView, Failure> {
        match self {
            Self::Log(log) => {
                let (filter, after) =
                    query.read().map_err(|error| Failure::configuration(error.to_string()))?;
                let count = query.count.unwrap_or(bus::LETTERS_MAX);
                bus::letters(log, &filter, after, count).await.map_err(unavailable)
            }
            Self::Service(_) => {
                self.ask("GET", &format!("/v1/dlq?{}", in_url(query)), With::Nothing).await
            }
        }
    }

    pub(super) async fn letter(&self, id: EntryId, raw: bool) -> Result<DeadLetterView, Failure> {
        match self {
            Self::Log(log) => {
                let found = bus::letter(log, id, raw).await;
                let found = found.map_err(|error| Failure::unavailable_because(&error))?;
                found.ok_or_else(|| Failure::data(&ReplayError::NotFound { id }))
            }
            Self::Service(_) => {
                let with = if raw { With::Token } else { With::Nothing };
                self.ask("GET", &format!("/v1/dlq/{id}?raw={raw}"), with).await
            }
        }
    }

    pub(super) async fn replay(&self, id: EntryId) -> Result<ReplayedView, Failure> {
        match self {
            Self::Log(log) => bus::replay(log, id).await.map_err(|error| match &error {
                ReplayError::Log(_) => Failure::unavailable_because(&error).named(error.code()),
                _ => Failure::data(&error).named(error.code()),
            }),
            Self::Service(_) => {
                self.ask("POST", &format!("/v1/dlq/replay?id={id}"), With::Token).await
            }
        }
    }

    pub(super) async fn purge(&self, id: EntryId) -> Result<PurgedView, Failure> {
        match self {
            Self::Log(log) => bus::purge(log, id).await.map_err(unavailable),
            Self::Service(_) => {
                self.ask("POST", &format!("/v1/dlq/purge?id={id}"), With::Token).await
            }
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        with: With,
    ) -> Result<T, Failure> {
        let settings = match self {
            Self::Service(settings) => *settings,
            Self::Log(_) => unreachable!("a log is not asked over HTTP"),
        };
        let token = match (with, &settings.http_token) {
            (With::Nothing, _) => None,
            (With::Token, Some(token)) => Some(token),
            (With::Token, None) => {
                return Err(Failure::configuration(
                    "the running service holds the embedded log, and changing it needs WEATHERLIGHT_HTTP_TOKEN, the same here and at the service",
                ));
            }
        };
        let address = settings.http_addr;
        let answer = client::request(address, method, path, token)
            .await
            .map_err(|error| Failure::unavailable(error.to_string()))?;
        if answer.status == 200 {
            return serde_json::from_str(&answer.body).map_err(|error| {
                Failure::unavailable(format!(
                    "what answers at {address} is no Weatherlight of this version: {error}"
                ))
            });
        }
        let told = serde_json::from_str(&answer.body).map_or(answer.body, |Told { error }| error);
        Err(match answer.status {
            400 => Failure::configuration(told),
            404 | 409 => Failure::unusable(told),
            401 | 403 => Failure::configuration(format!("the service refuses: {told}")),
            status => Failure::unavailable(format!("the service answers {status}: {told}")),
        })
    }
}

/// What goes along with a request.
#[derive(Debug, Clone, Copy)]
enum With {
    Nothing,
    Token,
}

fn unavailable(error: BusError) -> Failure {
    Failure::bus(&error)
}

fn in_url(query: &LetterQuery) -> String {
    let since = query.since_ms.map(|ms| ms.to_string());
    let count = query.count.map(|count| count.to_string());
    let words = [
        ("stream", &query.stream),
        ("reason", &query.reason),
        ("type", &query.kind),
        ("since_ms", &since),
        ("after", &query.after),
        ("count", &count),
    ];
    let given = words.into_iter().filter_map(|(name, word)| Some((name, word.as_ref()?)));
    given.map(|(name, word)| format!("{name}={}", escaped(word))).collect::<Vec<_>>().join("&")
}

/// Everything but letters, digits and `-._` as `%XX`.
fn escaped(word: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let one = |byte: u8| match plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    word.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_address() {
        let query = LetterQuery {
            stream: Some("normal".to_owned()),
            reason: Some("no room & 100% \u{f6}".to_owned()),
            count: Some(3),
            ..LetterQuery::default()
        };
        assert_eq!(
            in_url(&query),
            "stream=normal&reason=no%20room%20%26%20100%25%20%C3%B6&count=3"
        );
        assert_eq!(in_url(&LetterQuery::default()), "");
    }
}
