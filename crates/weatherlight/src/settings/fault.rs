//! Where a value came from and what can be wrong with it.

use std::fmt;
use std::path::PathBuf;

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
            Self::CommandLine => f.write_str("command line --set"),
            Self::Together => f.write_str("settings"),
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
    #[error("cannot read {path}: {message}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        message: String,
    },
    /// A secret stands both in a variable and in a file.
    #[error("{name} and {name}_FILE are both set; keep one of them")]
    Twice {
        /// The setting.
        name: String,
    },
    /// Two settings contradict one another.
    #[error("{message}")]
    Contradiction {
        /// Which, and what must hold.
        message: String,
    },
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
