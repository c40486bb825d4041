//! Which verdicts somebody wants to see. Applied in the agent, so what is not wanted costs no socket and no reader.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tidegate_kernel::{Reason, Sample};

/// What to show; what is `None` decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// Name of the domain.
    pub domain: Option<String>,
    /// Name of the reason.
    pub reason: Option<String>,
    /// Sources in this prefix.
    pub source: Option<IpNet>,
}

impl Filter {
    /// Whether a sample is wanted; `domain` is the name of its domain.
    pub fn takes(&self, sample: &Sample, domain: &str) -> bool {
        let is_from = |net: &IpNet| net.contains(&sample.source.to_canonical());
        self.takes_verdict(domain, sample.reason) && self.source.as_ref().is_none_or(is_from)
    }

    /// Whether verdicts of a domain and reason are wanted.
    pub fn takes_verdict(&self, domain: &str, reason: Reason) -> bool {
        self.domain.as_deref().is_none_or(|wanted| wanted == domain)
            && self.reason.as_deref().is_none_or(|wanted| wanted == reason.name())
    }
}
