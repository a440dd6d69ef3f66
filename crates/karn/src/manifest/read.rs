//! From the text of a manifest to a [`Manifest`], or to every fault of it.

use std::collections::BTreeSet;

use kernel::Digest;
use toml_edit::{Document, Item, TableLike, Value};

use super::draw::SITE_NAMES;
use super::operator::{self, Attributes, NAMES, Starts};
use super::{
    DECLARED_MAX, Expression, MANIFEST_BYTES_MAX, MANIFEST_NODES_MAX, Manifest, ManifestError,
    ManifestFault, Node,
};
use crate::blueprint::{Clearance, Tier};
use crate::build::INPUT;
use crate::site::Site;

/// Longest id, name of a blueprint, parameter or node, in bytes.
const NAME_LEN_MAX: usize = 64;
/// Longest description, in bytes.
const DESCRIPTION_LEN_MAX: usize = 500;
/// Largest stage of the curriculum.
const STAGE_MAX: i64 = 6;

pub(super) fn read(text: &str) -> Result<Manifest, ManifestError> {
    let whole = |problem: String| {
        ManifestError(vec![ManifestFault { line: 1, field: "file".to_owned(), problem }])
    };
    if text.len() > MANIFEST_BYTES_MAX {
        let found = text.len();
        return Err(whole(format!("{found} bytes; at most {MANIFEST_BYTES_MAX} may be")));
    }
    let document = Document::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let problem = error.message().to_owned();
        ManifestError(vec![ManifestFault { line, field: "file".to_owned(), problem }])
    })?;
    let mut faults = Vec::new();
    let manifest = manifest(text, document.as_table(), &mut faults);
    match manifest {
        Some(manifest) if faults.is_empty() => Ok(manifest),
        _ => {
            faults.sort_by_key(|fault| fault.line);
            Err(ManifestError(faults))
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
}

/// One table being read: what is taken from it, and what is told about it.
struct Table<'a, 'f> {
    text: &'a str,
    table: &'a dyn TableLike,
    /// Its place in the manifest, with a full stop behind it.
    path: String,
    /// Its line.
    line: usize,
    taken: BTreeSet<&'static str>,
    /// Names that expressions may use.
    names: &'f BTreeSet<String>,
    faults: &'f mut Vec<ManifestFault>,
}

impl<'a> Table<'a, '_> {
    fn fault(&mut self, key: &str, problem: impl Into<String>) {
        let span = self.table.get_key_value(key).and_then(|(key, _)| key.span());
        let line = span.map_or(self.line, |span| line_of(self.text, span.start));
        let field = format!("{}{key}", self.path);
        self.faults.push(ManifestFault { line, field, problem: problem.into() });
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Item> {
        self.taken.insert(key);
        self.table.get(key)
    }

    /// An item of a kind, or a fault and `None`.
    fn require<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Item) -> Option<T>,
    ) -> Option<T> {
        let Some(item) = self.get(key) else {
            self.fault(key, format!("is missing; give {expected}"));
            return None;
        };
        let found = read(item);
        if found.is_none() {
            self.fault(key, format!("must be {expected}"));
        }
        found
    }

    fn flag(&mut self, key: &'static str) -> bool {
        match self.get(key) {
            None => false,
            Some(_) => self.require(key, "true or false", Item::as_bool).unwrap_or(false),
        }
    }

    /// Everything not taken is unknown.
    fn end(&mut self) {
        let unknown: Vec<String> = self
            .table
            .iter()
            .map(|(key, _)| key.to_owned())
            .filter(|key| !self.taken.contains(key.as_str()))
            .collect();
        let known = self.taken.iter().copied().collect::<Vec<_>>().join(", ");
        for key in unknown {
            self.fault(&key, format!("is unknown; there are {known}"));
        }
    }

    fn expression(&mut self, key: &'static str, value: &Value) -> Option<Expression> {
        if let Some(number) = value.as_integer() {
            return Some(Expression::Number(number as f64));
        }
        if let Some(number) = value.as_float() {
            if number.is_finite() {
                return Some(Expression::Number(number));
            }
            self.fault(key, "must be a finite number");
            return None;
        }
        let Some(text) = value.as_str() else {
            self.fault(key, "must be a number or an expression in quotes");
            return None;
        };
        let expression = match Expression::parse(text) {
            Ok(expression) => expression,
            Err(problem) => {
                self.fault(key, problem);
                return None;
            }
        };
        let mut used = BTreeSet::new();
        expression.names(&mut used);
        let unknown: Vec<_> = used.difference(self.names).cloned().collect();
        if unknown.is_empty() {
            return Some(expression);
        }
        let known = self.names.iter().cloned().collect::<Vec<_>>().join(", ");
        self.fault(key, format!("unknown in it: {}; there are {known}", unknown.join(", ")));
        None
    }
}

impl Attributes for Table<'_, '_> {
    fn number(&mut self, name: &'static str) -> Option<Expression> {
        let value = self.require(name, "a number or an expression in quotes", Item::as_value)?;
        self.expression(name, value)
    }

    fn number_or(&mut self, name: &'static str, default: f64) -> Option<Expression> {
        match self.get(name) {
            None => Some(Expression::Number(default)),
            Some(_) => self.number(name),
        }
    }

    fn numbers(&mut self, name: &'static str) -> Option<Vec<Expression>> {
        let list = self.require(name, "a list of numbers or expressions", Item::as_array)?;
        if list.len() > kernel::RANK_MAX {
            self.fault(
                name,
                format!("has {} entries; at most {} may be", list.len(), kernel::RANK_MAX),
            );
            return None;
        }
        let all: Vec<_> = list.iter().map(|value| self.expression(name, value)).collect();
        all.into_iter().collect()
    }

    fn starts(&mut self) -> Option<Starts> {
        let expected = "\"hidden\", \"linear\", \"zero\" or \"one\"";
        self.require("start", expected, |item| Starts::parse(item.as_str()?))
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_LEN_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// An id of a user: lower-case letters, digits and dashes, so that none is like ours.
fn is_id(id: &str) -> bool {
    id.len() <= NAME_LEN_MAX
        && id.starts_with(|first: char| first.is_ascii_lowercase())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn manifest(
    text: &str,
    root: &toml_edit::Table,
    faults: &mut Vec<ManifestFault>,
) -> Option<Manifest> {
    let none = BTreeSet::new();
    let mut table = Table {
        text,
        table: root,
        path: String::new(),
        line: 1,
        taken: BTreeSet::new(),
        names: &none,
        faults,
    };
    let words = |item: &'_ Item| item.as_str().map(str::to_owned);
    let id = table.require("id", "lower-case letters, digits and dashes, at most 64", |item| {
        words(item).filter(|id| is_id(id))
    });
    let name_form = "lower-case letters, digits and underscores, at most 64";
    let name = table.require("name", name_form, |item| words(item).filter(|name| is_name(name)));
    let tier =
        table.require("tier", "\"safe\" or \"experimental\"", |item| match item.as_str()? {
            "safe" => Some(Tier::Safe),
            "experimental" => Some(Tier::Experimental),
            _ => None,
        });
    let risk = table.require("risk", "a number from 0 to 1", |item| {
        let risk = item.as_float().or_else(|| item.as_integer().map(|risk| risk as f64));
        risk.filter(|risk| (0.0..=1.0).contains(risk))
    });
    let stage = table.require("stage", "a whole number from 0 to 6", |item| {
        item.as_integer().filter(|stage| (0..=STAGE_MAX).contains(stage))
    });
    let description = table.require("description", "text of at most 500 bytes", |item| {
        words(item).filter(|text| (1..=DESCRIPTION_LEN_MAX).contains(&text.len()))
    });
    let approval = table.flag("approval_required");
    let quarantine = table.flag("quarantine_only");
    let clearance = match (quarantine, approval || tier == Some(Tier::Experimental)) {
        (true, _) => Clearance::Quarantine,
        (false, true) => Clearance::Approval,
        (false, false) => Clearance::Open,
    };
    let sites = sites(&mut table);
    let output = table.require("output", "the name of a node", words);
    let output_line = root
        .get_key_value("output")
        .and_then(|(key, _)| key.span())
        .map_or(1, |span| line_of(text, span.start));
    let parameters = match table.get("parameters") {
        None => Some(Vec::new()),
        Some(item) => parameters(&mut table, item),
    };
    let nodes = table.require("nodes", "a list of tables, [[nodes]]", Item::as_array_of_tables);
    table.end();

    let mut names: BTreeSet<String> = SITE_NAMES.iter().map(|&name| name.to_owned()).collect();
    names.extend(parameters.iter().flatten().map(|(name, ..)| name.clone()));
    let nodes = nodes_of(text, nodes?, &names, faults)?;
    let output = output?;
    if !nodes.iter().any(|node| node.name == output) {
        let problem = format!("there is no node {output:?}");
        faults.push(ManifestFault { line: output_line, field: "output".to_owned(), problem });
    }
    Some(Manifest {
        id: id?,
        name: name?,
        tier: tier?,
        parameters: parameters?,
        risk: risk? as f32,
        stage: u32::try_from(stage?).ok()?,
        clearance,
        description: description?,
        sites: sites?,
        nodes,
        output,
        output_line,
        digest: Digest::of(text.as_bytes()),
    })
}

fn sites(table: &mut Table<'_, '_>) -> Option<Vec<Site>> {
    let list = table.require("sites", "a list such as [\"vector[32]\"]", Item::as_array)?;
    if list.is_empty() || list.len() > DECLARED_MAX {
        table.fault("sites", format!("must have 1 to {DECLARED_MAX} entries"));
        return None;
    }
    let mut sites = Vec::new();
    for value in list {
        match value.as_str().map(str::parse::<Site>) {
            Some(Ok(site)) => sites.push(site),
            Some(Err(error)) => table.fault("sites", error.to_string()),
            None => table.fault("sites", "must hold text such as \"vector[32]\""),
        }
    }
    Some(sites)
}

fn parameters(table: &mut Table<'_, '_>, item: &Item) -> Option<Vec<(String, f64, f64)>> {
    let Some(declared) = item.as_table_like() else {
        table.fault("parameters", "must be a table, [parameters]");
        return None;
    };
    if declared.len() > DECLARED_MAX {
        table.fault("parameters", format!("at most {DECLARED_MAX} may be declared"));
        return None;
    }
    let mut parameters = Vec::new();
    for (name, item) in declared.iter() {
        let span = declared.get_key_value(name).and_then(|(key, _)| key.span());
        let line = span.map_or(table.line, |span| line_of(table.text, span.start));
        let field = format!("parameters.{name}");
        let mut fault = |problem: String| {
            table.faults.push(ManifestFault { line, field: field.clone(), problem });
        };
        if !is_name(name) || SITE_NAMES.contains(&name) || ["min", "max", "round"].contains(&name) {
            fault(format!(
                "is no name for a parameter; use lower-case letters, digits and underscores, and none of {}, min, max, round",
                SITE_NAMES.join(", ")
            ));
            continue;
        }
        let number = |key: &str| {
            let value = item.as_table_like()?.get(key)?;
            value.as_float().or_else(|| value.as_integer().map(|number| number as f64))
        };
        let is_whole = item.as_table_like().is_some_and(|bounds| bounds.len() == 2);
        match (number("min"), number("max")) {
            (Some(min), Some(max))
                if is_whole && min.is_finite() && max.is_finite() && min < max =>
            {
                parameters.push((name.to_owned(), min, max));
            }
            _ => fault(
                "must be { min = .., max = .. } with finite numbers, min below max".to_owned(),
            ),
        }
    }
    Some(parameters)
}

fn nodes_of(
    text: &str,
    list: &toml_edit::ArrayOfTables,
    names: &BTreeSet<String>,
    faults: &mut Vec<ManifestFault>,
) -> Option<Vec<Node>> {
    if list.is_empty() || list.len() > MANIFEST_NODES_MAX {
        let problem = format!("there are {}; 1 to {MANIFEST_NODES_MAX} may be", list.len());
        let line = list.span().map_or(1, |span| line_of(text, span.start));
        faults.push(ManifestFault { line, field: "nodes".to_owned(), problem });
        return None;
    }
    let mut known: BTreeSet<String> = BTreeSet::from([INPUT.to_owned()]);
    let mut nodes = Vec::new();
    for (index, one) in list.iter().enumerate() {
        let line = one.span().map_or(1, |span| line_of(text, span.start));
        let named = one.get("name").and_then(Item::as_str).unwrap_or_default();
        let label = if is_name(named) { named.to_owned() } else { index.to_string() };
        let path = format!("nodes.{label}.");
        let taken = BTreeSet::new();
        let mut table = Table { text, table: one, path, line, taken, names, faults };
        nodes.extend(node(&mut table, &mut known));
    }
    Some(nodes)
}

fn node(table: &mut Table<'_, '_>, known: &mut BTreeSet<String>) -> Option<Node> {
    let form = "lower-case letters, digits and underscores, at most 64";
    let name = table.require("name", form, |item| {
        item.as_str().filter(|name| is_name(name)).map(str::to_owned)
    });
    if let Some(name) = &name
        && known.contains(name)
    {
        table.fault("name", format!("{name:?} is taken; choose another"));
    }
    let word = table.require("op", "the name of an operator", Item::as_str);
    let inputs = match table.get("inputs") {
        None => Some(Vec::new()),
        Some(_) => table.require("inputs", "a list of names of nodes", |item| {
            let list = item.as_array()?;
            list.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        }),
    };
    for input in inputs.iter().flatten().filter(|input| !known.contains(*input)) {
        table.fault("inputs", format!("no node {input:?} stands before this one"));
    }
    let line = table.line;
    // Whatever is wrong with it, those after it may refer to it.
    known.extend(name.clone());
    let word = word?;
    let Some((operation, takes)) = operator::read(word, table) else {
        table.fault("op", format!("there is no operator {word:?}; there are {NAMES}"));
        return None;
    };
    table.end();
    let inputs = inputs?;
    let fits = match takes {
        Some(count) => inputs.len() == count,
        None => (1..=MANIFEST_NODES_MAX).contains(&inputs.len()),
    };
    if !fits {
        let takes = takes.map_or("at least 1".to_owned(), |count| count.to_string());
        table.fault("inputs", format!("{word} takes {takes}, found {}", inputs.len()));
    }
    Some(Node { name: name?, line, operation: operation?, inputs })
}
