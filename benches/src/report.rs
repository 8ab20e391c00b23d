//! What a bench leaves behind: one JSON document, in the same shape for all of them.
//!
//! A figure that could not be taken is null, never 0, and then `failure` says why.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::bench::Breakdown;
use crate::bounds::Bound;
use crate::machine::Machine;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Metric {
    name: &'static str,
    value: Option<f64>,
    unit: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    samples: Vec<f64>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Metric {
    /// A figure taken once.
    pub(crate) fn once(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self {
            name,
            value: value.is_finite().then_some(value),
            unit,
            samples: Vec::new(),
            reason: None,
        }
    }

    /// The median of the figures that the rounds of one run gave; null if there are none.
    pub(crate) fn median(name: &'static str, samples: Vec<f64>, unit: &'static str) -> Self {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let value = match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[n / 2]),
            n => Some((sorted[n / 2 - 1] + sorted[n / 2]) / 2.0),
        };
        Self {
            name,
            value,
            unit,
            samples,
            reason: None,
        }
    }

    /// A figure that could not be taken, and why.
    pub(crate) fn missing_because(name: &'static str, unit: &'static str, reason: String) -> Self {
        Self {
            reason: Some(reason),
            ..Self::missing(name, unit)
        }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Beside its bound.
    pub(crate) fn beside(self, bound: Option<Bound>) -> Judged {
        Judged {
            holds: bound.and_then(|bound| Some(bound.holds(self.value?))),
            bound,
            metric: self,
        }
    }

    /// A figure that could not be taken.
    pub(crate) fn missing(name: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            value: None,
            unit,
            samples: Vec::new(),
            reason: None,
        }
    }
}

/// A figure, and what it is to be.
#[derive(Debug, Serialize)]
pub(crate) struct Judged {
    #[serde(flatten)]
    metric: Metric,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound: Option<Bound>,
    /// Not said of figures that are missing, or have no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<bool>,
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Metric {
            name, value, unit, ..
        } = &self.metric;
        match value {
            Some(value) => write!(f, "{name:<40} {value:>14.3} {unit}")?,
            None => write!(f, "{name:<40} {:>14} {unit}", "none")?,
        }
        match (self.bound, self.holds) {
            (Some(bound), Some(true)) => write!(f, " ({bound})"),
            (Some(bound), Some(false)) => write!(f, " (MISSES {bound})"),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// What a bench found.
#[derive(Debug, Serialize)]
pub(crate) struct Report<P: Serialize> {
    pub(crate) bench: &'static str,
    #[serde(flatten)]
    pub(crate) machine: Machine,
    pub(crate) parameters: P,
    pub(crate) metrics: Vec<Judged>,
    /// Where the time went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) breakdown: Vec<Breakdown>,
    /// Why figures are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

impl<P: Serialize> Report<P> {
    /// Writes the document to `path`, and a line a figure to standard error.
    pub(crate) fn write(&self, path: Option<&Path>) -> std::io::Result<()> {
        for metric in &self.metrics {
            eprintln!("{metric}");
        }
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        match path {
            Some(path) => std::fs::write(path, text),
            None => std::io::stdout().write_all(text.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Metric;

    #[test]
    fn the_median_of_nothing_is_nothing() {
        assert_eq!(Metric::median("m", vec![], "us").value, None);
        assert_eq!(Metric::median("m", vec![f64::NAN], "us").value, None);
        assert_eq!(
            Metric::median("m", vec![3.0, 1.0, 2.0], "us").value,
            Some(2.0)
        );
        assert_eq!(Metric::median("m", vec![4.0, 1.0], "us").value, Some(2.5));
        assert_eq!(Metric::once("m", f64::INFINITY, "us").value, None);
    }
}
