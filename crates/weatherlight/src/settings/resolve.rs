//! From the sources' texts to checked settings: later sources win, and every fault is reported.

use std::path::{Path, PathBuf};

use super::definition::{Definition, Reload};
use super::fault::{Fault, Faults, Origin, Problem};
use super::file;
use super::kind::{Kind, Value};
use super::rules;
use super::secret::{MASK, masked_url};
use super::source::{self, Found, Harvest, Sources};
use super::table::{DEFINITIONS, EsperSettings};

/// One setting's value in force and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// The setting.
    pub definition: &'static Definition,
    /// The value itself.
    pub value: Value,
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
    /// What a person should look at though the settings can be used: variables that look like ours
    /// and are not known, settings without effect, secrets that others can read.
    pub warnings: Vec<Fault>,
    /// The files with secrets that were read.
    pub secret_files: Vec<PathBuf>,
}

impl Resolved {
    /// Puts another value in the place of one that was read, for a program that knows better.
    ///
    /// # Panics
    /// When there is no such setting, or the value is not of its kind.
    pub fn replace(&mut self, env: &str, value: Value) {
        let row = self.in_force.iter_mut().find(|row| row.definition.env == env);
        let row = row.unwrap_or_else(|| panic!("there is a setting {env}"));
        (row.shown, row.value) = (shown(&value), value);
        let values: Vec<Value> = self.in_force.iter().map(|row| row.value.clone()).collect();
        self.settings = EsperSettings::from_values(&values)
            .unwrap_or_else(|| panic!("the value is of the kind of {env}"));
    }

    /// Whether a setting was given anywhere.
    pub fn is_given(&self, env: &str) -> bool {
        self.in_force.iter().any(|row| row.definition.env == env && row.origin != Origin::Default)
    }
}

/// Merges the sources (default, file, `.env`, credentials, environment, command line; later wins)
/// and checks everything. Reads the credentials and the files that `*_FILE` names, and nothing else.
///
/// # Errors
/// [`Faults`] with every fault of every source, also in values that a later source overrides.
pub fn resolve(sources: &Sources) -> Result<Resolved, Faults> {
    let mut harvests: Vec<Harvest> = Vec::new();
    if let Some((path, content)) = &sources.file {
        harvests.push(source::toml(path, content));
    }
    if let Some((path, content)) = &sources.dotenv {
        harvests.push(source::dotenv(path, content));
    }
    if let Some(directory) = &sources.credentials {
        harvests.push(source::credentials(directory));
    }
    harvests.push(source::environment(&sources.environment));
    harvests.push(source::overrides(&sources.overrides));

    let mut merged = Merged::defaults();
    merged.faults.extend(sources.faults.iter().cloned());
    for harvest in harvests {
        merged.take(harvest, sources);
    }
    merged.finish()
}

struct Merged {
    values: Vec<(Value, Origin)>,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
    secret_files: Vec<PathBuf>,
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
            warnings: Vec::new(),
            secret_files: Vec::new(),
        }
    }

    /// Lays one source over what is there.
    fn take(&mut self, harvest: Harvest, sources: &Sources) {
        self.faults.extend(harvest.faults);
        self.warnings.extend(harvest.unknown);
        for (position, found) in harvest.found.iter().enumerate() {
            let row = &DEFINITIONS[found.definition];
            let twice = harvest.found[..position].iter().any(|other| {
                other.definition == found.definition && other.is_secret_file != found.is_secret_file
            });
            if twice {
                let problem = Problem::Twice { name: row.env.to_owned() };
                self.faults.push(Fault { origin: found.origin.clone(), problem });
            }
            match self.value_of(row, found) {
                Ok(value) => self.values[found.definition] = (value, found.origin.clone()),
                Err(problem) => {
                    self.faults.push(Fault { origin: found.origin.clone(), problem });
                }
            }
            self.warn(row, found, sources);
        }
    }

    fn value_of(&mut self, row: &Definition, found: &Found) -> Result<Value, Problem> {
        if !found.is_secret_file {
            return parse(row, &found.text);
        }
        let path = Path::new(found.text.trim());
        // Watched even when it cannot be read now: whoever repairs it wants it to be read again.
        self.secret_files.push(path.to_owned());
        let file = file::read_secret(path)
            .map_err(|problem| Problem::Unreadable { path: path.display().to_string(), problem })?;
        if file.is_open_to_all && is_our_care(path, &found.origin) {
            self.open_to_all(row, found, path);
        }
        parse(row, &file.text)
    }

    fn warn(&mut self, row: &Definition, found: &Found, sources: &Sources) {
        if row.reload == Reload::Never {
            let problem = Problem::NoEffect { name: row.env.to_owned() };
            self.warnings.push(Fault { origin: found.origin.clone(), problem });
        }
        if let Origin::File { path, .. } | Origin::DotEnv { path, .. } = &found.origin
            && row.kind.is_secret()
            && !found.is_secret_file
            && sources.open_to_all.contains(path)
        {
            self.open_to_all(row, found, path);
        }
    }

    fn open_to_all(&mut self, row: &Definition, found: &Found, path: &Path) {
        let (name, path) = (row.env.to_owned(), path.display().to_string());
        let problem = Problem::OpenToAll { name, path };
        self.warnings.push(Fault { origin: found.origin.clone(), problem });
    }

    fn finish(mut self) -> Result<Resolved, Faults> {
        let values: Vec<Value> = self.values.iter().map(|(value, _)| value.clone()).collect();
        let settings = EsperSettings::from_values(&values)
            .unwrap_or_else(|| panic!("every kind in the table fits its field's type"));
        let in_force: Vec<InForce> = DEFINITIONS
            .iter()
            .zip(self.values)
            .map(|(definition, (value, origin))| InForce {
                definition,
                shown: shown(&value),
                value,
                origin,
            })
            .collect();
        self.faults.extend(rules::contradictions(&settings, &in_force));
        if !self.faults.is_empty() {
            return Err(Faults(self.faults));
        }
        self.warnings.extend(rules::advice(&settings, &in_force));
        let (warnings, secret_files) = (self.warnings, self.secret_files);
        Ok(Resolved { settings, in_force, warnings, secret_files })
    }
}

/// Whether we are to judge who may read a file. What a container engine or the service manager puts
/// there has the permissions that it chose, and nobody else is in there.
fn is_our_care(path: &Path, origin: &Origin) -> bool {
    !path.starts_with("/run/secrets") && !matches!(origin, Origin::Credential { .. })
}

fn parse(row: &Definition, text: &str) -> Result<Value, Problem> {
    row.kind.parse(text).ok_or_else(|| Problem::Value {
        name: row.env.to_owned(),
        expected: row.kind.describe(),
        found: match row.kind {
            Kind::Secret => None,
            kind if kind.is_url() => Some(masked_url(text)),
            _ => Some(text.to_owned()),
        },
    })
}

fn shown(value: &Value) -> Option<String> {
    Some(match value {
        Value::Absent => return None,
        Value::Url(url) => url.masked(),
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
    use super::super::file::FileProblem;
    use super::*;
    use std::fs;
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
        assert_eq!(settings.urza_database_url.expose(), "sqlite:///./var/urza/catalog.db");
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
            "w.toml:2:16: OONA_MAX_ATTEMPTS must be a whole number of deliveries, 1 to 100, found \"0\"",
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
        let reported: Vec<String> = resolved.warnings.iter().map(ToString::to_string).collect();
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
    fn a_credential_and_a_file_are_read_for_what_may_hold_a_secret() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        write("ESPER_LEYLINE_SECRET", "the manager's own secret\n");
        write("OONA_MAX_ATTEMPTS", "3");
        let url = write("url", "redis://:hunter2@localhost/0\r\n");
        let sources = Sources {
            credentials: Some(directory.path().to_owned()),
            environment: environment(&[("REDIS_URL_FILE", &url)]),
            ..Sources::default()
        };
        let resolved = resolve(&sources).unwrap();
        let settings = &resolved.settings;
        assert_eq!(settings.leyline_secret.as_ref().unwrap().expose(), "the manager's own secret");
        assert_eq!(settings.redis_url.as_ref().unwrap().expose(), "redis://:hunter2@localhost/0");
        assert_eq!(settings.oona_attempts_max, 5, "only what is secret is a credential");
        assert_eq!(resolved.secret_files.len(), 2);
        let shown = format!("{resolved:?} {sources:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("own secret"), "{shown}");
        // The variable wins over the credential.
        let more = environment(&[("ESPER_LEYLINE_SECRET", "a secret of the variable")]);
        let settings = resolve(&Sources { environment: more, ..sources }).unwrap().settings;
        assert_eq!(settings.leyline_secret.unwrap().expose(), "a secret of the variable");
    }

    #[test]
    fn what_cannot_be_a_secret_file_is_a_fault_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (empty, binary) = (file("empty", b"\n"), file("binary", b"\xff\x00"));
        let sources = Sources {
            environment: environment(&[
                ("ESPER_LEYLINE_SECRET_FILE", directory.path().to_str().unwrap()),
                ("REDIS_PASSWORD_FILE", &empty),
                ("WEATHERLIGHT_HTTP_TOKEN_FILE", &binary),
            ]),
            ..Sources::default()
        };
        let faults = resolve(&sources).unwrap_err();
        let mut problems: Vec<&FileProblem> = Vec::new();
        for fault in &faults.0 {
            let Problem::Unreadable { problem, .. } = &fault.problem else { panic!("{fault}") };
            problems.push(problem);
        }
        assert_eq!(problems, [&FileProblem::Directory, &FileProblem::Empty, &FileProblem::NotText]);
    }

    #[test]
    fn a_secret_that_all_may_read_and_a_setting_without_effect_are_warnings() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "a long enough secret").unwrap();
        let warnings = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let sources = Sources {
                environment: environment(&[
                    ("ESPER_LEYLINE_SECRET_FILE", path.to_str().unwrap()),
                    ("TOLARIA_ROLLBACK_ENABLED", "true"),
                ]),
                ..Sources::default()
            };
            let warnings = resolve(&sources).unwrap().warnings;
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let found = warnings(0o644);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("every user") && found[0].contains("chmod o-r"), "{found:?}");
        assert!(found[1].contains("TOLARIA_ROLLBACK_ENABLED is accepted"), "{found:?}");
        assert_eq!(warnings(0o600).len(), 1);
    }

    /// Written in the file itself, a secret is as open as the file.
    #[test]
    fn a_secret_in_an_open_settings_file_is_a_warning() {
        let mut sources = with_file("[leyline]\nsecret = \"a long enough secret\"\n");
        assert_eq!(resolve(&sources).unwrap().warnings, []);
        sources.open_to_all = vec![PathBuf::from("w.toml")];
        let warnings = resolve(&sources).unwrap().warnings;
        assert!(matches!(warnings[0].problem, Problem::OpenToAll { .. }), "{warnings:?}");
    }

    #[test]
    fn every_bad_line_of_a_dotenv_file_is_reported() {
        let content = "no assignment\nOONA_MAX_ATTEMPTS=0\nnor is this\n";
        let sources =
            Sources { dotenv: Some((PathBuf::from(".env"), content.into())), ..Sources::default() };
        let faults = resolve(&sources).unwrap_err();
        let mut lines: Vec<usize> = Vec::new();
        for fault in &faults.0 {
            match fault.origin {
                Origin::File { line, .. } | Origin::DotEnv { line, .. } => lines.push(line),
                _ => panic!("{fault}"),
            }
        }
        lines.sort_unstable();
        assert_eq!(lines, [1, 2, 3], "{faults}");
    }

    #[test]
    fn carriage_returns_are_not_part_of_a_value() {
        let mut sources = with_file("[oona]\r\nmax_attempts = 2\r\n");
        sources.dotenv = Some((PathBuf::from(".env"), "OONA_MAX_MESSAGE_BYTES=4096\r\n".into()));
        let settings = resolve(&sources).unwrap().settings;
        assert_eq!((settings.oona_attempts_max, settings.oona_message_bytes_max), (2, 4096));
    }

    #[test]
    fn a_fault_as_json_says_setting_place_and_nearest_name() {
        let faults = resolve(&with_file("[oona]\nmax_atempts = 3\n")).unwrap_err();
        let fault = faults.0[0].to_json();
        assert_eq!(fault["setting"], "oona.max_atempts");
        assert_eq!(fault["did_you_mean"], "oona.max_attempts");
        assert_eq!((&fault["origin"]["line"], &fault["origin"]["column"]), (&2.into(), &1.into()));
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
