//! From the OpenMetrics text of the registry to OTLP metrics. Pure; the text is what `/metrics`
//! serves, so that both ways show the same numbers.

use std::collections::BTreeMap;

use super::wire::{
    CUMULATIVE, Data, Gauge, Histogram, HistogramPoint, KeyValue, Metric, Number, NumberPoint, Sum,
};

/// Since when the counters count, and when they were read; nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moments {
    pub(super) start_unix_ns: u64,
    pub(super) now_unix_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
struct Family<'a> {
    name: &'a str,
    help: String,
    unit: &'a str,
    kind: Kind,
    samples: Vec<Sample<'a>>,
}

#[derive(Debug)]
struct Sample<'a> {
    /// What follows the family's name: `_total`, `_bucket`, nothing.
    suffix: &'a str,
    labels: BTreeMap<&'a str, String>,
    value: &'a str,
}

/// Every metric of an exposition. Lines that are none are left out.
pub(super) fn metrics(text: &str, moments: Moments) -> Vec<Metric> {
    families(text).iter().filter_map(|family| metric(family, moments)).collect()
}

/// How many points they have.
pub(super) fn points(metrics: &[Metric]) -> u64 {
    let points = |metric: &Metric| match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        None => 0,
    };
    metrics.iter().map(|metric| points(metric) as u64).sum()
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        let Some(meta) = line.strip_prefix("# ") else {
            if let Some(family) = families.last_mut() {
                family.samples.extend(sample(line, family.name));
            }
            continue;
        };
        let mut words = meta.splitn(3, ' ');
        let (Some(word), Some(name)) = (words.next(), words.next()) else { continue };
        let rest = words.next().unwrap_or("");
        if families.last().is_none_or(|family| family.name != name) {
            let kind = Kind::Gauge;
            families.push(Family { name, help: String::new(), unit: "", kind, samples: vec![] });
        }
        let Some(family) = families.last_mut() else { continue };
        match word {
            "HELP" => family.help = unescape(rest.trim_end_matches('.')),
            "UNIT" => family.unit = unit(rest),
            "TYPE" => {
                family.kind = match rest {
                    "counter" => Kind::Counter,
                    "histogram" => Kind::Histogram,
                    _ => Kind::Gauge,
                }
            }
            _ => {}
        }
    }
    families
}

/// OTLP writes units as UCUM does.
fn unit(name: &str) -> &str {
    match name {
        "seconds" => "s",
        "bytes" => "By",
        "ratios" | "ratio" => "1",
        other => other,
    }
}

fn sample<'a>(line: &'a str, family: &str) -> Option<Sample<'a>> {
    let rest = line.strip_prefix(family)?;
    let end = rest.find(['{', ' '])?;
    let (suffix, rest) = rest.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    // What follows the value is a time or an exemplar.
    let value = rest.split_ascii_whitespace().next()?;
    value.parse::<f64>().ok()?;
    Some(Sample { suffix, labels, value })
}

/// `a="x",b="y"} rest`: the pairs, and the rest.
fn labels(mut text: &str) -> Option<(BTreeMap<&str, String>, &str)> {
    let mut pairs = BTreeMap::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Some((pairs, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let end = closing_quote(rest)?;
        pairs.insert(name, unescape(&rest[..end]));
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(place),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            other => plain.push(other),
        }
    }
    plain
}

fn metric(family: &Family<'_>, moments: Moments) -> Option<Metric> {
    let numbers = |suffix: &str| -> Vec<NumberPoint> {
        let own = family.samples.iter().filter(|sample| sample.suffix == suffix);
        own.filter_map(|sample| number(sample, moments)).collect()
    };
    let data = match family.kind {
        Kind::Counter => Data::Sum(Sum {
            data_points: numbers("_total"),
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        Kind::Gauge => Data::Gauge(Gauge { data_points: numbers("") }),
        Kind::Histogram => Data::Histogram(Histogram {
            data_points: histograms(&family.samples, moments),
            aggregation_temporality: CUMULATIVE,
        }),
    };
    let metric = Metric {
        name: family.name.to_owned(),
        description: family.help.clone(),
        unit: family.unit.to_owned(),
        data: Some(data),
    };
    // A family without a member yet has nothing to tell.
    (points(std::slice::from_ref(&metric)) > 0).then_some(metric)
}

fn number(sample: &Sample<'_>, moments: Moments) -> Option<NumberPoint> {
    let value = match sample.value.parse::<i64>() {
        Ok(integer) => Number::Integer(integer),
        Err(_) => Number::Double(sample.value.parse().ok()?),
    };
    Some(NumberPoint {
        attributes: attributes(&sample.labels),
        start_time_unix_nano: moments.start_unix_ns,
        time_unix_nano: moments.now_unix_ns,
        value: Some(value),
    })
}

fn attributes(labels: &BTreeMap<&str, String>) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| KeyValue::text(*name, value)).collect()
}

/// One point for each set of labels. The text counts everything up to a bound; OTLP counts what lies
/// between two.
fn histograms(samples: &[Sample<'_>], moments: Moments) -> Vec<HistogramPoint> {
    #[derive(Default)]
    struct Member {
        buckets: Vec<(f64, u64)>,
        sum: Option<f64>,
        count: u64,
    }
    let mut members: BTreeMap<BTreeMap<&str, String>, Member> = BTreeMap::new();
    for sample in samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").and_then(|bound| bound.parse::<f64>().ok());
        let member = members.entry(labels).or_default();
        match (sample.suffix, bound) {
            ("_bucket", Some(bound)) => {
                member.buckets.push((bound, sample.value.parse().unwrap_or(0)));
            }
            ("_sum", _) => member.sum = sample.value.parse().ok(),
            ("_count", _) => member.count = sample.value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let point = |(labels, mut member): (BTreeMap<&str, String>, Member)| {
        member.buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        // Observations may come in while the text is written, one line after the other.
        let (mut below, mut bucket_counts) = (0, Vec::new());
        for (_, up_to) in &member.buckets {
            bucket_counts.push(up_to.saturating_sub(below));
            below = below.max(*up_to);
        }
        let bounds = member.buckets.iter().map(|(bound, _)| *bound);
        HistogramPoint {
            attributes: attributes(&labels),
            start_time_unix_nano: moments.start_unix_ns,
            time_unix_nano: moments.now_unix_ns,
            count: bucket_counts.iter().sum(),
            sum: member.sum,
            explicit_bounds: bounds.filter(|bound| bound.is_finite()).collect(),
            bucket_counts,
        }
    };
    // The lists must agree; a member without its last bucket is none.
    let agrees =
        |point: &HistogramPoint| point.bucket_counts.len() == point.explicit_bounds.len() + 1;
    members.into_iter().map(point).filter(agrees).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::EncodeLabelSet;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family as Members;
    use prometheus_client::metrics::gauge::Gauge as Level;
    use prometheus_client::metrics::histogram::Histogram as Distribution;
    use prometheus_client::registry::{Registry, Unit};
    use std::sync::atomic::AtomicU64;

    const MOMENTS: Moments = Moments { start_unix_ns: 5, now_unix_ns: 9 };

    #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Labels {
        stream: String,
    }

    /// Through the encoder that serves `/metrics`, so that it is its text that is read.
    fn exported(fill: impl FnOnce(&mut Registry)) -> Vec<Metric> {
        let mut registry = Registry::default();
        fill(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        metrics(&text, MOMENTS)
    }

    fn point(attributes: Vec<KeyValue>, value: Number) -> NumberPoint {
        NumberPoint { attributes, start_time_unix_nano: 5, time_unix_nano: 9, value: Some(value) }
    }

    #[test]
    fn counters_are_sums_since_the_start() {
        let metrics = exported(|registry| {
            let family = Members::<Labels, Counter>::default();
            registry.register("oona_published", "What was published", family.clone());
            family.get_or_create(&Labels { stream: "a, b=}".to_owned() }).inc_by(3);
            family.get_or_create(&Labels { stream: "normal".to_owned() }).inc();
            registry.register("empty", "Nothing", Members::<Labels, Counter>::default());
        });
        let [metric] = &metrics[..] else { panic!("{metrics:?}") };
        assert_eq!((&*metric.name, &*metric.description), ("oona_published", "What was published"));
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == CUMULATIVE);
        assert_eq!(sum.data_points.len(), 2);
        for (stream, value) in [("a, b=}", 3), ("normal", 1)] {
            let expected = point(vec![KeyValue::text("stream", stream)], Number::Integer(value));
            assert!(sum.data_points.contains(&expected), "{sum:?}");
        }
    }

    /// The encoder of today escapes no label value; the format does.
    #[test]
    fn escaped_labels_and_exemplars_are_read() {
        let text = "# TYPE a counter\na_total{b=\"x\\\"} 7\\n\\\\\",c=\"d\"} 3 # {trace=\"e\"} 1 2\n# EOF\n";
        let metrics = metrics(text, MOMENTS);
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{metrics:?}") };
        let labels = vec![KeyValue::text("b", "x\"} 7\n\\"), KeyValue::text("c", "d")];
        assert_eq!(sum.data_points, [point(labels, Number::Integer(3))]);
    }

    #[test]
    fn gauges_keep_their_value_and_unit() {
        let metrics = exported(|registry| {
            let uptime = Level::<f64, AtomicU64>::default();
            registry.register_with_unit("uptime", "Time", Unit::Seconds, uptime.clone());
            uptime.set(1.5);
            let depth = Level::<i64>::default();
            registry.register("depth", "Backlog", depth.clone());
            depth.set(-4);
        });
        let value = |metric: &Metric| match &metric.data {
            Some(Data::Gauge(gauge)) => gauge.data_points.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((&*metrics[0].name, &*metrics[0].unit), ("uptime_seconds", "s"));
        assert_eq!(value(&metrics[0]), [point(vec![], Number::Double(1.5))]);
        assert_eq!(value(&metrics[1]), [point(vec![], Number::Integer(-4))]);
    }

    #[test]
    fn histograms_count_what_lies_between_two_bounds() {
        let metrics = exported(|registry| {
            let family = Members::<Labels, Distribution>::new_with_constructor(|| {
                Distribution::new([0.1, 1.0, 10.0])
            });
            registry.register("latency", "How long", family.clone());
            let member = family.get_or_create_owned(&Labels { stream: "normal".to_owned() });
            for seconds in [0.05, 0.5, 0.6, 100.0] {
                member.observe(seconds);
            }
        });
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("{metrics:?}") };
        assert_eq!(histogram.aggregation_temporality, CUMULATIVE);
        let [point] = &histogram.data_points[..] else { panic!("{histogram:?}") };
        assert_eq!(point.explicit_bounds, [0.1, 1.0, 10.0]);
        assert_eq!((&*point.bucket_counts, point.count), (&[1, 2, 0, 1][..], 4));
        assert_eq!(point.sum, Some(0.05 + 0.5 + 0.6 + 100.0));
        assert_eq!(point.attributes, [KeyValue::text("stream", "normal")]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_left_out(text in "(# (TYPE|HELP|UNIT) a [a-z]{0,9}\n|a(_bucket|_total)?(\\{[a-z\"=,}\\\\]{0,9})? [0-9.]{0,3}\n){0,9}") {
            let _ = metrics(&text, MOMENTS);
        }
    }
}
