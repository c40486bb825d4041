//! ICMP to a domain's own addresses: echo up to a rate, the errors that path MTU discovery needs always.

use std::time::{Duration, Instant};

use tidegate_kernel::{Hook, Reason};
use tidegate_model::{DomainId, RateLimit};

use crate::{
    bed::{
        ALLOWED_V4, Bed, NODE_V4, PRIVATE, PRIVATE_V4, PUBLIC, PUBLIC_V4, PUBLIC_V6, STRANGER_V4, STRANGER_V6,
        XDP_DROP, XDP_PASS, desired, on_bed, v6,
    },
    frame::{ICMP, ICMP_V6, Link, V4, V6, icmp},
};

fn limit_echo(bed: &mut Bed, domain: DomainId, rate: u32, burst: u32) {
    let mut state = desired(bed.wan, bed.lan);
    state.domains.get_mut(&domain).expect("in every bed").admission.echo = Some(RateLimit { rate, burst });
    let report = bed.kernel.apply(&state).expect("applying");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

fn to_public(kind: u8, code: u8) -> Vec<u8> {
    V4::new(STRANGER_V4, PUBLIC_V4, ICMP, icmp(kind, code)).on(Link::untagged())
}

fn to_public_v6(kind: u8) -> Vec<u8> {
    V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), ICMP_V6, icmp(kind, 0)).on(Link::untagged())
}

#[test]
fn lets_echo_in_up_to_the_domains_rate_and_errors_always() {
    on_bed(|bed| {
        const BURST: u32 = 10;
        limit_echo(bed, PUBLIC, 1, BURST);
        let mut frames = [to_public(8, 0), to_public_v6(128), to_public(0, 0), to_public_v6(129)].into_iter().cycle();
        let begun = Instant::now();
        for _ in 0..200 {
            let frame = frames.next().expect("it repeats");
            bed.kernel.run_admit(&frame, bed.wan, 1).expect("running");
        }
        let admitted = bed.count(PUBLIC, Hook::Admit, Reason::Admitted);
        let refilled = begun.elapsed().as_secs() + 1;
        assert!((u64::from(BURST)..=u64::from(BURST) + refilled).contains(&admitted), "{admitted}");
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::EchoRate), 200 - admitted);
        for (name, frame) in [
            ("fragmentation needed", to_public(3, 4)),
            ("time exceeded", to_public(11, 0)),
            ("packet too big", to_public_v6(2)),
        ] {
            bed.assert_admit(name, &frame, bed.wan, PUBLIC, Reason::Admitted);
        }
        // Another domain has a bucket of its own.
        let other = V4::new(ALLOWED_V4, PRIVATE_V4, ICMP, icmp(8, 0)).on(Link::untagged());
        bed.assert_admit("another domain's", &other, bed.lan, PRIVATE, Reason::Admitted);
    });
}

#[test]
fn asking_takes_no_token() {
    on_bed(|bed| {
        limit_echo(bed, PUBLIC, 1, 2);
        let frame = to_public(8, 0);
        for _ in 0..50 {
            assert_eq!(bed.kernel.explain(&frame, bed.wan).expect("asking").reason, Reason::Admitted);
        }
        assert_eq!(bed.kernel.run_admit(&frame, bed.wan, 1).expect("running").returned, XDP_PASS);
    });
}

#[test]
fn echo_comes_back_at_the_stated_pace() {
    on_bed(|bed| {
        limit_echo(bed, PUBLIC, 20, 1);
        let frame = to_public(8, 0);
        let passes = |bed: &Bed| bed.kernel.run_admit(&frame, bed.wan, 1).expect("running").returned == XDP_PASS;
        let begun = Instant::now();
        let mut let_in = 0;
        while begun.elapsed() < Duration::from_millis(500) {
            let_in += u32::from(passes(bed));
        }
        let most = (begun.elapsed().as_millis() / 50 + 1) as u32;
        assert!((2..=most).contains(&let_in), "{let_in} of at most {most}");
    });
}

#[test]
fn a_rate_of_nothing_refuses_all_echo() {
    on_bed(|bed| {
        limit_echo(bed, PUBLIC, 0, 100);
        for frame in [to_public(8, 0), to_public(0, 0), to_public_v6(128)] {
            bed.assert_admit("echo", &frame, bed.wan, PUBLIC, Reason::EchoRate);
        }
        bed.assert_admit("an error", &to_public(3, 4), bed.wan, PUBLIC, Reason::Admitted);
        let shared = V4::new(STRANGER_V4, NODE_V4, ICMP, icmp(8, 0)).on(Link::untagged());
        bed.assert_admit("to the node's own address", &shared, bed.wan, DomainId(0), Reason::NotFrontend);
    });
}

#[test]
fn a_domain_that_says_nothing_has_a_limit_all_the_same() {
    on_bed(|bed| {
        const SENT: u32 = 20_000;
        let frame = to_public(8, 0);
        let begun = Instant::now();
        let run = bed.kernel.run_admit(&frame, bed.wan, SENT).expect("running");
        let admitted = bed.count(PUBLIC, Hook::Admit, Reason::Admitted);
        let most = u64::from(RateLimit::ECHO.burst) + begun.elapsed().as_millis() as u64 + 1;
        assert!((u64::from(RateLimit::ECHO.burst)..=most).contains(&admitted), "{admitted} of at most {most}");
        assert!(most >= u64::from(SENT) || run.returned == XDP_DROP);
    });
}
