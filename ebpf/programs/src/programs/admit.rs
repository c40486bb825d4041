//! `admit` (XDP): every packet of a domain's NIC.
//!
//! Fails open for what is not for a frontend (ARP, ssh, other pods: untouched) and closed for what is. Runs before the
//! stack, so a flood that is refused costs a few map look-ups.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use tidegate_abi::Hook;
use tidegate_programs::{
    decide::{Judged, judge_packet},
    packet::Bytes,
};

use super::{
    maps::Maps,
    verdict::{count, sample},
};

/// The program.
#[xdp]
pub fn admit(ctx: XdpContext) -> u32 {
    let len = ctx.data_end() - ctx.data();
    let mut judged = Judged::default();
    judge(&ctx, &Maps::JUDGING, &mut judged);
    count(Hook::Admit, judged.verdict, len as u64);
    if !judged.verdict.reason.is_denial() {
        return xdp_action::XDP_PASS;
    }
    sample(Hook::Admit, &judged, ctx.ingress_ifindex() as u32, len as u32);
    xdp_action::XDP_DROP
}

/// The verdict. `judged` comes in zeroed.
#[inline(always)]
pub(super) fn judge(ctx: &XdpContext, maps: &Maps, judged: &mut Judged) {
    let frame = Frame { start: ctx.data(), end: ctx.data_end() };
    judge_packet(&frame, ctx.ingress_ifindex() as u32, maps, judged);
}

/// The frame in place.
struct Frame {
    start: usize,
    end: usize,
}

/// No header is looked for beyond this offset: two tags, an IPv6 header and eight extension headers of the largest size are
/// 16,538 bytes, more than any frame's headers, and the verifier wants packet offsets below 65,536.
const MAX_OFFSET: usize = 0x7fff;

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.start + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: `at` and the N bytes behind it lie between the frame's start and end, as just checked (and checked again
        // by the verifier); bytes have no alignment.
        Some(unsafe { *(at as *const [u8; N]) })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }
}
