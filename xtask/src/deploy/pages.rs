//! Prometheus's rules and Grafana's dashboard: every metric in them exists.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::known::Known;
use super::{read, yaml};

pub const RULES: &str = "deploy/prometheus/rules.yaml";
pub const RULES_TEST: &str = "deploy/prometheus/rules_test.yaml";
pub const SCRAPES: &str = "deploy/prometheus/prometheus.yaml";
const DASHBOARD: &str = "deploy/grafana/dashboards/weatherlight.json";
const DATASOURCE: &str = "deploy/grafana/provisioning/datasources/prometheus.yaml";
const PROVIDER: &str = "deploy/grafana/provisioning/dashboards/files.yaml";

/// What Prometheus makes itself.
const OF_PROMETHEUS: [&str; 2] = ["up", "ALERTS"];

pub fn faults(root: &Path, known: &Known) -> Result<Vec<String>> {
    let rules = yaml(&read(root, RULES)?).context(RULES)?;
    let rules = rules.first().context("an empty file")?;
    let dashboard: Value = serde_json::from_str(&read(root, DASHBOARD)?).context(DASHBOARD)?;
    let mut faults = Vec::new();
    for (file, document) in [(RULES, rules), (DASHBOARD, &dashboard)] {
        let mut found = Vec::new();
        texts(document, "expr", &mut found);
        if found.is_empty() {
            faults.push(format!("{file}: nothing in it asks for a metric"));
        }
        for expression in found {
            for name in metrics(expression) {
                if !known.has_metric(name) && !OF_PROMETHEUS.contains(&name) {
                    faults.push(format!("{file}: no metric {name}, in: {expression}"));
                }
            }
        }
    }
    faults.extend(untested(rules, &read(root, RULES_TEST)?));
    faults.extend(sources(root, &dashboard)?);
    let scraped = read(root, SCRAPES)?;
    yaml(&scraped).context(SCRAPES)?;
    let target = format!("weatherlight:{}", known.port()?);
    if !scraped.contains(&target) {
        faults.push(format!("{SCRAPES}: {target} is not scraped"));
    }
    yaml(&read(root, PROVIDER)?).context(PROVIDER)?;
    Ok(faults)
}

/// Alerts that no test of the rules names.
fn untested(rules: &Value, tests: &str) -> Vec<String> {
    let mut alerts = Vec::new();
    texts(rules, "alert", &mut alerts);
    let without = alerts.into_iter().filter(|alert| !tests.contains(alert));
    without.map(|alert| format!("{RULES_TEST}: nothing tests {alert}")).collect()
}

/// The dashboard asks the datasource that is provisioned, everywhere.
fn sources(root: &Path, dashboard: &Value) -> Result<Vec<String>> {
    let provisioned = yaml(&read(root, DATASOURCE)?).context(DATASOURCE)?;
    let wanted = provisioned[0]["datasources"][0]["uid"].as_str().context("no uid")?.to_owned();
    let mut named = Vec::new();
    datasources(dashboard, &mut named);
    let others = named.into_iter().filter(|uid| *uid != wanted);
    Ok(others.map(|uid| format!("{DASHBOARD}: asks the datasource {uid}, not {wanted}")).collect())
}

fn datasources<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "datasource" {
                    found.push(value["uid"].as_str().unwrap_or("without a uid"));
                }
                datasources(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| datasources(item, found)),
        _ => {}
    }
}

/// Every text under a key, at any depth.
fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    _ => texts(value, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        _ => {}
    }
}

/// The metrics of a PromQL expression: words outside of selectors, quotes, ranges and label lists
/// that no parenthesis follows and that are no keyword.
fn metrics(expression: &str) -> Vec<&str> {
    const KEYWORDS: [&str; 8] =
        ["and", "or", "unless", "bool", "on", "ignoring", "offset", "group_left"];
    let mut found = Vec::new();
    let (mut depth, mut start, mut is_label_list) = (0_u32, None, false);
    let bytes = expression.as_bytes();
    for at in 0..=bytes.len() {
        let byte = bytes.get(at).copied().unwrap_or(b' ');
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':' {
            start = start.or(Some(at));
            continue;
        }
        if let Some(from) = start.take() {
            let word = &expression[from..at];
            let is_number = word.starts_with(|first: char| first.is_ascii_digit());
            let rest = expression[at..].trim_start();
            let is_call = ["(", "by ", "without "].iter().any(|next| rest.starts_with(next));
            if matches!(word, "by" | "without") {
                is_label_list = true;
            } else if depth == 0
                && !is_label_list
                && !is_number
                && !is_call
                && !KEYWORDS.contains(&word)
            {
                found.push(word);
            }
        }
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b')' => is_label_list = false,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_an_expression_are_found() {
        for (expression, wanted) in [
            ("up{job=\"weatherlight\"} == 0", vec!["up"]),
            ("a_total + b > 5e3", vec!["a_total", "b"]),
            ("sum by (instance, le) (rate(x_bucket[5m])) > 5", vec!["x_bucket"]),
            (
                "histogram_quantile(0.99, sum by (le) (rate(x_bucket{a=~\"b|c\"}[5m])))",
                vec!["x_bucket"],
            ),
            ("1 - x and y", vec!["x", "y"]),
        ] {
            assert_eq!(metrics(expression), wanted, "{expression}");
        }
    }

    #[test]
    fn an_alert_without_a_test_is_found() {
        let rules =
            serde_json::json!({ "groups": [{ "rules": [{ "alert": "A" }, { "alert": "B" }] }] });
        assert_eq!(untested(&rules, "alertname: A").len(), 1);
    }
}
