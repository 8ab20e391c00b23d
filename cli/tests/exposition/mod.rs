//! The text format that monitors read (OpenMetrics 1.0): fetched, taken apart, and found fault with.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The labels of a sample, in their order.
pub(crate) type Labels = Vec<(String, String)>;

/// Figures of one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    has_help: bool,
    /// By name and labels.
    pub(crate) samples: BTreeMap<(String, Labels), String>,
}

impl Family {
    /// The names of the labels of its samples; a histogram's buckets without their bounds.
    pub(crate) fn label_names(&self) -> BTreeSet<Vec<&str>> {
        self.samples
            .keys()
            .map(|(_, labels)| {
                let names = labels.iter().map(|(name, _)| name.as_str());
                names.filter(|name| *name != "le").collect()
            })
            .collect()
    }
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Page(BTreeMap<String, Family>);

impl Page {
    /// By the name under which it is documented.
    pub(crate) fn family(&self, name: &str) -> Option<&Family> {
        self.0.get(name.strip_suffix("_total").unwrap_or(name))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// All samples of a name together.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let samples = self.family(name).map(|family| family.samples.values());
        let values = samples.into_iter().flatten();
        values
            .map(|value| value.parse::<f64>().expect("a number"))
            .sum()
    }

    /// Takes a text apart. Panics, and says at which line, where it is not as it has to be.
    pub(crate) fn read(text: &str) -> Self {
        let mut families = BTreeMap::<String, Family>::new();
        let mut current = String::new();
        let body = text.strip_suffix("# EOF\n").expect("it is whole");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let mut word = || words.next().unwrap_or_else(|| panic!("cut short: {line}"));
                let (what, name, value) = (word(), word(), word());
                if name != current {
                    assert!(!families.contains_key(name), "twice: {line}");
                    current = name.to_owned();
                }
                let family = families.entry(current.clone()).or_default();
                match what {
                    "HELP" => family.has_help = true,
                    "TYPE" => family.kind = value.to_owned(),
                    "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                    _ => panic!("no such thing: {line}"),
                }
            } else {
                let (name, labels, value) = sample(line);
                let family = families.get_mut(&current);
                let family = family.unwrap_or_else(|| panic!("of no family: {line}"));
                let suffixes: &[&str] = match family.kind.as_str() {
                    "gauge" => &[""],
                    "counter" => &["_total"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    other => panic!("{other} is no type: {line}"),
                };
                let suffix = name.strip_prefix(current.as_str());
                assert!(
                    suffix.is_some_and(|suffix| suffixes.contains(&suffix)),
                    "{line}"
                );
                let number: f64 = value
                    .parse()
                    .unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(number.is_finite() && number >= 0.0, "{line}");
                let before = family.samples.insert((name, labels), value);
                assert_eq!(before, None, "twice: {line}");
            }
        }
        for (name, family) in &families {
            assert!(family.has_help && !family.kind.is_empty(), "{name}");
            if family.kind == "histogram" {
                check_buckets(name, family);
            }
        }
        Self(families)
    }
}

/// `name{label="value",...} number`
fn sample(line: &str) -> (String, Labels, String) {
    let (rest, value) = line.rsplit_once(' ').expect("a name and a number");
    let (name, labels) = match rest.split_once('{') {
        None => (rest, Labels::new()),
        Some((name, labels)) => {
            let inside = labels.strip_suffix('}').expect("a closing brace");
            (name, pairs(inside))
        }
    };
    let is_name = |text: &str| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
    };
    assert!(is_name(name), "{line}");
    let names: BTreeSet<_> = labels.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), labels.len(), "a label twice: {line}");
    assert!(names.iter().all(|name| is_name(name)), "{line}");
    (name.to_owned(), labels, value.to_owned())
}

fn pairs(mut rest: &str) -> Labels {
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a label and its value");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("what is escaped").1 {
                    'n' => value.push('\n'),
                    escaped @ ('"' | '\\') => value.push(escaped),
                    other => panic!("\\{other} is no escape"),
                },
                (_, plain) => value.push(plain),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').expect("a comma");
        }
    }
    labels
}

/// Buckets count what is up to their bounds, the last one all.
fn check_buckets(name: &str, family: &Family) {
    let mut series = BTreeMap::<Labels, Vec<(f64, f64)>>::new();
    let number = |text: &str| match text {
        "+Inf" => f64::INFINITY,
        text => text.parse().expect("a number"),
    };
    for ((sample, labels), value) in &family.samples {
        if !sample.ends_with("_bucket") {
            continue;
        }
        let (bounds, others): (Labels, Labels) =
            labels.iter().cloned().partition(|(name, _)| name == "le");
        let bound = number(&bounds.first().expect("a bound").1);
        series
            .entry(others)
            .or_default()
            .push((bound, number(value)));
    }
    for (labels, mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{name}{labels:?}: {buckets:?}"
        );
        let all = family
            .samples
            .get(&(format!("{name}_count"), labels.clone()));
        let all = number(all.expect("a count"));
        assert_eq!(
            buckets.last(),
            Some(&(f64::INFINITY, all)),
            "{name}{labels:?}"
        );
        assert!(
            family
                .samples
                .contains_key(&(format!("{name}_sum"), labels))
        );
    }
}

/// What is served there, now.
pub(crate) fn fetch(address: SocketAddr) -> Page {
    let mut stream = TcpStream::connect(address).expect("listening");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: myco\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    Page::read(text)
}

#[test]
fn a_page_that_is_not_as_it_has_to_be_is_found() {
    let good = "# HELP a_seconds A.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
        a_seconds_sum{r=\"x \\\" y\"} 1.5\na_seconds_count{r=\"x \\\" y\"} 3\n\
        a_seconds_bucket{le=\"1.0\",r=\"x \\\" y\"} 2\na_seconds_bucket{le=\"+Inf\",r=\"x \\\" y\"} 3\n\
        # HELP b B.\n# TYPE b counter\nb_total 1\n# EOF\n";
    let page = Page::read(good);
    let family = page.family("b_total").expect("there");
    assert_eq!(family.kind, "counter");
    let labels = page.family("a_seconds").expect("there").label_names();
    assert_eq!(labels, BTreeSet::from([vec!["r"]]));
    for (right, wrong) in [
        ("# EOF\n", ""),
        ("b_total 1", "b 1"),
        ("b_total 1", "b_total 1\nb_total 1"),
        ("b_total 1", "b_total -1"),
        ("b_total 1", "b_total{x=\"1} 1"),
        ("# TYPE b counter\n", ""),
        ("# HELP b B.\n", ""),
        ("\"1.0\",r=\"x \\\" y\"} 2", "\"1.0\",r=\"x \\\" y\"} 4"),
        ("\"+Inf\",r=\"x \\\" y\"} 3", "\"2.0\",r=\"x \\\" y\"} 3"),
        ("UNIT a_seconds seconds", "UNIT a_seconds bytes"),
    ] {
        let bad = good.replacen(right, wrong, 1);
        assert_ne!(bad, good);
        let read = std::panic::catch_unwind(|| Page::read(&bad));
        assert!(read.is_err(), "{wrong:?} was not found");
    }
}
