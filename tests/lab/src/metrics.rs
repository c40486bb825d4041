//! Prometheus text as a table that tests can ask.

use std::collections::BTreeMap;

/// Names of the agent's metrics that the lab's users ask for.
pub mod names {
    /// Verdicts of the kernel by `domain`, `hook` and `reason`.
    pub const VERDICTS: &str = "tidegate_kernel_packets_total";
    /// Requests by `domain`, `gateway`, `route` and `status` (class).
    pub const REQUESTS: &str = "tidegate_requests_total";
    /// Answers that no backend gave, by `domain` and `reason`.
    pub const LOCAL_RESPONSES: &str = "tidegate_local_responses_total";
    /// Connections closed unserved, by `domain` and `reason`.
    pub const CONNECTIONS_REFUSED: &str = "tidegate_connections_refused_total";
}

/// One sample of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Metric name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// A scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Every sample in the order of the text.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads the text exposition format.
    ///
    /// # Errors
    /// Names the first line that is no sample: a scrape that Prometheus would refuse is a bug of its own.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let samples = lines
            .map(|line| parse_sample(line).ok_or_else(|| anyhow::anyhow!("not a Prometheus sample: {line}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { samples })
    }

    /// Sum over the samples of a metric that have all the labels given. Zero when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// Samples of a metric that have all the labels given.
    pub fn select<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }
}

fn parse_sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let name = line[..name_end].to_owned();
    let mut labels = BTreeMap::new();
    let mut rest = &line[name_end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = parse_quoted(after)?;
            labels.insert(key.trim().to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name, labels, value })
}

/// The text up to the closing quote, unescaped, and what follows it.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_samples_whose_labels_match() {
        let text = "# HELP a b\n# TYPE a counter\na{d=\"public\",r=\"x\\\"y\"} 2\na{d=\"public\",r=\"z\"} 3 1700\na{d=\"private\"} 5\nb 1e3\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a", &[("d", "public")]), 5.0);
        assert_eq!(metrics.sum("a", &[("r", "x\"y")]), 2.0);
        assert_eq!(metrics.sum("a", &[]), 10.0);
        assert_eq!(metrics.sum("b", &[]), 1000.0);
    }

    #[test]
    fn refuses_a_line_that_is_no_sample() {
        assert!(Metrics::parse("a{b=\"c} 1\n").is_err());
        assert!(Metrics::parse("a one\n").is_err());
    }
}
