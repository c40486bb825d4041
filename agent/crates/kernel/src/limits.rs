//! The part of a domain's policy that is no list, from the model to what programs read. Pure.

use tidegate_abi::{Policy, Rate};
use tidegate_model::{Admission, RateLimit, SynCookies};

/// Policy of a domain less its lists.
pub(crate) fn limits_of(admission: &Admission) -> Policy {
    let echo = admission.echo.unwrap_or(RateLimit::ECHO);
    let mut flags = 0;
    if admission.syn_cookies == SynCookies::Xdp {
        flags |= Policy::COOKIES;
    }
    if echo.rate == 0 {
        flags |= Policy::NO_ECHO;
    }
    Policy {
        per_source: rate_of(admission.per_source),
        total: rate_of(admission.total),
        echo: Rate::per_second(echo.rate, echo.burst),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_that_says_nothing_takes_echo_up_to_the_default() {
        let policy = limits_of(&Admission::default());
        assert_eq!((policy.echo, policy.flags), (Rate::per_second(1000, 1000), 0));
    }

    #[test]
    fn no_echo_and_cookies_are_told_apart() {
        let admission = Admission { syn_cookies: SynCookies::Xdp, ..Admission::default() };
        assert_eq!(limits_of(&admission).flags, Policy::COOKIES);
        let admission = Admission { echo: Some(RateLimit { rate: 0, burst: 5 }), ..Admission::default() };
        assert_eq!(limits_of(&admission).flags, Policy::NO_ECHO);
    }
}
