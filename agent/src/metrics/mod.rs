//! Metrics of the agent itself: what the kernel tier counts, generations, the time from change to applied, worker
//! restarts. Workers make their own; the admin server puts both together.
//!
//! What can be read from the agent's state is written at each scrape, so that nothing is shown of what is gone; the
//! recorder only holds what happens in between. Cardinality is bounded: domains × hooks × reasons, domains × interfaces.

mod connections;
mod kernel;
mod page;

use std::{collections::BTreeMap, time::Duration};

use ::metrics::{Label, describe_histogram, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tidegate_model::{Domain, Model, Resource};

pub(crate) use page::{Kind, Labels, Page};

use crate::state::{Attach, DomainState, State};

/// Buckets of the change-to-applied time in seconds: it is milliseconds when all is well, seconds when something hangs.
const CHANGE_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Names that series use themselves, here and in workers; a domain's label of such a name gets [`OWN_LABEL_PREFIX`]
/// before it, since a name that stands twice makes Prometheus refuse the whole scrape.
const RESERVED: [&str; 19] = [
    "backend",
    "cause",
    "direction",
    "gateway",
    "hook",
    "instance",
    "interface",
    "job",
    "kind",
    "le",
    "map",
    "mode",
    "reason",
    "route",
    "rule",
    "state",
    "status",
    "tier",
    "verdict",
];
const OWN_LABEL_PREFIX: &str = "domain_";

/// Installs the recorder of this process.
///
/// # Errors
/// When there is one already.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let buckets = Matcher::Full("tidegate_change_applied_seconds".into());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(buckets, &CHANGE_BUCKETS)?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder).map_err(|_| anyhow::anyhow!("a metrics recorder is installed already"))?;
    describe_histogram!(
        "tidegate_change_applied_seconds",
        "Time from a change at the source until kernel and worker have it"
    );
    Ok(handle)
}

/// Labels of a domain's metrics and log lines: its name, and those that its object gives it, as Prometheus writes them.
pub fn domain_labels(domain: &Domain) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> =
        domain.labels.iter().map(|(name, value)| (label_name(name), value.clone())).collect();
    labels.insert("domain".into(), domain.name.to_string());
    labels
}

/// Everything the agent counts, as Prometheus text, with the kernel's counters as they are now.
pub fn render(state: &State) -> String {
    let mut page = Page::default();
    page.family(
        "tidegate_build_info",
        "1, with the version.",
        Kind::Gauge,
        [(Labels::default().with("version", env!("CARGO_PKG_VERSION")), 1)],
    );
    page.one(
        "tidegate_ready",
        "1 when everything wanted is applied in kernel and workers.",
        Kind::Gauge,
        u8::from(state.readiness().is_ready),
    );
    render_domains(state, &mut page);
    kernel::render(state, &mut page);
    page.into_text() + &state.metrics.render()
}

/// A change is in force in kernel and worker.
pub(crate) fn change_applied(domain: &Domain, took: Duration) {
    let labels: Vec<Label> = domain_labels(domain).into_iter().map(|(name, value)| Label::new(name, value)).collect();
    histogram!("tidegate_change_applied_seconds", labels).record(took);
}

/// Labels of a domain's series.
pub(crate) fn domain_series(domain: &Domain) -> Labels {
    domain_labels(domain).iter().fold(Labels::default(), |labels, (name, value)| labels.with(name, value))
}

fn render_domains(state: &State, page: &mut Page) {
    let domains = state.domains.borrow();
    let each = || domains.values().map(|domain| (domain, domain_series(&domain.model.domain)));
    page.family(
        "tidegate_generation_wanted",
        "Generation of a domain's model.",
        Kind::Gauge,
        each().map(|(domain, labels)| (labels, domain.model.generation.0)),
    );
    let tiers = |of: fn(&DomainState) -> [(&'static str, u64); 2]| {
        each().flat_map(move |(domain, labels)| {
            of(domain).map(|(tier, value)| (labels.clone().with("tier", tier), value))
        })
    };
    page.family(
        "tidegate_generation_applied",
        "Generation in force, by tier.",
        Kind::Gauge,
        tiers(|domain| [("kernel", domain.kernel.generation.0), ("worker", domain.worker.applied.generation.0)]),
    );
    page.family(
        "tidegate_apply_failures",
        "Parts of a domain that could not be applied, by tier.",
        Kind::Gauge,
        tiers(|domain| {
            [("kernel", domain.kernel.failures.len() as u64), ("worker", domain.worker.refused.len() as u64)]
        }),
    );
    page.family(
        "tidegate_interface_attached",
        "1 for the way that admission is attached to an interface.",
        Kind::Gauge,
        each().flat_map(|(domain, labels)| interface_series(domain, &labels)),
    );
    page.family(
        "tidegate_worker_restarts_total",
        "Times a worker died and was started again.",
        Kind::Counter,
        each().map(|(domain, labels)| (labels, domain.worker.restarts)),
    );
    page.family(
        "tidegate_certificate_expiry_timestamp_seconds",
        "When the first of a domain's certificates ends, in seconds since the epoch.",
        Kind::Gauge,
        each().filter_map(|(domain, labels)| Some((labels, first_expiry(&domain.model)?))),
    );
}

fn interface_series(domain: &DomainState, labels: &Labels) -> Vec<(Labels, u8)> {
    let modes = ["native", "generic", "missing", "failed", "off"];
    let mut series = Vec::with_capacity(domain.interfaces.len() * modes.len());
    for interface in &domain.interfaces {
        let is = match interface.attach {
            Attach::Native => "native",
            Attach::Generic => "generic",
            Attach::Missing => "missing",
            Attach::Failed(_) => "failed",
            Attach::Off => "off",
        };
        for mode in modes {
            let labels = labels.clone().with("interface", &interface.name).with("mode", mode);
            series.push((labels, u8::from(mode == is)));
        }
    }
    series
}

fn first_expiry(model: &Model) -> Option<i64> {
    // Certificates come first in the order of keys: the thousands of routes behind them are not looked at.
    let certificates = model.resources().map_while(|resource| match resource {
        Resource::Certificate(_, certificate) => Some(certificate.not_after),
        _ => None,
    });
    certificates.min()
}

/// A label's name as Prometheus allows it: `traffic.domain` becomes `traffic_domain`.
fn label_name(name: &str) -> String {
    let mut text: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        text.insert(0, '_');
    }
    // Two underscores in front are Prometheus' own.
    if RESERVED.contains(&text.as_str()) || text.starts_with("__") || text.is_empty() {
        text.insert_str(0, OWN_LABEL_PREFIX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_names_are_those_of_prometheus() {
        assert_eq!(label_name("traffic.domain"), "traffic_domain");
        assert_eq!(label_name("example.com/team"), "example_com_team");
        assert_eq!(label_name("1st"), "_1st");
        assert_eq!(label_name("reason"), "domain_reason", "a label that stands twice spoils the scrape");
        assert_eq!(label_name("__name__"), "domain___name__");
    }
}
