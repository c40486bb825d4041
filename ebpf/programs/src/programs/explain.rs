//! `explain` (XDP, never attached): the verdict of `admit` on a packet that somebody asks about.
//!
//! Run by BPF_PROG_TEST_RUN over the live maps; counts and samples nothing, so questions leave no trace in the figures.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use tidegate_abi::map::explained;
use tidegate_programs::decide::Judged;

/// The program: returns the verdict as [`explained`] packs it.
#[xdp]
pub fn explain(ctx: XdpContext) -> u32 {
    let mut judged = Judged::default();
    super::admit::judge(&ctx, &mut judged);
    explained(judged.verdict.domain, judged.verdict.reason)
}
