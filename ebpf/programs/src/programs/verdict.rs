//! Counting and sampling of verdicts: every one is counted, some are sampled.
//!
//! Both are per CPU and lock-free. Sampling is a generic cell rate: a verdict is sampled when its CPU is not further ahead
//! of its pace than the burst; what is not sampled is counted as such, so nothing is lost in silence.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tidegate_abi::{
    Hook, Sample,
    map::{SampleClass, counter_index},
};
use tidegate_programs::decide::{Judged, Verdict};

use super::maps::{COUNTERS, SAMPLE_BUDGETS, SAMPLE_STATES, SAMPLES};

/// Counts a verdict.
#[inline(always)]
pub(crate) fn count(hook: Hook, verdict: Verdict, bytes: u64) {
    let Some(counter) = COUNTERS.get_ptr_mut(counter_index(verdict.domain, hook, verdict.reason)) else { return };
    // SAFETY: the element is this CPU's own; a program that interrupts this one on the same CPU can at most lose a count.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += bytes;
    }
}

/// Samples a verdict if the budget of its class allows it. A function of its own, since the stack of `admit` is for judging.
#[inline(never)]
pub(crate) fn sample(hook: Hook, judged: &Judged, ifindex: u32, len: u32) {
    let class = if judged.verdict.reason.is_denial() { SampleClass::Denial } else { SampleClass::Admission };
    let Some(budget) = SAMPLE_BUDGETS.get(class as u32) else { return };
    let Some(state) = SAMPLE_STATES.get_ptr_mut(class as u32) else { return };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the element is this CPU's own, as in `count`.
    let state = unsafe { &mut *state };
    if state.due_ns > now + budget.burst_ns {
        state.over_budget += 1;
        return;
    }
    state.due_ns = if state.due_ns > now { state.due_ns } else { now } + budget.interval_ns;
    let Some(mut entry) = SAMPLES.reserve(0) else {
        state.lost += 1;
        return;
    };
    entry.write(Sample {
        ktime_ns: now,
        saddr: judged.saddr,
        daddr: judged.daddr,
        domain: judged.verdict.domain,
        ifindex,
        len,
        sport: judged.sport,
        dport: judged.dport,
        vlan: judged.vlan,
        protocol: judged.protocol,
        hook: hook as u8,
        reason: judged.verdict.reason as u8,
        tcp_flags: judged.tcp_flags,
        pad: 0,
    });
    entry.submit(0);
}
