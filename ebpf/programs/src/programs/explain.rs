//! `explain` (XDP, never attached): the verdict of `admit` on a packet that somebody asks about.
//!
//! Run by BPF_PROG_TEST_RUN over the live maps; counts, samples and charges nothing, so questions leave no trace in the figures.
//! Where `admit` would hand a SYN to `cookie`, the kernel is asked for a cookie as well: it makes one when the queue is full.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use tidegate_abi::{Reason, map::explained};
use tidegate_programs::decide::Judged;

use super::{
    cookie::{is_wanted, would_answer},
    maps::Maps,
};

/// The program: returns the verdict as [`explained`] packs it.
#[xdp]
#[inline(always)]
pub fn explain(ctx: XdpContext) -> u32 {
    let mut judged = Judged::default();
    super::admit::judge(&ctx, &Maps::ASKING, &mut judged);
    let reason = if is_wanted(&judged) && would_answer(&ctx) { Reason::CookieSent } else { judged.verdict.reason };
    explained(judged.verdict.domain, reason)
}
