//! `explain` (XDP, never attached): the verdict of `admit` on a packet that somebody asks about.
//!
//! Run by BPF_PROG_TEST_RUN over the live maps; counts, samples and charges nothing, so questions leave no trace in the figures.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use tidegate_abi::map::explained;
use tidegate_programs::decide::Judged;

use super::maps::Maps;

/// The program: returns the verdict as [`explained`] packs it.
#[xdp]
#[inline(always)]
pub fn explain(ctx: XdpContext) -> u32 {
    let mut judged = Judged::default();
    super::admit::judge(&ctx, &Maps::ASKING, &mut judged);
    explained(judged.verdict.domain, judged.verdict.reason)
}
