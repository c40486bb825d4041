//! Metrics of the kernel tier, read from its maps at each scrape.
//!
//! Cardinality is bounded: (domain, hook, reason that the hook can give), maps, causes of a loss. No address of a client
//! is ever a label; who they are is what samples tell. A domain's counters are there from its first scrape on, at 0, so
//! that `rate()` and `increase()` see the first verdict too.

use std::collections::{BTreeMap, HashMap};

use tidegate_kernel::{CounterRow, Hook, RateFill, Reason, SourceUse};
use tidegate_model::DomainId;

use super::{
    connections, domain_series,
    page::{Kind, Labels, Page},
};
use crate::{state::State, verdicts::reasons_of};

/// Writes everything that the kernel tier counts.
pub(super) fn render(state: &State, page: &mut Page) {
    let tier = state.tier.borrow().clone();
    page.one("tidegate_kernel_on", "1 when packets are judged in the kernel.", Kind::Gauge, u8::from(tier.is_on));
    page.one(
        "tidegate_kernel_degraded",
        "Things that this host does not enforce or does otherwise; `tidegate status` names them.",
        Kind::Gauge,
        tier.degraded.len(),
    );
    let mut tier = state.kernel.borrow_mut();
    let Some(kernel) = tier.kernel() else { return };
    let domains: BTreeMap<DomainId, Labels> =
        state.domains.borrow().values().map(|domain| (domain.id, domain_series(&domain.model.domain))).collect();
    render_verdicts(&domains, &kernel.counters().unwrap_or_default(), page);
    connections::render(&domains, &kernel.connections().unwrap_or_default(), page);
    if let Ok(losses) = kernel.sample_losses() {
        page.family(
            "tidegate_kernel_samples_lost_total",
            "Verdicts that are in no sample, by cause.",
            Kind::Counter,
            [
                (Labels::default().with("cause", "over_budget"), losses.over_budget),
                (Labels::default().with("cause", "buffer_full"), losses.lost),
            ],
        );
    }
    page.one(
        "tidegate_kernel_samples_total",
        "Sampled verdicts that the agent has read.",
        Kind::Counter,
        state.sources.borrow().seen(),
    );
    render_rates(&domains, &kernel.rate_fill().unwrap_or_default(), page);
    render_sources(&domains, &kernel.source_use(), page);
    let fill = kernel.map_fill();
    let map = |name: &str| Labels::default().with("map", name);
    page.family(
        "tidegate_kernel_map_entries",
        "Entries of a BPF map.",
        Kind::Gauge,
        fill.iter().map(|fill| (map(fill.map), fill.entries)),
    );
    page.family(
        "tidegate_kernel_map_capacity",
        "Largest number of entries of a BPF map.",
        Kind::Gauge,
        fill.iter().map(|fill| (map(fill.map), fill.capacity)),
    );
}

/// What source lists take. Domains without lists have no series.
fn render_sources(domains: &BTreeMap<DomainId, Labels>, usage: &[SourceUse], page: &mut Page) {
    let labelled = |usage: &SourceUse| domains.get(&usage.domain).cloned().unwrap_or_default();
    page.family(
        "tidegate_kernel_source_table_bytes",
        "Kernel memory of a domain's source lists: the table in force and the one for the next change.",
        Kind::Gauge,
        usage.iter().map(|usage| (labelled(usage), usage.bytes)),
    );
    let prefixes = usage
        .iter()
        .flat_map(|usage| usage.prefixes.iter().map(move |(list, family, count)| (usage, *list, *family, *count)));
    page.family(
        "tidegate_kernel_source_prefixes",
        "Prefixes of a domain's source lists in force.",
        Kind::Gauge,
        prefixes.map(|(usage, list, family, count)| (labelled(usage).with("list", list).with("family", family), count)),
    );
}

fn render_verdicts(domains: &BTreeMap<DomainId, Labels>, rows: &[CounterRow], page: &mut Page) {
    let counted: HashMap<(DomainId, Hook, Reason), &CounterRow> =
        rows.iter().map(|row| ((row.domain, row.hook, row.reason), row)).collect();
    let none = Labels::default().with("domain", "");
    let everybody = [(DomainId(0), &none)].into_iter().chain(domains.iter().map(|(id, labels)| (*id, labels)));
    let series: Vec<_> = everybody
        .flat_map(|(id, labels)| Hook::ALL.into_iter().map(move |hook| (id, labels, hook)))
        .flat_map(|(id, labels, hook)| {
            let possible: Vec<Reason> = reasons_of(hook, id != DomainId(0)).collect();
            let is_shown = |reason: &Reason| possible.contains(reason) || counted.contains_key(&(id, hook, *reason));
            let shown: Vec<Reason> = Reason::ALL.into_iter().filter(is_shown).collect();
            shown.into_iter().map(move |reason| (id, labels, hook, reason))
        })
        .map(|(id, labels, hook, reason)| {
            let verdict = if reason.is_denial() { "deny" } else { "admit" };
            let labels =
                labels.clone().with("hook", hook.name()).with("reason", reason.name()).with("verdict", verdict);
            let row = counted.get(&(id, hook, reason));
            (hook, labels, row.map_or(0, |row| row.packets), row.map_or(0, |row| row.bytes))
        })
        .collect();
    page.family(
        "tidegate_kernel_packets_total",
        "Verdicts of the kernel tier: on packets (admit), new connections and datagrams (steer), a worker's system calls (guard).",
        Kind::Counter,
        series.iter().map(|(_, labels, packets, _)| (labels.clone(), *packets)),
    );
    // Other hooks see no frames.
    let frames = series.iter().filter(|(hook, ..)| *hook == Hook::Admit);
    page.family(
        "tidegate_kernel_bytes_total",
        "Bytes of the frames that admit has judged.",
        Kind::Counter,
        frames.map(|(_, labels, _, bytes)| (labels.clone(), *bytes)),
    );
}

/// Tables of token buckets, for the domains that limit the rate of each source.
fn render_rates(domains: &BTreeMap<DomainId, Labels>, fills: &[RateFill], page: &mut Page) {
    let each = |of: fn(&RateFill) -> u64| {
        fills.iter().filter_map(move |fill| Some((domains.get(&fill.domain)?.clone(), of(fill))))
    };
    page.family(
        "tidegate_kernel_rate_buckets_busy",
        "Buckets of sources that may not be given to others now, estimated from a part of the table.",
        Kind::Gauge,
        each(|fill| fill.busy),
    );
    page.family(
        "tidegate_kernel_rate_buckets",
        "Buckets of sources that a domain has.",
        Kind::Gauge,
        each(|fill| fill.capacity),
    );
    page.family(
        "tidegate_kernel_rate_overflows_total",
        "New connections that a shared bucket has judged, because their source found no place.",
        Kind::Counter,
        each(|fill| fill.overflows),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_that_never_was_is_counted_as_zero_and_one_of_a_domain_that_is_gone_is_not_shown() {
        let domains = [(DomainId(1), Labels::default().with("domain", "public"))].into();
        let row = |domain, reason, packets| CounterRow {
            domain: DomainId(domain),
            hook: Hook::Admit,
            reason,
            packets,
            bytes: packets * 60,
        };
        let mut page = Page::default();
        render_verdicts(&domains, &[row(1, Reason::SourceDenied, 3), row(2, Reason::SourceDenied, 9)], &mut page);
        let text = page.into_text();
        let has = |line: &str| text.lines().any(|found| found == line);
        let labels = "hook=\"admit\",reason=\"source_denied\",verdict=\"deny\"";
        assert!(has(&format!("tidegate_kernel_packets_total{{domain=\"public\",{labels}}} 3")), "{text}");
        assert!(has(&format!("tidegate_kernel_bytes_total{{domain=\"public\",{labels}}} 180")), "{text}");
        let labels = "hook=\"steer\",reason=\"no_worker\",verdict=\"deny\"";
        assert!(has(&format!("tidegate_kernel_packets_total{{domain=\"public\",{labels}}} 0")), "{text}");
        assert!(
            !text.contains(" 9\n") && !text.contains("tidegate_kernel_bytes_total{domain=\"public\",hook=\"steer\"")
        );
    }
}
