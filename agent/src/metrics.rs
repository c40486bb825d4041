//! Metrics of the agent itself: what the kernel tier counts, generations, the time from change to applied, worker
//! restarts. Workers make their own; the admin server puts both together.
//!
//! Cardinality is bounded: domains × hooks × reasons, domains × interfaces.

use std::{collections::BTreeMap, time::Duration};

use ::metrics::{Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tidegate_model::{Domain, DomainId};

use crate::state::{Attach, InterfaceState, State};

/// Buckets of the change-to-applied time in seconds: it is milliseconds when all is well, seconds when something hangs.
const CHANGE_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

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
    describe_counter!(
        "tidegate_kernel_packets_total",
        "Verdicts of the kernel tier: on packets (admit), new connections and datagrams (steer), dialled addresses (guard)"
    );
    describe_counter!(
        "tidegate_kernel_bytes_total",
        "Bytes of the packets that the kernel tier has judged, by verdict"
    );
    describe_counter!("tidegate_kernel_samples_lost_total", "Sampled verdicts that nobody saw, by cause");
    describe_gauge!("tidegate_kernel_map_entries", "Entries of a BPF map");
    describe_gauge!("tidegate_kernel_map_capacity", "Largest number of entries of a BPF map");
    describe_gauge!("tidegate_kernel_on", "1 when packets are judged in the kernel");
    describe_gauge!("tidegate_generation_wanted", "Generation of a domain's model");
    describe_gauge!("tidegate_generation_applied", "Generation in force, by tier");
    describe_gauge!("tidegate_apply_failures", "Parts of a domain that could not be applied, by tier");
    describe_gauge!("tidegate_interface_attached", "1 for the way that admission is attached to an interface");
    describe_counter!("tidegate_worker_restarts_total", "Times a worker died and was started again");
    describe_histogram!(
        "tidegate_change_applied_seconds",
        "Time from a change at the source until kernel and worker have it"
    );
    describe_gauge!("tidegate_build_info", "1, with the version");
    gauge!("tidegate_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
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
    refresh(state);
    state.metrics.render()
}

/// A worker died.
pub(crate) fn worker_restarted(domain: &Domain) {
    counter!("tidegate_worker_restarts_total", labels(domain)).increment(1);
}

/// A change is in force in kernel and worker.
pub(crate) fn change_applied(domain: &Domain, took: Duration) {
    histogram!("tidegate_change_applied_seconds", labels(domain)).record(took);
}

/// How a domain's interfaces are attached.
pub(crate) fn interfaces(domain: &Domain, interfaces: &[InterfaceState]) {
    for interface in interfaces {
        let is = match interface.attach {
            Attach::Native => "native",
            Attach::Generic => "generic",
            Attach::Missing => "missing",
            Attach::Failed(_) => "failed",
            Attach::Off => "off",
        };
        for mode in ["native", "generic", "missing", "failed", "off"] {
            let mut labels = labels(domain);
            labels.push(Label::new("interface", interface.name.clone()));
            labels.push(Label::from_static_parts("mode", mode));
            gauge!("tidegate_interface_attached", labels).set(f64::from(u8::from(mode == is)));
        }
    }
}

/// A domain is gone: its gauges must not go on as if it were not.
pub(crate) fn domain_removed(domain: &Domain) {
    gauge!("tidegate_generation_wanted", labels(domain)).set(0.0);
    for tier in ["kernel", "worker"] {
        let mut labels = labels(domain);
        labels.push(Label::from_static_parts("tier", tier));
        gauge!("tidegate_generation_applied", labels.clone()).set(0.0);
        gauge!("tidegate_apply_failures", labels).set(0.0);
    }
}

fn refresh(state: &State) {
    let domains = state.domains.borrow();
    for domain in domains.values() {
        gauge!("tidegate_generation_wanted", labels(&domain.model.domain)).set(domain.model.generation.0 as f64);
        let tiers = [
            ("kernel", domain.kernel.generation, domain.kernel.failures.len()),
            ("worker", domain.worker.applied.generation, domain.worker.refused.len()),
        ];
        for (tier, generation, failures) in tiers {
            let mut labels = labels(&domain.model.domain);
            labels.push(Label::from_static_parts("tier", tier));
            gauge!("tidegate_generation_applied", labels.clone()).set(generation.0 as f64);
            gauge!("tidegate_apply_failures", labels).set(failures as f64);
        }
    }
    let mut tier = state.kernel.borrow_mut();
    gauge!("tidegate_kernel_on").set(f64::from(u8::from(tier.is_on())));
    let Some(kernel) = tier.kernel() else { return };
    let by_id: BTreeMap<DomainId, Vec<Label>> =
        domains.values().map(|domain| (domain.id, labels(&domain.model.domain))).collect();
    for row in kernel.counters().unwrap_or_default() {
        let mut labels =
            by_id.get(&row.domain).cloned().unwrap_or_else(|| vec![Label::from_static_parts("domain", "")]);
        labels.push(Label::from_static_parts("hook", row.hook.name()));
        labels.push(Label::from_static_parts("reason", row.reason.name()));
        labels.push(Label::from_static_parts("verdict", if row.reason.is_denial() { "deny" } else { "admit" }));
        counter!("tidegate_kernel_packets_total", labels.clone()).absolute(row.packets);
        counter!("tidegate_kernel_bytes_total", labels).absolute(row.bytes);
    }
    if let Ok(losses) = kernel.sample_losses() {
        counter!("tidegate_kernel_samples_lost_total", "cause" => "over_budget").absolute(losses.over_budget);
        counter!("tidegate_kernel_samples_lost_total", "cause" => "buffer_full").absolute(losses.lost);
    }
    for fill in kernel.map_fill() {
        gauge!("tidegate_kernel_map_entries", "map" => fill.map).set(fill.entries as f64);
        gauge!("tidegate_kernel_map_capacity", "map" => fill.map).set(fill.capacity as f64);
    }
}

fn labels(domain: &Domain) -> Vec<Label> {
    domain_labels(domain).into_iter().map(|(name, value)| Label::new(name, value)).collect()
}

/// A label's name as Prometheus allows it: `traffic.domain` becomes `traffic_domain`.
fn label_name(name: &str) -> String {
    let mut text: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        text.insert(0, '_');
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
    }
}
