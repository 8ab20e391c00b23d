//! One page of figures, as they are now.

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Labels of a figure: name and value.
pub(crate) type Labels = Vec<(Cow<'static, str>, Cow<'static, str>)>;

/// See the module. Figures are added, then it is written once.
#[derive(Debug)]
pub struct Page {
    registry: Registry,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            registry: Registry::with_prefix("mycoram"),
        }
    }
}

/// One label.
pub(crate) fn label(
    name: &'static str,
    value: impl Into<Cow<'static, str>>,
) -> (Cow<'static, str>, Cow<'static, str>) {
    (Cow::Borrowed(name), value.into())
}

impl Page {
    /// A figure that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(signed(value));
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, gauge),
            None => self.registry.register(name, help, gauge),
        }
    }

    /// A figure that only goes up.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.registry.register(name, help, ConstCounter::new(value));
    }

    /// Figures of the same sort, that go up and down.
    pub(crate) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(signed(value));
        }
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, family),
            None => self.registry.register(name, help, family),
        }
    }

    /// Figures of the same sort, that only go up.
    pub(crate) fn counters(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let family = Family::<Labels, prometheus_client::metrics::counter::Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }

    /// Figures of the same sort that are no whole numbers, and go up and down.
    pub(crate) fn reals(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register_with_unit(name, help, unit, family);
    }

    /// How often which values were seen.
    pub(crate) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        values: Vec<(Labels, Histogram)>,
    ) {
        self.registry
            .register_with_unit(name, help, unit, Histograms(values));
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Counted by somebody else: upper bounds and how many were up to each, but not to the one before.
#[derive(Debug)]
pub(crate) struct Histogram {
    pub(crate) sum: f64,
    pub(crate) buckets: Vec<(f64, u64)>,
}

#[derive(Debug)]
struct Histograms(Vec<(Labels, Histogram)>);

impl EncodeMetric for Histograms {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (labels, histogram) in &self.0 {
            let count = histogram.buckets.iter().map(|(_, count)| count).sum();
            encoder
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(histogram.sum, count, &histogram.buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
