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
    cookie,
    maps::{COOKIE, Maps},
    verdict::{count, sample},
};

/// The program.
#[xdp]
#[inline(always)]
pub fn admit(ctx: XdpContext) -> u32 {
    let len = ctx.data_end() - ctx.data();
    let mut judged = Judged::default();
    judge(&ctx, &Maps::JUDGING, &mut judged);
    if cookie::is_wanted(&judged) {
        // SAFETY: nothing here has to be given back. The call comes back only while the array is empty.
        unsafe { COOKIE.tail_call(&ctx, 0) };
    }
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
    judge_packet(&Frame::of(ctx), ctx.ingress_ifindex() as u32, maps, judged);
}

/// The frame in place.
pub(super) struct Frame {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// No header is looked for beyond this offset: two tags, an IPv6 header and eight extension headers of the largest size are
/// 16,538 bytes, more than any frame's headers, and the verifier wants packet offsets below 65,536.
const MAX_OFFSET: usize = 0x7fff;

impl Frame {
    /// Bounds read anew, also for the compiler: it knows nothing about them from another value of this type.
    #[inline(always)]
    pub(super) fn of(ctx: &XdpContext) -> Self {
        // SAFETY: the kernel passes a context that is valid for the whole run.
        let (start, end) =
            unsafe { ((&raw const (*ctx.ctx).data).read_volatile(), (&raw const (*ctx.ctx).data_end).read_volatile()) };
        Self { start: start as usize, end: end as usize }
    }

    /// The place of `N` times four bytes at an offset, or `None` when the frame ends before. Only one is held at a time.
    #[inline(always)]
    pub(super) fn words<const N: usize>(&self, offset: usize) -> Option<&mut [[u8; 4]; N]> {
        self.find(offset, 4 * N).map(|at| {
            // SAFETY: the bytes lie in the frame, as `find` has checked, they have no alignment, and a run has its frame for
            // itself.
            unsafe { &mut *(at as *mut [[u8; 4]; N]) }
        })
    }

    #[inline(always)]
    fn find(&self, offset: usize, len: usize) -> Option<usize> {
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.start + offset;
        if at + len > self.end { None } else { Some(at) }
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.find(offset, N).map(|at| {
            // SAFETY: the bytes lie in the frame, as `find` has checked (and the verifier checks again); bytes have no
            // alignment.
            unsafe { *(at as *const [u8; N]) }
        })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }
}
