//! The part of a domain's policy that is no list, from the model to what programs read. Pure.

use tidegate_abi::Policy;
use tidegate_model::{Admission, SynCookies};

/// Policy of a domain less its lists.
pub(crate) fn limits_of(admission: &Admission) -> Policy {
    let flags = match admission.syn_cookies {
        SynCookies::Kernel => 0,
        SynCookies::Xdp => Policy::COOKIES,
    };
    Policy { flags, ..Policy::default() }
}
