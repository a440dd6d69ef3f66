//! Where a value came from and what can be wrong with it.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::file::FileProblem;

/// Where a value, or a fault, stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The settings file; line and column count from 1.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// A line of the `.env` file.
    DotEnv {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        name: String,
    },
    /// A credential of the service manager: the file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential {
        /// The file.
        path: PathBuf,
    },
    /// `--set` on the command line.
    CommandLine,
    /// Several settings together.
    Together,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::DotEnv { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { name } => write!(f, "environment variable {name}"),
            Self::Credential { path } => write!(f, "credential {}", path.display()),
            Self::CommandLine => f.write_str("command line --set"),
            Self::Together => f.write_str("settings"),
        }
    }
}

impl Origin {
    /// The place as JSON: `source`, and the file with line and column or the variable's name.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Default => json!({ "source": "default" }),
            Self::File { path, line, column } => {
                json!({ "source": "file", "file": path, "line": line, "column": column })
            }
            Self::DotEnv { path, line } => {
                json!({ "source": "dotenv", "file": path, "line": line })
            }
            Self::Environment { name } => json!({ "source": "environment", "variable": name }),
            Self::Credential { path } => json!({ "source": "credential", "file": path }),
            Self::CommandLine => json!({ "source": "command_line" }),
            Self::Together => json!({ "source": "together" }),
        }
    }
}

/// One setting of several that contradict one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// The setting's variable.
    pub name: &'static str,
    /// Its value in force, secrets masked; `None` when unset.
    pub shown: Option<String>,
    /// Where that came from.
    pub origin: Origin,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, shown, origin } = self;
        match shown {
            Some(shown) => write!(f, "{name}={shown} ({origin})"),
            None => write!(f, "{name} unset"),
        }
    }
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No setting has this name.
    #[error("there is no setting {name}{}", suggestion(nearest.as_deref()))]
    Unknown {
        /// The name as written.
        name: String,
        /// The known name nearest to it.
        nearest: Option<String>,
    },
    /// The value is not of the setting's type or out of its bounds.
    #[error("{name} must be {expected}{}", found.as_ref().map(|f| format!(", found {f:?}")).unwrap_or_default())]
    Value {
        /// The setting.
        name: String,
        /// What its kind describes.
        expected: String,
        /// What stood there; absent for a secret.
        found: Option<String>,
    },
    /// The text around the value cannot be read.
    #[error("{message}")]
    Syntax {
        /// What the parser objected to.
        message: String,
    },
    /// A file that is named cannot be read.
    #[error("cannot read {path}: {problem}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        problem: FileProblem,
    },
    /// A variable of ours whose value is no text.
    #[error("the value of {name} is not UTF-8 text")]
    NotText {
        /// The variable.
        name: String,
    },
    /// A secret stands both in a variable and in a file.
    #[error("{name} and {name}_FILE are both set; keep one of them")]
    Twice {
        /// The setting.
        name: String,
    },
    /// Two settings contradict one another.
    #[error("{message}{}", listed(parties))]
    Contradiction {
        /// What must hold, and what to do.
        message: String,
        /// The settings it is about, with their values and where those came from.
        parties: Vec<Party>,
    },
    /// A setting that is accepted and does nothing. A warning.
    #[error("{name} is accepted for older programs and has no effect; remove it")]
    NoEffect {
        /// The setting.
        name: String,
    },
    /// A file with a secret in it that every user may read. A warning.
    #[error("{name}: every user of this machine can read the secret in {path}; `chmod o-r` it")]
    OpenToAll {
        /// The setting.
        name: String,
        /// The file.
        path: String,
    },
}

impl Problem {
    /// The setting it is about, as a variable or key; none for what is no setting's fault.
    pub fn setting(&self) -> Option<&str> {
        match self {
            Self::Unknown { name, .. }
            | Self::Value { name, .. }
            | Self::NotText { name }
            | Self::Twice { name }
            | Self::NoEffect { name }
            | Self::OpenToAll { name, .. } => Some(name),
            Self::Contradiction { parties, .. } => parties.first().map(|party| party.name),
            Self::Syntax { .. } | Self::Unreadable { .. } => None,
        }
    }
}

fn listed(parties: &[Party]) -> String {
    let parties: Vec<String> = parties.iter().map(ToString::to_string).collect();
    if parties.is_empty() { String::new() } else { format!(" [{}]", parties.join(", ")) }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// One fault with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct Fault {
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong.
    pub problem: Problem,
}

impl Fault {
    /// Setting, problem and place, as JSON.
    pub fn to_json(&self) -> Value {
        let mut fault = json!({
            "setting": self.problem.setting(),
            "problem": self.problem.to_string(),
            "origin": self.origin.to_json(),
        });
        match &self.problem {
            Problem::Unknown { nearest: Some(nearest), .. } => {
                fault["did_you_mean"] = nearest.as_str().into();
            }
            Problem::Contradiction { parties, .. } => {
                let party = |party: &Party| {
                    let (value, origin) = (&party.shown, party.origin.to_json());
                    json!({ "setting": party.name, "value": value, "origin": origin })
                };
                fault["settings"] = parties.iter().map(party).collect();
            }
            _ => {}
        }
        fault
    }
}

/// Every fault of the settings, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} in the settings:{}", count(.0.len()), lines(.0))]
pub struct Faults(pub Vec<Fault>);

fn count(faults: usize) -> String {
    if faults == 1 { "1 fault".into() } else { format!("{faults} faults") }
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

/// The known name nearest to `name`, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut best: Option<(f64, &str)> = None;
    for candidate in known {
        let similarity =
            strsim::jaro_winkler(&name.to_ascii_uppercase(), &candidate.to_ascii_uppercase());
        if best.is_none_or(|(found, _)| similarity > found) {
            best = Some((similarity, candidate));
        }
    }
    best.filter(|(similarity, _)| *similarity > 0.85).map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_name_is_suggested() {
        let known = ["OONA_MAX_ATTEMPTS", "URZA_ARTIFACT_DIR"];
        let suggest = |name| nearest(name, known.iter().copied());
        assert_eq!(suggest("OONA_MAX_ATTEMPT").as_deref(), Some("OONA_MAX_ATTEMPTS"));
        assert_eq!(suggest("urza_artefact_dir").as_deref(), Some("URZA_ARTIFACT_DIR"));
        assert_eq!(suggest("XYZZY"), None);
    }
}
