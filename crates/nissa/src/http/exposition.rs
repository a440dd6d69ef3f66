//! Reads back samples of one family from the exposition text. The page shows the bus by the very
//! numbers that a scrape gets, and needs no second path to them.

use std::collections::BTreeMap;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

impl Sample {
    /// The value of a label.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// Every sample with exactly this name (a counter's ends in `_total`).
pub(super) fn samples(text: &str, name: &str) -> Vec<Sample> {
    text.lines().filter_map(|line| sample(line, name)).collect()
}

fn sample(line: &str, name: &str) -> Option<Sample> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once("} ")?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let value = value.split(' ').next()?.parse().ok()?;
    Some(Sample { labels: pairs(labels), value })
}

/// `a="x",b="y"`. Label values of this project are enums and settings; one with a quote in it would
/// lose its label here, not its value.
fn pairs(text: &str) -> BTreeMap<String, String> {
    text.split("\",")
        .filter_map(|pair| {
            let (key, value) = pair.split_once("=\"")?;
            Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_family_is_read() {
        let text =
            "# TYPE a counter\na_total{x=\"1\",y=\"z w\"} 3\na_total_other 9\nb 2.5\n# EOF\n";
        let found = samples(text, "a_total");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].value, 3.0);
        assert_eq!(found[0].labels["y"], "z w");
        assert_eq!(samples(text, "b"), [Sample { labels: BTreeMap::new(), value: 2.5 }]);
        assert!(samples(text, "missing").is_empty());
    }
}
