//! Where the settings' texts come from, and finding one setting's text in each source.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike};

use super::definition::Definition;
use super::fault::{Fault, Origin, Problem, nearest};
use super::file::{self, FileProblem, SETTINGS_BYTES_MAX};
use super::table::DEFINITIONS;

/// The settings file that is read when none is named and it exists.
pub const DEFAULT_FILE: &str = "weatherlight.toml";
/// The file with variables that is read where it exists.
pub const DOTENV_FILE: &str = ".env";
/// Variables with these prefixes are ours; an unknown one is reported.
const PREFIXES: [&str; 11] = [
    "OONA_",
    "URZA_",
    "TEZZERET_",
    "KASMINA_",
    "TAMIYO_",
    "NISSA_",
    "TOLARIA_",
    "WEATHERLIGHT_",
    "KERNEL_",
    "ESPER_",
    "LEYLINE_",
];

/// The raw texts of all sources, read once.
#[derive(Clone, Default)]
pub struct Sources {
    /// The settings file's path and content.
    pub file: Option<(PathBuf, String)>,
    /// The `.env` file's path and content.
    pub dotenv: Option<(PathBuf, String)>,
    /// The directory in which the service manager keeps credentials, a file for each.
    pub credentials: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// `--set NAME=VALUE` arguments.
    pub overrides: Vec<String>,
    /// Those of the files above that every user of the machine may read.
    pub open_to_all: Vec<PathBuf>,
    /// What could not be read.
    pub faults: Vec<Fault>,
}

impl std::fmt::Debug for Sources {
    /// Paths only: any of the texts may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file.as_ref().map(|(path, _)| path))
            .field("dotenv", &self.dotenv.as_ref().map(|(path, _)| path))
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// Reads the settings file (`config`, else `weatherlight.toml` where it exists), `.env` and
    /// the environment of this process. What cannot be read is among the faults.
    pub fn gather(config: Option<&Path>, overrides: &[String]) -> Self {
        let mut sources = Self { overrides: overrides.to_vec(), ..Self::default() };
        sources.file = match config {
            Some(path) => sources.read(path, Absence::Fault),
            None => sources.read(Path::new(DEFAULT_FILE), Absence::Allowed),
        };
        sources.dotenv = sources.read(Path::new(DOTENV_FILE), Absence::Allowed);
        sources.credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        for (name, value) in std::env::vars_os() {
            sources.take_variable(name, value);
        }
        sources
    }

    fn read(&mut self, path: &Path, absence: Absence) -> Option<(PathBuf, String)> {
        match file::read(path, SETTINGS_BYTES_MAX) {
            Ok(file) => {
                if file.is_open_to_all {
                    self.open_to_all.push(path.to_owned());
                }
                Some((path.to_owned(), file.text))
            }
            Err(FileProblem::Missing) if absence == Absence::Allowed => None,
            Err(problem) => {
                self.faults.push(Fault {
                    origin: Origin::File { path: path.to_owned(), line: 1, column: 1 },
                    problem: Problem::Unreadable { path: path.display().to_string(), problem },
                });
                None
            }
        }
    }

    /// A variable whose name is no text is nobody's setting; one of ours must have a text as value.
    fn take_variable(&mut self, name: OsString, value: OsString) {
        let Ok(name) = name.into_string() else { return };
        match value.into_string() {
            Ok(value) => self.environment.push((name, value)),
            Err(_) if is_ours(&name) => self.faults.push(Fault {
                origin: Origin::Environment { name: name.clone() },
                problem: Problem::NotText { name },
            }),
            Err(_) => {}
        }
    }
}

/// What it means that a file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    Allowed,
    Fault,
}

/// Whether a variable is a setting, or looks as if it was meant for one.
fn is_ours(name: &str) -> bool {
    definition_of_variable(name).is_some() || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// One text found for a setting.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) definition: usize,
    pub(super) text: String,
    /// The text is the path of a file that holds the value.
    pub(super) is_secret_file: bool,
    pub(super) origin: Origin,
}

/// What one source holds.
#[derive(Debug, Default)]
pub(super) struct Harvest {
    pub(super) found: Vec<Found>,
    pub(super) faults: Vec<Fault>,
    /// Variables that look like ours and are not: reported, not fatal.
    pub(super) unknown: Vec<Fault>,
}

impl Harvest {
    fn fault(&mut self, origin: Origin, problem: Problem) {
        self.faults.push(Fault { origin, problem });
    }

    /// Takes a variable by name. An unknown one is a fault when the user named it to us, and
    /// merely reported when it stood in an environment shared with other programs.
    fn variable(&mut self, name: &str, text: &str, origin: Origin) {
        // An empty variable is how a compose file or shell says "not set".
        if let Some((definition, is_secret_file)) = definition_of_variable(name) {
            if !text.trim().is_empty() {
                self.found.push(Found { definition, text: text.into(), is_secret_file, origin });
            }
            return;
        }
        let fault = Fault { origin, problem: unknown(name, variables()) };
        if fault.origin == Origin::CommandLine {
            self.faults.push(fault);
        } else if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            self.unknown.push(fault);
        }
    }
}

fn unknown(name: &str, known: Vec<String>) -> Problem {
    let nearest = nearest(name, known.iter().map(String::as_str));
    Problem::Unknown { name: name.to_owned(), nearest }
}

/// Every variable that is read.
fn variables() -> Vec<String> {
    let names = DEFINITIONS.iter().map(|row| row.env.to_owned());
    names.chain(in_files().map(|row| format!("{}_FILE", row.env))).collect()
}

/// Every key and table of the settings file.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> = DEFINITIONS.iter().map(|row| row.key.to_owned()).collect();
    keys.extend(in_files().map(|row| format!("{}_file", row.key)));
    keys.extend(DEFINITIONS.iter().filter_map(|row| Some(row.key.split_once('.')?.0.to_owned())));
    keys
}

/// The settings that may stand in a file of their own.
fn in_files() -> impl Iterator<Item = &'static Definition> {
    DEFINITIONS.iter().filter(|row| row.kind.may_stand_in_a_file())
}

/// Where a setting with this name stands in the table, whose value may stand in a file.
fn in_file(is_named: impl Fn(&Definition) -> bool) -> Option<usize> {
    DEFINITIONS.iter().position(|row| row.kind.may_stand_in_a_file() && is_named(row))
}

fn definition_of_variable(name: &str) -> Option<(usize, bool)> {
    if let Some(index) = DEFINITIONS.iter().position(|row| row.env == name) {
        return Some((index, false));
    }
    let secret = name.strip_suffix("_FILE")?;
    Some((in_file(|row| row.env == secret)?, true))
}

fn definition_of_key(key: &str) -> Option<(usize, bool)> {
    if let Some(index) = DEFINITIONS.iter().position(|row| row.key == key) {
        return Some((index, false));
    }
    let secret = key.strip_suffix("_file")?;
    Some((in_file(|row| row.key == secret)?, true))
}

/// Credentials of the service manager: files that bear a setting's name.
pub(super) fn credentials(directory: &Path) -> Harvest {
    let mut harvest = Harvest::default();
    for (definition, row) in DEFINITIONS.iter().enumerate() {
        let path = directory.join(row.env);
        if row.kind.may_stand_in_a_file() && path.exists() {
            let (text, origin) = (path.display().to_string(), Origin::Credential { path });
            harvest.found.push(Found { definition, text, is_secret_file: true, origin });
        }
    }
    harvest
}

/// Variables of the process.
pub(super) fn environment(variables: &[(String, String)]) -> Harvest {
    let mut harvest = Harvest::default();
    for (name, value) in variables {
        harvest.variable(name, value, Origin::Environment { name: name.clone() });
    }
    harvest
}

/// `NAME=VALUE` arguments.
pub(super) fn overrides(arguments: &[String]) -> Harvest {
    let mut harvest = Harvest::default();
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, value)) => harvest.variable(name.trim(), value, Origin::CommandLine),
            None => harvest.fault(
                Origin::CommandLine,
                Problem::Syntax { message: format!("{argument:?} is not of the form NAME=VALUE") },
            ),
        }
    }
    harvest
}

/// A `.env` file.
pub(super) fn dotenv(path: &Path, content: &str) -> Harvest {
    let mut harvest = Harvest::default();
    let line_of = |name: &str| {
        let is_assignment = |line: &str| {
            let line = line.trim_start().trim_start_matches("export ").trim_start();
            line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        content.lines().position(is_assignment).map_or(1, |index| index + 1)
    };
    for entry in dotenvy::from_read_iter(content.as_bytes()) {
        match entry {
            Ok((name, value)) => {
                let origin = Origin::DotEnv { path: path.to_owned(), line: line_of(&name) };
                harvest.variable(&name, &value, origin);
            }
            Err(error) => {
                let (line, column) = match &error {
                    dotenvy::Error::LineParse(text, column) => (line_with(content, text), *column),
                    _ => (1, 0),
                };
                harvest.fault(
                    Origin::File { path: path.to_owned(), line, column: column + 1 },
                    Problem::Syntax { message: "this line is not NAME=VALUE".into() },
                );
                // After a line that cannot be read come others; after any other error nothing.
                if !matches!(error, dotenvy::Error::LineParse(..)) {
                    break;
                }
            }
        }
    }
    harvest
}

/// The number of the line, from 1, with which a text of one or more lines begins.
fn line_with(content: &str, text: &str) -> usize {
    let first = text.lines().next().unwrap_or_default().trim();
    content.lines().position(|line| line.trim() == first).map_or(1, |index| index + 1)
}

/// A settings file in TOML.
pub(super) fn toml(path: &Path, content: &str) -> Harvest {
    let mut harvest = Harvest::default();
    let at = |offset: usize| {
        let (line, column) = line_and_column(content, offset);
        Origin::File { path: path.to_owned(), line, column }
    };
    match Document::parse(content) {
        Ok(document) => walk(document.as_table(), "", &at, &mut harvest),
        Err(error) => {
            let offset = error.span().map_or(0, |span| span.start);
            harvest.fault(at(offset), Problem::Syntax { message: error.message().to_owned() });
        }
    }
    harvest
}

fn walk(table: &dyn TableLike, prefix: &str, at: &dyn Fn(usize) -> Origin, harvest: &mut Harvest) {
    for (name, item) in table.iter() {
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        let key_offset = table
            .key(name)
            .and_then(toml_edit::Key::span)
            .or_else(|| item.span())
            .map_or(0, |span| span.start);
        if let Some((index, is_secret_file)) = definition_of_key(&key) {
            let origin = at(item.span().map_or(key_offset, |span| span.start));
            match scalar(item, &DEFINITIONS[index]) {
                // As with variables, an empty text says that it is not set.
                Some(text) if text.is_empty() && DEFINITIONS[index].default.is_none() => {}
                Some(text) => {
                    harvest.found.push(Found { definition: index, text, is_secret_file, origin })
                }
                None => harvest.fault(origin, wrong_type(&DEFINITIONS[index], item)),
            }
            continue;
        }
        let is_section = DEFINITIONS
            .iter()
            .any(|row| row.key.strip_prefix(&key).is_some_and(|rest| rest.starts_with('.')));
        match item.as_table_like() {
            Some(inner) if is_section => walk(inner, &key, at, harvest),
            _ => {
                harvest.fault(at(key_offset), unknown(&key, keys()));
            }
        }
    }
}

/// The text of a TOML scalar, where its type suits the setting.
fn scalar(item: &Item, definition: &Definition) -> Option<String> {
    if let Some(text) = item.as_str() {
        return Some(text.to_owned());
    }
    if definition.kind.is_textual() {
        return None;
    }
    let number = item.as_integer().map(|n| n.to_string());
    number
        .or_else(|| item.as_float().map(|n| n.to_string()))
        .or_else(|| item.as_bool().map(|switch| switch.to_string()))
}

fn wrong_type(definition: &Definition, item: &Item) -> Problem {
    Problem::Value {
        name: definition.key.to_owned(),
        expected: definition.kind.describe(),
        found: (!definition.kind.is_secret()).then(|| item.type_name().to_owned()),
    }
}

/// Line and column of a byte offset, both from 1, the column in characters.
fn line_and_column(content: &str, offset: usize) -> (usize, usize) {
    let before = &content[..offset.min(content.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    #[test]
    fn a_setting_whose_value_is_no_text_is_a_fault_and_a_stranger_is_not() {
        let broken = || OsString::from_vec(vec![0xff, 0xfe]);
        let mut sources = Sources::default();
        for name in ["REDIS_URL", "OONA_UNHEARD_OF", "SOMEBODY_ELSES"] {
            sources.take_variable(name.into(), broken());
        }
        let named: Vec<_> = sources.faults.iter().map(|fault| fault.problem.setting()).collect();
        assert_eq!(named, [Some("REDIS_URL"), Some("OONA_UNHEARD_OF")]);
        assert!(sources.environment.is_empty());
    }

    #[test]
    fn every_file_that_cannot_be_read_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let sources = Sources::gather(Some(directory.path()), &[]);
        let problem = &sources.faults[0].problem;
        let expected = FileProblem::Directory;
        assert!(matches!(problem, Problem::Unreadable { problem, .. } if *problem == expected));
    }
}
