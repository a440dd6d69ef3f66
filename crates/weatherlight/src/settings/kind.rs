//! What a setting's value may look like, and how its text becomes a value. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::{SecretText, UrlText};

/// The unit in which a plain number of a duration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Hours.
    Hours,
}

impl Unit {
    /// Seconds in one unit.
    fn seconds(self) -> f64 {
        match self {
            Self::Milliseconds => 0.001,
            Self::Seconds => 1.0,
            Self::Hours => 3600.0,
        }
    }

    /// The unit as it is printed.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Hours => "h",
        }
    }
}

/// The type of a setting with its bounds (inclusive).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any non-empty text.
    Text,
    /// A URL with one of these schemes.
    Url(&'static [&'static str]),
    /// A URL of a Redis server, of its sentinels or of a cluster.
    RedisUrl,
    /// A durability class for all streams, then `STREAM=CLASS` for those that differ.
    Durability,
    /// A path; relative ones are taken from the working directory.
    Path,
    /// An address and port to listen on.
    Address,
    /// `true` or `false` (also 1/0, yes/no, on/off).
    Switch,
    /// A whole number of what is named.
    Count(&'static str, u64, u64),
    /// A decimal number.
    Number(f64, f64),
    /// A time span; a plain number counts in the unit, and `250ms`, `10s`, `5m`, `24h` are read too.
    Duration(Unit, f64, f64),
    /// A size; a plain number counts bytes, and `64KiB`, `256 MiB`, `1GiB` are read too.
    Bytes(u64, u64),
    /// One of a list of words, in any case.
    Choice(&'static [&'static str]),
    /// A `tracing` filter: a level, or directives such as `info,oona=debug`.
    LogFilter,
    /// A text that is never shown and may come from a file.
    Secret,
}

/// A value that passed its kind's checks.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Not set, and no default.
    Absent,
    /// Text, choice (in lower case) or log filter.
    Text(String),
    /// A URL, which may hold a password.
    Url(UrlText),
    /// A path.
    Path(PathBuf),
    /// An address.
    Address(SocketAddr),
    /// A switch.
    Switch(bool),
    /// A whole number, or a size in bytes.
    Integer(u64),
    /// A decimal number.
    Number(f64),
    /// A time span.
    Duration(Duration),
    /// A secret.
    Secret(SecretText),
}

impl Kind {
    /// Whether the value may hold credentials between other things.
    pub const fn is_url(&self) -> bool {
        matches!(self, Self::Url(_) | Self::RedisUrl)
    }

    /// Whether the value may stand in a file of its own, named by `NAME_FILE`, or be a credential of
    /// the service manager: what is secret, or may hold a secret.
    pub const fn may_stand_in_a_file(&self) -> bool {
        self.is_secret() || self.is_url()
    }

    /// What a plain number counts: `ms`, `bytes`, `entries`; `None` where there is no number or it
    /// has no unit.
    pub const fn unit(&self) -> Option<&'static str> {
        match self {
            Self::Duration(unit, ..) => Some(unit.symbol()),
            Self::Bytes(..) => Some("bytes"),
            Self::Count(unit, ..) => Some(unit),
            _ => None,
        }
    }

    /// The least and the greatest value, both allowed, in its unit.
    pub fn bounds(&self) -> Option<(f64, f64)> {
        match *self {
            Self::Duration(_, min, max) | Self::Number(min, max) => Some((min, max)),
            Self::Bytes(min, max) | Self::Count(_, min, max) => Some((min as f64, max as f64)),
            _ => None,
        }
    }

    /// Whether the value must be kept out of every output.
    pub const fn is_secret(&self) -> bool {
        matches!(self, Self::Secret)
    }

    /// Whether only quoted text is right for it in the settings file.
    pub(super) const fn is_textual(&self) -> bool {
        matches!(
            self,
            Self::Text
                | Self::Url(_)
                | Self::RedisUrl
                | Self::Durability
                | Self::Path
                | Self::Address
                | Self::Choice(_)
                | Self::LogFilter
                | Self::Secret
        )
    }

    /// What is expected, for people: `a duration in ms, 1 to 60000`.
    pub fn describe(&self) -> String {
        match self {
            Self::Text => "a text".into(),
            Self::Url(schemes) => format!("a URL ({})", schemes.join(", ")),
            Self::RedisUrl => "a Redis URL (redis, rediss, unix, redis-sentinel, rediss-sentinel, \
                               redis-cluster, rediss-cluster)"
                .into(),
            Self::Durability => {
                "none, wait[:REPLICAS] or waitaof[:REPLICAS], then STREAM=CLASS behind commas"
                    .into()
            }
            Self::Path => "a path".into(),
            Self::Address => "an address with port (127.0.0.1:9100)".into(),
            Self::Switch => "true or false".into(),
            Self::Count(unit, min, max) => format!("a whole number of {unit}, {min} to {max}"),
            Self::Number(min, max) => format!("a number, {min} to {max}"),
            Self::Duration(unit, min, max) => {
                format!("a duration in {}, {min} to {max}", unit.symbol())
            }
            Self::Bytes(min, max) => format!("a size in bytes, {min} to {max}"),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::LogFilter => "a log level or filter (INFO, info,oona=debug)".into(),
            Self::Secret => "a secret".into(),
        }
    }

    /// Reads a value. `None` when the text is not of this kind or out of its bounds; the caller
    /// says so with [`Kind::describe`].
    pub fn parse(&self, text: &str) -> Option<Value> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        match *self {
            Self::Text => Some(Value::Text(text.to_owned())),
            Self::Url(schemes) => url(text, schemes),
            Self::RedisUrl => oona::check_url(text).ok().map(|()| Value::Url(UrlText::new(text))),
            Self::Durability => {
                let durabilities = text.parse::<oona::Durabilities>().ok()?;
                Some(Value::Text(durabilities.to_string()))
            }
            Self::Path => Some(Value::Path(PathBuf::from(text))),
            Self::Address => text.parse().ok().map(Value::Address),
            Self::Switch => switch(text).map(Value::Switch),
            Self::Count(_, min, max) => {
                whole(text).filter(|n| (min..=max).contains(n)).map(Value::Integer)
            }
            Self::Number(min, max) => {
                let number = text.parse().ok().filter(|n: &f64| n.is_finite());
                number.filter(|n| (min..=max).contains(n)).map(Value::Number)
            }
            Self::Duration(unit, min, max) => duration(text, unit)
                .filter(|n| (min..=max).contains(n))
                .map(|n| Value::Duration(Duration::from_secs_f64(n * unit.seconds()))),
            Self::Bytes(min, max) => {
                bytes(text).filter(|n| (min..=max).contains(n)).map(Value::Integer)
            }
            Self::Choice(words) => words
                .iter()
                .find(|word| word.eq_ignore_ascii_case(text))
                .map(|word| Value::Text((*word).to_owned())),
            Self::LogFilter => tracing_subscriber::EnvFilter::try_new(text)
                .ok()
                .map(|_| Value::Text(text.to_owned())),
            Self::Secret => Some(Value::Secret(SecretText::new(text))),
        }
    }
}

fn url(text: &str, schemes: &[&str]) -> Option<Value> {
    let (scheme, rest) = text.split_once(':')?;
    let known = schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme));
    let has_target = !rest.trim_start_matches('/').is_empty();
    (known && has_target).then(|| Value::Url(UrlText::new(text)))
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A whole number, with `_` allowed between digits.
fn whole(text: &str) -> Option<u64> {
    text.replace('_', "").parse().ok()
}

/// Splits `250 ms` into its number and its suffix.
fn number_and_suffix(text: &str) -> Option<(f64, &str)> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '_'))).unwrap_or(text.len());
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A time span in `unit`s.
fn duration(text: &str, unit: Unit) -> Option<f64> {
    let (number, suffix) = number_and_suffix(text)?;
    let seconds = match suffix {
        "" => return Some(number),
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    Some(number * seconds / unit.seconds())
}

fn bytes(text: &str) -> Option<u64> {
    let (number, suffix) = number_and_suffix(text)?;
    let factor = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return None,
    };
    let size = number * factor;
    (size.fract() == 0.0 && size < 9e15).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, text: &str, expected: Option<Value>) {
        assert_eq!(kind.parse(text), expected, "{kind:?} from {text:?}");
    }

    #[test]
    fn durations_count_in_their_unit_unless_a_suffix_says_otherwise() {
        let kind = Kind::Duration(Unit::Milliseconds, 1.0, 100_000.0);
        let ms = |ms| Some(Value::Duration(Duration::from_millis(ms)));
        check(kind, "250", ms(250));
        check(kind, "10s", ms(10_000));
        check(kind, "1 min", ms(60_000));
        check(kind, "0", None);
        check(kind, "10 fortnights", None);
        check(kind, "-5", None);
        check(kind, "101s", None);
    }

    #[test]
    fn sizes_are_read_with_binary_and_decimal_suffixes() {
        let kind = Kind::Bytes(1, 1 << 40);
        check(kind, "256 KiB", Some(Value::Integer(262_144)));
        check(kind, "1GB", Some(Value::Integer(1_000_000_000)));
        check(kind, "0.5", None);
        check(kind, "12 parsecs", None);
    }

    #[test]
    fn numbers_stay_inside_their_bounds() {
        check(Kind::Count("turns", 1, 10), "10", Some(Value::Integer(10)));
        check(Kind::Count("turns", 1, 10), "11", None);
        check(Kind::Count("turns", 1, 10), "1.5", None);
        check(Kind::Number(0.0, 1.0), "0.25", Some(Value::Number(0.25)));
        check(Kind::Number(0.0, 1.0), "NaN", None);
    }

    #[test]
    fn words_and_switches_ignore_case() {
        check(Kind::Switch, "TRUE", Some(Value::Switch(true)));
        check(Kind::Switch, "off", Some(Value::Switch(false)));
        check(Kind::Switch, "maybe", None);
        check(Kind::Choice(&["auto", "json"]), "JSON", Some(Value::Text("json".into())));
        check(Kind::Choice(&["auto", "json"]), "yaml", None);
    }

    #[test]
    fn a_url_needs_a_known_scheme_and_a_target() {
        let kind = Kind::Url(&["redis", "rediss"]);
        check(kind, "redis://localhost/0", Some(Value::Url(UrlText::new("redis://localhost/0"))));
        check(kind, "http://localhost", None);
        check(kind, "redis://", None);
        check(kind, "localhost:6379", None);
    }

    #[test]
    fn every_kind_of_redis_url_is_taken_and_a_broken_one_is_not() {
        for url in [
            "redis://me:pw@localhost:6380/2",
            "rediss://localhost",
            "unix:///run/redis.sock",
            "redis-sentinel://a,b:26380/main/0",
            "rediss-cluster://a,b",
        ] {
            check(Kind::RedisUrl, url, Some(Value::Url(UrlText::new(url))));
        }
        for url in ["localhost", "redis-sentinel://a,b", "redis-cluster://a/3", "http://h"] {
            check(Kind::RedisUrl, url, None);
        }
    }

    #[test]
    fn durabilities_are_shown_in_full() {
        let text = |text: &str| Some(Value::Text(text.into()));
        check(Kind::Durability, "waitaof,policy=wait", text("waitaof:0,policy=wait:1"));
        check(Kind::Durability, "always", None);
    }

    #[test]
    fn nothing_accepts_an_empty_text() {
        for kind in [Kind::Text, Kind::Path, Kind::Secret, Kind::Switch, Kind::LogFilter] {
            check(kind, "  ", None);
        }
    }
}
