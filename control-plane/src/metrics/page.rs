//! One page of figures, as they are now.

use std::borrow::Cow;

use prometheus_client::encoding::text::encode;
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

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
