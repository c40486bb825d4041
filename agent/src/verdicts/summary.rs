//! How many verdicts there are and of whom: counters say how many, samples say which sources.
//!
//! A sample stands for many packets. The share of a source among the samples of its domain and reason, times what the
//! counters have counted, is an estimate of its packets; the count of samples beside it says what it is worth.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tidegate_kernel::{CounterRow, Hook, Reason, SampleLosses};
use tidegate_model::DomainId;

use super::{Filter, NOT_JUDGED, Sources, cause};
use crate::state::State;

/// Sources that are shown of each domain and reason.
const TOP: usize = 5;

/// Verdicts of some time: since the maps exist, or of an interval.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Length of the interval; `None` for everything since the maps exist.
    pub seconds: Option<f64>,
    /// One row for each domain, hook and reason that has occurred.
    pub rows: Vec<SummaryRow>,
    /// The sources seen most of each domain and reason: in the interval, or since the agent started.
    pub sources: Vec<SourceRow>,
    /// What the samples are made of.
    pub samples: SampleCounts,
}

/// A counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SummaryRow {
    /// Name of the domain; empty when there is none.
    pub domain: String,
    /// Program that judged.
    pub hook: String,
    /// Reason.
    pub reason: String,
    /// Whether it is a refusal.
    pub is_denial: bool,
    /// Packets (admit), connections (steer) or system calls (guard).
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Packets a second, of an interval.
    pub packets_per_second: Option<f64>,
    /// Object whose field decides.
    pub object: String,
    /// The field.
    pub field: String,
}

/// A source.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRow {
    /// Name of the domain.
    pub domain: String,
    /// Reason.
    pub reason: String,
    /// The source: an IPv4 address or an IPv6 /64.
    pub source: IpNet,
    /// Its samples.
    pub samples: u64,
    /// How many of them may be another's.
    pub error: u64,
    /// Estimate of its share of the verdicts of this domain and reason, from 0 to 1.
    pub share: f64,
    /// Estimate of its packets a second, of an interval.
    pub packets_per_second: Option<f64>,
}

/// How verdicts became samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SampleCounts {
    /// Samples that the agent has read.
    pub seen: u64,
    /// Verdicts that were not sampled because there were enough samples already.
    pub over_budget: u64,
    /// Samples that found the ring buffer full.
    pub lost: u64,
}

/// What the counters say at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    counters: BTreeMap<(DomainId, Hook, Reason), (u64, u64)>,
    losses: SampleLosses,
}

impl Reading {
    /// Reads the counters of the kernel tier.
    ///
    /// # Errors
    /// When there is no kernel tier, or it cannot be read, in words.
    pub fn take(state: &State) -> Result<Self, String> {
        let mut tier = state.kernel.borrow_mut();
        let kernel = tier.kernel().ok_or(NOT_JUDGED)?;
        let rows = kernel.counters().map_err(|error| error.to_string())?;
        let key = |row: &CounterRow| (row.domain, row.hook, row.reason);
        Ok(Self {
            counters: rows.iter().map(|row| (key(row), (row.packets, row.bytes))).collect(),
            losses: kernel.sample_losses().map_err(|error| error.to_string())?,
        })
    }
}

/// Counters since `before` (or since there are any) with the sources of the same time.
pub fn summarize(
    now: &Reading,
    before: Option<(&Reading, Duration)>,
    sources: &Sources,
    filter: &Filter,
    names: &BTreeMap<DomainId, String>,
) -> Summary {
    let base = before.map(|(reading, _)| reading);
    let seconds = before.map(|(_, length)| length.as_secs_f64().max(f64::EPSILON));
    let name = |id: &DomainId| names.get(id).cloned().unwrap_or_default();
    let mut rows = Vec::new();
    let mut packets_of: BTreeMap<(DomainId, Reason), u64> = BTreeMap::new();
    for (key @ (id, hook, reason), (packets, bytes)) in &now.counters {
        let (old_packets, old_bytes) = base.and_then(|base| base.counters.get(key)).copied().unwrap_or_default();
        let (packets, bytes) = (packets.saturating_sub(old_packets), bytes.saturating_sub(old_bytes));
        let domain = name(id);
        if packets == 0 || !filter.takes_verdict(&domain, *reason) {
            continue;
        }
        *packets_of.entry((*id, *reason)).or_default() += packets;
        let (object, field) = if domain.is_empty() {
            Default::default()
        } else {
            cause(*reason).place(&tidegate_model::DomainName::new(domain.as_str()))
        };
        rows.push(SummaryRow {
            domain,
            hook: hook.name().to_owned(),
            reason: reason.name().to_owned(),
            is_denial: reason.is_denial(),
            packets,
            bytes,
            packets_per_second: seconds.map(|seconds| packets as f64 / seconds),
            object,
            field,
        });
    }
    let tables = sources.tables().filter(|(id, reason, _)| filter.takes_verdict(&name(id), *reason));
    let sources_shown = tables.flat_map(|(id, reason, table)| {
        let packets = packets_of.get(&(id, reason)).copied().unwrap_or_default();
        let seen = table.seen().max(1);
        table.top(TOP).into_iter().map(move |slot| {
            let share = slot.count as f64 / seen as f64;
            (id, reason, slot, share, seconds.map(|seconds| packets as f64 * share / seconds))
        })
    });
    let losses = |reading: &Reading| (reading.losses.over_budget, reading.losses.lost);
    let (over_budget, lost) = losses(now);
    let (old_over_budget, old_lost) = base.map(losses).unwrap_or_default();
    Summary {
        seconds,
        rows,
        sources: sources_shown
            .filter(|(_, _, slot, ..)| filter.source.is_none_or(|net| net.contains(&slot.source)))
            .map(|(id, reason, slot, share, packets_per_second)| SourceRow {
                domain: name(&id),
                reason: reason.name().to_owned(),
                source: slot.source,
                samples: slot.count,
                error: slot.error,
                share,
                packets_per_second,
            })
            .collect(),
        samples: SampleCounts {
            seen: sources.seen(),
            over_budget: over_budget.saturating_sub(old_over_budget),
            lost: lost.saturating_sub(old_lost),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(packets: u64, over_budget: u64) -> Reading {
        Reading {
            counters: [((DomainId(1), Hook::Admit, Reason::SourceDenied), (packets, packets * 60))].into(),
            losses: SampleLosses { over_budget, lost: 0 },
        }
    }

    fn sources(texts: &[(&str, usize)]) -> Sources {
        let mut sources = Sources::default();
        for (text, count) in texts {
            for _ in 0..*count {
                sources.push(&crate::verdicts::tests::sample(1, text));
            }
        }
        sources
    }

    #[test]
    fn an_interval_is_the_difference_of_two_readings_and_a_source_has_its_share_of_it() {
        let names = [(DomainId(1), "public".to_owned())].into();
        let seen = sources(&[("192.0.2.1", 30), ("192.0.2.2", 10)]);
        let before = reading(1_000, 5);
        let filter = Filter::default();
        let length = Duration::from_secs(2);
        let summary = summarize(&reading(9_000, 7_965), Some((&before, length)), &seen, &filter, &names);
        assert_eq!((summary.rows[0].packets, summary.rows[0].bytes), (8_000, 480_000));
        assert_eq!(summary.rows[0].packets_per_second, Some(4_000.0));
        assert_eq!(summary.rows[0].field, "spec.sources.deny");
        assert_eq!(summary.sources[0].source.to_string(), "192.0.2.1/32");
        assert_eq!((summary.sources[0].share, summary.sources[0].packets_per_second), (0.75, Some(3_000.0)));
        assert_eq!(summary.samples, SampleCounts { seen: 40, over_budget: 7_960, lost: 0 });

        let whole = summarize(&reading(9_000, 0), None, &seen, &filter, &names);
        assert_eq!((whole.rows[0].packets, whole.seconds, whole.sources[0].packets_per_second), (9_000, None, None));
        let quiet = summarize(&before, Some((&before, length)), &Sources::default(), &filter, &names);
        assert!(quiet.rows.is_empty() && quiet.sources.is_empty());
    }

    #[test]
    fn a_filter_holds_for_counters_and_sources() {
        let names = [(DomainId(1), "public".to_owned())].into();
        let seen = sources(&[("192.0.2.1", 3), ("198.51.100.2", 1)]);
        let of = |filter: &Filter| {
            let summary = summarize(&reading(10, 0), None, &seen, filter, &names);
            (summary.rows.len(), summary.sources.len())
        };
        assert_eq!(of(&Filter::default()), (1, 2));
        assert_eq!(of(&Filter { domain: Some("private".into()), ..Filter::default() }), (0, 0));
        assert_eq!(of(&Filter { reason: Some("martian".into()), ..Filter::default() }), (0, 0));
        assert_eq!(of(&Filter { source: "192.0.2.0/24".parse().ok(), ..Filter::default() }), (1, 1));
    }
}
