//! The part of a domain's policy that is no list, from the model to what programs read. Pure.

use tidegate_abi::{Policy, Rate};
use tidegate_model::{Admission, RateLimit, SynCookies};

/// Policy of a domain less its lists.
pub(crate) fn limits_of(admission: &Admission) -> Policy {
    let flags = match admission.syn_cookies {
        SynCookies::Kernel => 0,
        SynCookies::Xdp => Policy::COOKIES,
    };
    Policy {
        per_source: rate_of(admission.per_source),
        total: rate_of(admission.total),
        open_per_source: admission.open_per_source.unwrap_or_default(),
        open_total: admission.open_total.unwrap_or_default(),
        v4_bits: admission.source_bits.v4,
        v6_bits: admission.source_bits.v6,
        flags,
        ..Policy::default()
    }
}

fn rate_of(limit: Option<RateLimit>) -> Rate {
    limit.map(|limit| Rate::per_second(limit.rate, limit.burst)).unwrap_or_default()
}
