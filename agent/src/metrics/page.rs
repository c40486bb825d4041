//! Metrics as Prometheus text (exposition format 0.0.4), written from what is known at this moment: a series whose
//! subject is gone is gone with it. Pure.

use std::fmt::{Display, Write};

/// Text that grows by families.
#[derive(Debug, Default)]
pub(crate) struct Page {
    text: String,
}

/// Labels of a series, as text between the braces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels(String);

/// Type of a family.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Only grows; the name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Labels {
    /// Adds a label. Names are literals of this crate, or made by [`super::domain_labels`].
    pub(crate) fn with(mut self, name: &str, value: impl Display) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        write!(self.0, "{name}=\"").expect("a String takes all text");
        for character in value.to_string().chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        self.0.push('"');
        self
    }
}

impl Page {
    /// Adds a family; nothing when it has no series.
    pub(crate) fn family<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        kind: Kind,
        series: impl IntoIterator<Item = (Labels, V)>,
    ) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let mut is_begun = false;
        for (labels, value) in series {
            if !is_begun {
                writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes all text");
                is_begun = true;
            }
            self.line(name, &labels, value);
        }
    }

    /// Adds a family of histograms: each has upper bounds with the values between one and the next, and their sum.
    pub(crate) fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, &'a [(f64, u64)], f64)>,
    ) {
        let mut is_begun = false;
        for (labels, buckets, sum) in series {
            if !is_begun {
                writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} histogram").expect("a String takes all text");
                is_begun = true;
            }
            let mut count = 0;
            for (bound, values) in buckets {
                count += values;
                let bound = if bound.is_infinite() { "+Inf".to_owned() } else { bound.to_string() };
                self.line(&format!("{name}_bucket"), &labels.clone().with("le", bound), count);
            }
            self.line(&format!("{name}_sum"), &labels, sum);
            self.line(&format!("{name}_count"), &labels, count);
        }
    }

    fn line(&mut self, name: &str, labels: &Labels, value: impl Display) {
        let line = match labels.0.as_str() {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
        line.expect("a String takes all text");
    }

    /// Adds a family of one series without labels.
    pub(crate) fn one(&mut self, name: &str, help: &str, kind: Kind, value: impl Display) {
        self.family(name, help, kind, [(Labels::default(), value)]);
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_its_head_once_and_none_without_series() {
        let mut page = Page::default();
        page.family(
            "a_total",
            "Words.",
            Kind::Counter,
            [(Labels::default().with("x", "1").with("y", "q\"\\\n"), 2), (Labels::default(), 3)],
        );
        page.family("b", "Words.", Kind::Gauge, Vec::<(Labels, u64)>::new());
        page.one("c", "Words.", Kind::Gauge, 0.5);
        assert_eq!(
            page.into_text(),
            "# HELP a_total Words.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\\\\\\n\"} 2\na_total 3\n\
             # HELP c Words.\n# TYPE c gauge\nc 0.5\n"
        );
    }
}
