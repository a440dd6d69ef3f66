//! From the sources' texts to checked settings: later sources win, and every fault is reported.

use std::fs;

use super::definition::Definition;
use super::fault::{Fault, Faults, Origin, Problem};
use super::kind::{Kind, Value};
use super::rules;
use super::secret::{MASK, SecretText, masked_url};
use super::source::{self, Found, Harvest, Sources};
use super::table::{DEFINITIONS, EsperSettings};

/// One setting's value in force and where it came from, for `config show`.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The setting.
    pub definition: &'static Definition,
    /// The value as text, secrets masked; `None` when unset.
    pub shown: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// Settings that passed every check.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The typed settings.
    pub settings: EsperSettings,
    /// Each value and its origin, in the order of the table.
    pub in_force: Vec<InForce>,
    /// Variables that look like ours and are not known, with the nearest name.
    pub unknown: Vec<Fault>,
}

impl Resolved {
    /// Whether a setting was given anywhere.
    pub fn is_given(&self, env: &str) -> bool {
        self.in_force.iter().any(|row| row.definition.env == env && row.origin != Origin::Default)
    }
}

/// Merges the sources (default, file, `.env`, environment, command line; later wins) and checks
/// everything. Reads the files that `*_FILE` secrets name, and nothing else.
///
/// # Errors
/// [`Faults`] with every fault of every source, also in values that a later source overrides.
pub fn resolve(sources: &Sources) -> Result<Resolved, Faults> {
    let mut harvests: Vec<Harvest> = Vec::new();
    if let Some((path, content)) = &sources.file {
        harvests.push(source::file(path, content));
    }
    if let Some((path, content)) = &sources.dotenv {
        harvests.push(source::dotenv(path, content));
    }
    harvests.push(source::environment(&sources.environment));
    harvests.push(source::overrides(&sources.overrides));

    let mut merged = Merged::defaults();
    for harvest in harvests {
        merged.take(harvest);
    }
    merged.finish()
}

struct Merged {
    values: Vec<(Value, Origin)>,
    faults: Vec<Fault>,
    unknown: Vec<Fault>,
}

impl Merged {
    fn defaults() -> Self {
        let value = |row: &Definition| {
            let parsed = row.default.map(|text| row.kind.parse(text));
            let value = parsed.map_or(Some(Value::Absent), |value| value);
            let value = value.unwrap_or_else(|| panic!("the default of {} is valid", row.env));
            (value, Origin::Default)
        };
        Self {
            values: DEFINITIONS.iter().map(value).collect(),
            faults: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Lays one source over what is there.
    fn take(&mut self, harvest: Harvest) {
        self.faults.extend(harvest.faults);
        self.unknown.extend(harvest.unknown);
        for (position, found) in harvest.found.iter().enumerate() {
            let row = &DEFINITIONS[found.definition];
            let twice = harvest.found[..position].iter().any(|other| {
                other.definition == found.definition && other.is_secret_file != found.is_secret_file
            });
            if twice {
                let problem = Problem::Twice { name: row.env.to_owned() };
                self.faults.push(Fault { origin: found.origin.clone(), problem });
            }
            match value_of(row, found) {
                Ok(value) => self.values[found.definition] = (value, found.origin.clone()),
                Err(problem) => {
                    self.faults.push(Fault { origin: found.origin.clone(), problem });
                }
            }
        }
    }

    fn finish(mut self) -> Result<Resolved, Faults> {
        let values: Vec<Value> = self.values.iter().map(|(value, _)| value.clone()).collect();
        let settings = EsperSettings::from_values(&values)
            .unwrap_or_else(|| panic!("every kind in the table fits its field's type"));
        self.faults.extend(rules::contradictions(&settings).into_iter().map(|message| Fault {
            origin: Origin::Together,
            problem: Problem::Contradiction { message },
        }));
        if !self.faults.is_empty() {
            return Err(Faults(self.faults));
        }
        let in_force = DEFINITIONS
            .iter()
            .zip(self.values)
            .map(|(definition, (value, origin))| InForce {
                definition,
                shown: shown(definition, &value),
                origin,
            })
            .collect();
        Ok(Resolved { settings, in_force, unknown: self.unknown })
    }
}

fn value_of(row: &Definition, found: &Found) -> Result<Value, Problem> {
    if found.is_secret_file {
        let text = fs::read_to_string(found.text.trim()).map_err(|error| Problem::Unreadable {
            path: found.text.trim().to_owned(),
            message: error.to_string(),
        })?;
        return Ok(Value::Secret(SecretText::new(&text)));
    }
    row.kind.parse(&found.text).ok_or_else(|| Problem::Value {
        name: row.env.to_owned(),
        expected: row.kind.describe(),
        found: match row.kind {
            Kind::Secret => None,
            kind if kind.is_url() => Some(masked_url(&found.text)),
            _ => Some(found.text.clone()),
        },
    })
}

fn shown(definition: &Definition, value: &Value) -> Option<String> {
    Some(match value {
        Value::Absent => return None,
        Value::Text(text) if definition.kind.is_url() => masked_url(text),
        Value::Text(text) => text.clone(),
        Value::Path(path) => path.display().to_string(),
        Value::Address(address) => address.to_string(),
        Value::Switch(switch) => switch.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Duration(span) => format!("{span:?}"),
        Value::Secret(_) => MASK.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    fn with_file(content: &str) -> Sources {
        Sources { file: Some((PathBuf::from("w.toml"), content.into())), ..Sources::default() }
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let settings = resolve(&Sources::default()).unwrap().settings;
        assert_eq!(settings.redis_url, None);
        assert_eq!(settings.oona_message_ttl, Duration::from_secs(900));
        assert_eq!(settings.oona_message_bytes_max, 262_144);
        assert_eq!(settings.tamiyo_step_timeout, Duration::from_millis(5));
        assert_eq!(settings.tamiyo_field_report_retention, Duration::from_secs(86_400));
        assert_eq!(settings.urza_database_url, "sqlite:///./var/urza/catalog.db");
        assert!(settings.tamiyo_verify_updates && !settings.tolaria_rollback_enabled);
        assert_eq!(settings.http_addr.to_string(), "127.0.0.1:9100");
    }

    #[test]
    fn a_later_source_wins() {
        let mut sources = with_file("[oona]\nmax_attempts = 2\nclaim_idle_ms = \"20s\"\n");
        let attempts = |sources: &Sources| resolve(sources).unwrap().settings.oona_attempts_max;
        assert_eq!(attempts(&sources), 2);
        sources.dotenv = Some((PathBuf::from(".env"), "OONA_MAX_ATTEMPTS=3\n".into()));
        assert_eq!(attempts(&sources), 3);
        sources.environment = environment(&[("OONA_MAX_ATTEMPTS", "4")]);
        assert_eq!(attempts(&sources), 4);
        sources.overrides = vec!["OONA_MAX_ATTEMPTS=6".into()];
        assert_eq!(attempts(&sources), 6);
        let resolved = resolve(&sources).unwrap();
        assert_eq!(resolved.settings.oona_claim_idle, Duration::from_secs(20));
        assert!(resolved.is_given("OONA_CLAIM_IDLE_MS") && !resolved.is_given("REDIS_URL"));
    }

    #[test]
    fn every_fault_is_reported_with_its_place() {
        let mut sources = with_file(
            "[oona]\nmax_attempts = 0\nmax_atempts = 3\n\n[urza]\nartifact_dir = 5\n[nowhere]\nx = 1\n",
        );
        sources.dotenv = Some((PathBuf::from(".env"), "# c\nOONA_CLAIM_IDLE_MS=soon\n".into()));
        sources.environment = environment(&[("TAMIYO_CONSERVATIVE_MODE", "perhaps")]);
        sources.overrides = vec!["OONA_TTL=1".into(), "nonsense".into()];
        let faults = resolve(&sources).unwrap_err().to_string();
        for expected in [
            "8 faults",
            "w.toml:2:16: OONA_MAX_ATTEMPTS must be a whole number, 1 to 100, found \"0\"",
            "w.toml:3:1: there is no setting oona.max_atempts; did you mean oona.max_attempts?",
            "w.toml:6:16: urza.artifact_dir must be a path, found \"integer\"",
            "w.toml:7:",
            ".env:2: OONA_CLAIM_IDLE_MS must be a duration in ms",
            "environment variable TAMIYO_CONSERVATIVE_MODE: TAMIYO_CONSERVATIVE_MODE must be",
            "command line --set: there is no setting OONA_TTL",
            "\"nonsense\" is not of the form NAME=VALUE",
        ] {
            assert!(faults.contains(expected), "{expected}\nmissing in\n{faults}");
        }
    }

    #[test]
    fn broken_toml_is_a_fault_with_its_line() {
        let faults = resolve(&with_file("[oona]\nmax_attempts = = 3\n")).unwrap_err();
        assert!(faults.to_string().contains("w.toml:2:"), "{faults}");
    }

    #[test]
    fn an_unknown_variable_of_ours_is_reported_and_does_not_stop_the_start() {
        let sources = Sources {
            environment: environment(&[("OONA_MAX_ATTEMPT", "4"), ("PATH", "/bin"), ("HOME", "/")]),
            ..Sources::default()
        };
        let resolved = resolve(&sources).unwrap();
        let reported: Vec<String> = resolved.unknown.iter().map(ToString::to_string).collect();
        assert_eq!(reported.len(), 1, "{reported:?}");
        assert!(reported[0].contains("did you mean OONA_MAX_ATTEMPTS?"), "{reported:?}");
    }

    #[test]
    fn a_secret_comes_from_a_file_and_is_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "a long enough secret\n").unwrap();
        let path = path.to_str().unwrap();
        let sources = Sources {
            environment: environment(&[
                ("ESPER_LEYLINE_SECRET_FILE", path),
                ("REDIS_URL", "redis://:hunter2@localhost/0"),
            ]),
            ..Sources::default()
        };
        let resolved = resolve(&sources).unwrap();
        let secret = resolved.settings.leyline_secret.as_ref().unwrap();
        assert_eq!(secret.expose(), "a long enough secret");
        let shown = format!("{:?}", resolved.in_force);
        assert!(!shown.contains("long enough") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_secret_given_twice_or_in_a_missing_file_is_a_fault() {
        let sources = Sources {
            environment: environment(&[
                ("ESPER_LEYLINE_SECRET", "a long enough secret"),
                ("ESPER_LEYLINE_SECRET_FILE", "/nonexistent/secret"),
            ]),
            ..Sources::default()
        };
        let faults = resolve(&sources).unwrap_err().to_string();
        assert!(faults.contains("are both set"), "{faults}");
        assert!(faults.contains("cannot read /nonexistent/secret"), "{faults}");
        assert!(!faults.contains("long enough"), "{faults}");
    }

    #[test]
    fn contradictions_between_settings_are_faults() {
        let sources = Sources {
            overrides: vec!["OONA_EMERGENCY_THRESHOLD=9000".into()],
            ..Sources::default()
        };
        let faults = resolve(&sources).unwrap_err().to_string();
        assert!(faults.contains("OONA_EMERGENCY_THRESHOLD"), "{faults}");
    }

    #[test]
    fn names_and_keys_are_unique() {
        for (index, row) in DEFINITIONS.iter().enumerate() {
            for other in &DEFINITIONS[..index] {
                assert_ne!(row.env, other.env);
                assert_ne!(row.key, other.key);
            }
        }
    }
}
