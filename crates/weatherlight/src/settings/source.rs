//! Where the settings' texts come from, and finding one setting's text in each source.

use std::io;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike};

use super::definition::Definition;
use super::fault::{Fault, Origin, Problem, nearest};
use super::table::DEFINITIONS;

/// The settings file that is read when none is named and it exists.
pub const DEFAULT_FILE: &str = "weatherlight.toml";
/// Variables with these prefixes are ours; an unknown one is reported.
const PREFIXES: [&str; 9] = [
    "OONA_",
    "URZA_",
    "TEZZERET_",
    "KASMINA_",
    "TAMIYO_",
    "NISSA_",
    "TOLARIA_",
    "WEATHERLIGHT_",
    "KERNEL_",
];

/// The raw texts of all sources, read once.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The settings file's path and content.
    pub file: Option<(PathBuf, String)>,
    /// The `.env` file's path and content.
    pub dotenv: Option<(PathBuf, String)>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// `--set NAME=VALUE` arguments.
    pub overrides: Vec<String>,
}

impl Sources {
    /// Reads the settings file (`config`, else `weatherlight.toml` where it exists), `.env` and
    /// the environment of this process.
    ///
    /// # Errors
    /// A fault when a file that is named or exists cannot be read.
    pub fn gather(config: Option<&Path>, overrides: &[String]) -> Result<Self, Fault> {
        let file = match config {
            Some(path) => Some((path.to_owned(), read(path)?)),
            None => read_if_there(Path::new(DEFAULT_FILE))?,
        };
        Ok(Self {
            file,
            dotenv: read_if_there(Path::new(".env"))?,
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            overrides: overrides.to_vec(),
        })
    }
}

fn read(path: &Path) -> Result<String, Fault> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn read_if_there(path: &Path) -> Result<Option<(PathBuf, String)>, Fault> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    Fault {
        origin: Origin::File { path: path.to_owned(), line: 1, column: 1 },
        problem: Problem::Unreadable {
            path: path.display().to_string(),
            message: error.to_string(),
        },
    }
}

/// One text found for a setting.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) definition: usize,
    pub(super) text: String,
    /// The text is the path of a file that holds the secret.
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
        let fault = Fault { origin, problem: unknown(name, DEFINITIONS.iter().map(|row| row.env)) };
        if fault.origin == Origin::CommandLine {
            self.faults.push(fault);
        } else if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            self.unknown.push(fault);
        }
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    Problem::Unknown { name: name.to_owned(), nearest: nearest(name, known) }
}

fn definition_of_variable(name: &str) -> Option<(usize, bool)> {
    if let Some(index) = DEFINITIONS.iter().position(|row| row.env == name) {
        return Some((index, false));
    }
    let secret = name.strip_suffix("_FILE")?;
    let index = DEFINITIONS.iter().position(|row| row.env == secret && row.kind.is_secret())?;
    Some((index, true))
}

fn definition_of_key(key: &str) -> Option<(usize, bool)> {
    if let Some(index) = DEFINITIONS.iter().position(|row| row.key == key) {
        return Some((index, false));
    }
    let secret = key.strip_suffix("_file")?;
    let index = DEFINITIONS.iter().position(|row| row.key == secret && row.kind.is_secret())?;
    Some((index, true))
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
                    dotenvy::Error::LineParse(text, column) => (
                        content.lines().position(|line| line == text).map_or(1, |i| i + 1),
                        *column,
                    ),
                    _ => (1, 0),
                };
                harvest.fault(
                    Origin::File { path: path.to_owned(), line, column: column + 1 },
                    Problem::Syntax { message: "this line is not NAME=VALUE".into() },
                );
                break;
            }
        }
    }
    harvest
}

/// A settings file in TOML.
pub(super) fn file(path: &Path, content: &str) -> Harvest {
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
                let known = DEFINITIONS.iter().map(|row| row.key);
                harvest.fault(at(key_offset), unknown(&key, known));
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
