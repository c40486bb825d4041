//! Rates of new connections on the loaded programs: what each source and the domain may open, however many CPUs and
//! sources there are, and while rates change.
//!
//! Rates are one a second, so that what comes back during a test is what the clock says and no more: bounds are computed
//! from the time that has really passed, nothing waits.

use std::{net::SocketAddr, thread, time::Instant};

use nix::time::{ClockId, clock_gettime};
use tidegate_abi::{
    Policy, Rate,
    address::from_v4,
    connections::{Instance, KNOWN_WAYS, KnownSet, known_word},
    map::name,
    rates::hash_source,
};
use tidegate_kernel::{Connection, Hook, Kernel, Reason};
use tidegate_model::{Admission, DomainId, RateLimit, SourceBits, Transport};
use tidegate_programs::known::{set_of, ticks_of};

use crate::{
    bed::{
        Bed, DENIED_V4, NODE_V4, PUBLIC, PUBLIC_V4, PUBLIC_V6, SHARED, STRANGER_V4, STRANGER_V6, XDP_DROP, XDP_PASS,
        desired, on_bed, v6,
    },
    frame::{Link, TCP, UDP, V4, V6, tcp, udp},
    sys::put_element,
};

const ADMIT: Hook = Hook::Admit;

fn slow(burst: u32) -> Option<RateLimit> {
    Some(RateLimit { rate: 1, burst })
}

/// Tokens that may have come back since.
fn refilled(since: Instant) -> u64 {
    since.elapsed().as_secs() + 1
}

fn syn(source: [u8; 4]) -> Vec<u8> {
    V4::new(source, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged())
}

fn syn_v6(source: [u8; 16]) -> Vec<u8> {
    V6::new(source, v6(PUBLIC_V6), TCP, tcp(443)).on(Link::untagged())
}

/// BPF_PROG_TEST_RUN has every connection come in at interface 0.
const TEST_NIC: u32 = 0;

fn connection(source: [u8; 4], port: u16, transport: Transport) -> Connection {
    Connection {
        source: SocketAddr::new(source.into(), 40_000),
        destination: SocketAddr::new(PUBLIC_V4.into(), port),
        transport,
    }
}

fn number(index: u32) -> [u8; 4] {
    (0x0b00_0000 + index).to_be_bytes()
}

/// Applies the bed's state with other limits of the public domain.
fn limit(bed: &mut Bed, change: impl FnOnce(&mut Admission)) {
    let mut state = desired(bed.wan, bed.lan);
    change(&mut state.domains.get_mut(&PUBLIC).expect("in every bed").admission);
    let report = bed.kernel.apply(&state).expect("applying");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

fn action(bed: &Bed, frame: &[u8]) -> u32 {
    bed.kernel.run_admit(frame, bed.wan, 1).expect("running").returned
}

/// Sends a frame many times; says how many were let in, and how many refused for the reason.
fn send(bed: &Bed, frame: &[u8], times: u32, reason: Reason) -> (u64, u64) {
    let count = |reason| bed.count(PUBLIC, ADMIT, reason);
    let before = (count(Reason::Admitted), count(reason));
    bed.kernel.run_admit(frame, bed.wan, times).expect("running");
    let counted = (count(Reason::Admitted) - before.0, count(reason) - before.1);
    assert_eq!(counted.0 + counted.1, u64::from(times), "counted for another reason");
    counted
}

#[track_caller]
fn assert_allowance(admitted: u64, allowance: u64, since: Instant) {
    let most = allowance + refilled(since);
    assert!((allowance..=most).contains(&admitted), "{admitted} let in, {allowance} to {most} allowed");
}

#[test]
fn a_source_opens_its_burst_and_others_go_on() {
    on_bed(|bed| {
        limit(bed, |admission| admission.per_source = slow(500));
        let since = Instant::now();
        let (admitted, _) = send(bed, &syn(STRANGER_V4), 2000, Reason::RateSource);
        assert_allowance(admitted, 500, since);
        assert_eq!(action(bed, &syn(STRANGER_V4)), XDP_DROP);
        let verdict = bed.kernel.explain(&syn(STRANGER_V4), bed.wan).expect("asking");
        assert_eq!((verdict.domain, verdict.reason), (PUBLIC, Reason::RateSource));
        // The neighbour has its own bucket, and so has the other address family.
        let (admitted, _) = send(bed, &syn([198, 51, 100, 11]), 2000, Reason::RateSource);
        assert_allowance(admitted, 500, since);
        let (admitted, _) = send(bed, &syn_v6(v6(STRANGER_V6)), 2000, Reason::RateSource);
        assert_allowance(admitted, 500, since);
        // Another host of that /64 is the same source, another /64 is not.
        assert_eq!(action(bed, &syn_v6(v6("2001:db8:ffff:0:1:2:3:4"))), XDP_DROP);
        assert_eq!(action(bed, &syn_v6(v6("2001:db8:ffff:1::10"))), XDP_PASS);
        // Connections that are there go on, and datagrams are not rated.
        let mut segment = tcp(443);
        segment[13] = 0x10;
        assert_eq!(action(bed, &V4::new(STRANGER_V4, PUBLIC_V4, TCP, segment).on(Link::untagged())), XDP_PASS);
        assert_eq!(action(bed, &V4::new(STRANGER_V4, PUBLIC_V4, UDP, udp(53)).on(Link::untagged())), XDP_PASS);
        // What is refused for another reason says so.
        assert_eq!(send(bed, &syn(DENIED_V4), 600, Reason::SourceDenied).1, 600);
    });
}

#[test]
fn prefixes_count_as_one_source_as_stated() {
    on_bed(|bed| {
        limit(bed, |admission| {
            admission.per_source = slow(100);
            admission.source_bits = SourceBits { v4: 24, v6: 48 };
        });
        send(bed, &syn(STRANGER_V4), 300, Reason::RateSource);
        send(bed, &syn_v6(v6(STRANGER_V6)), 300, Reason::RateSource);
        assert_eq!(action(bed, &syn([198, 51, 100, 250])), XDP_DROP);
        assert_eq!(action(bed, &syn([198, 51, 101, 10])), XDP_PASS);
        assert_eq!(action(bed, &syn_v6(v6("2001:db8:ffff:9::1"))), XDP_DROP);
        assert_eq!(action(bed, &syn_v6(v6("2001:db8:fffe::10"))), XDP_PASS);
    });
}

#[test]
fn asking_takes_no_token() {
    on_bed(|bed| {
        limit(bed, |admission| (admission.per_source, admission.total) = (slow(2), slow(5)));
        let frame = syn(STRANGER_V4);
        for _ in 0..5 {
            assert_eq!(bed.kernel.explain(&frame, bed.wan).expect("asking").reason, Reason::Admitted);
        }
        let state = bed.kernel.rate_state(PUBLIC, STRANGER_V4.into()).expect("reading");
        assert_eq!((state.source, state.is_shared, state.total, state.total_known), (Some(2), false, Some(4), Some(5)));
        assert_eq!(action(bed, &frame), XDP_PASS);
        let state = bed.kernel.rate_state(PUBLIC, STRANGER_V4.into()).expect("reading");
        assert_eq!((state.source, state.total_known), (Some(1), Some(4)));
        let other = bed.kernel.rate_state(PUBLIC, [198, 51, 100, 11].into()).expect("reading");
        assert_eq!((other.source, other.total_known), (Some(2), Some(4)));
    });
}

#[test]
fn steer_charges_the_same_buckets_but_not_what_admit_has_charged() {
    on_bed(|bed| {
        let mut state = desired(TEST_NIC, bed.lan);
        state.domains.get_mut(&PUBLIC).expect("in every bed").admission.per_source = slow(300);
        bed.kernel.apply(&state).expect("applying");
        let stranger = connection(STRANGER_V4, 443, Transport::Tcp);
        let since = Instant::now();
        for _ in 0..600 {
            bed.kernel.run_steer(&stranger).expect("running");
        }
        let refused = bed.count(PUBLIC, Hook::Steer, Reason::RateSource);
        assert_allowance(600 - refused, 300, since);
        let datagram = connection(STRANGER_V4, 53, Transport::Udp);
        assert_eq!(bed.kernel.run_steer(&datagram).expect("running").returned, 1);
        // A connection to a port without a frontend costs nothing, whatever the verdict.
        for _ in 0..400 {
            bed.kernel.run_steer(&connection(number(1), 22, Transport::Tcp)).expect("running");
        }
        let state = bed.kernel.rate_state(PUBLIC, number(1).into()).expect("reading");
        assert_eq!(state.source, Some(300));
    });
}

#[test]
fn cpus_add_up_to_the_allowance_and_no_more() {
    const THREADS: u32 = 4;
    const EACH: u32 = 400_000;
    on_bed(|bed| {
        let flood = |bed: &Bed, frame_of: &(dyn Fn(u32) -> Vec<u8> + Sync)| {
            let (kernel, wan): (&Kernel, u32) = (&bed.kernel, bed.wan);
            thread::scope(|scope| {
                for index in 0..THREADS {
                    scope.spawn(move || kernel.run_admit(&frame_of(index), wan, EACH).expect("running"));
                }
            });
        };
        // One source on all CPUs.
        limit(bed, |admission| admission.per_source = slow(300_000));
        let since = Instant::now();
        flood(bed, &|_| syn(STRANGER_V4));
        assert_allowance(bed.count(PUBLIC, ADMIT, Reason::Admitted), 300_000, since);
        let refused = bed.count(PUBLIC, ADMIT, Reason::RateSource);
        assert_eq!(bed.count(PUBLIC, ADMIT, Reason::Admitted) + refused, u64::from(THREADS * EACH));
        // Many sources on one domain's bucket, a quarter of which strangers cannot have.
        limit(bed, |admission| admission.total = slow(400_001));
        let (since, before) = (Instant::now(), bed.count(PUBLIC, ADMIT, Reason::Admitted));
        flood(bed, &|index| syn(number(index)));
        assert_allowance(bed.count(PUBLIC, ADMIT, Reason::Admitted) - before, 300_001, since);
        assert!(bed.count(PUBLIC, ADMIT, Reason::RateDomain) > 0);
    });
}

/// Makes a source one that has just completed a handshake with the public domain.
fn make_known(bed: &Bed, source: [u8; 4]) {
    let seed = [5, 6];
    put_element(&bed.config, name::INSTANCE, 0, &Instance { seed, ..Instance::default() });
    let hash = hash_source(&[seed[0] ^ u64::from(PUBLIC.0), seed[1]], &from_v4(source));
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has it");
    let mut ways = [0; KNOWN_WAYS];
    ways[0] = known_word(hash, ticks_of(now.tv_sec() as u64 * 1_000_000_000));
    put_element(&bed.config, name::KNOWN, set_of(hash), &KnownSet { ways });
}

#[test]
fn a_flood_of_strangers_leaves_the_domain_to_known_sources() {
    on_bed(|bed| {
        limit(bed, |admission| admission.total = slow(4001));
        let since = Instant::now();
        let mut admitted = 0;
        for index in 0..10 {
            admitted += send(bed, &syn(number(index)), 1000, Reason::RateDomain).0;
        }
        assert_allowance(admitted, 3001, since);
        assert_eq!(action(bed, &syn(STRANGER_V4)), XDP_DROP);
        make_known(bed, STRANGER_V4);
        assert_eq!(send(bed, &syn(STRANGER_V4), 900, Reason::RateDomain), (900, 0));
        // What a known source takes, strangers do not get first.
        assert_eq!(send(bed, &syn(number(77)), 100, Reason::RateDomain), (0, 100));
        let (admitted, _) = send(bed, &syn(STRANGER_V4), 1000, Reason::RateDomain);
        assert!((100..=100 + refilled(since)).contains(&admitted), "{admitted} let in of the rest");
    });
}

#[test]
fn a_flood_of_sources_evicts_nobody_who_is_being_measured() {
    const SOURCES: u32 = 150_000;
    on_bed(|bed| {
        let mut state = desired(TEST_NIC, bed.lan);
        for domain in [PUBLIC, SHARED] {
            state.domains.get_mut(&domain).expect("in every bed").admission.per_source = slow(300);
        }
        bed.kernel.apply(&state).expect("applying");
        // One an hour, which no object can ask for: nothing comes back while the flood lasts, however slow the machine.
        const HOUR_NS: u64 = 3_600_000_000_000;
        let per_source = Rate { interval_ns: HOUR_NS, burst_ns: 299 * HOUR_NS };
        let policy = Policy { per_source, v4_bits: 32, v6_bits: 64, ..Policy::default() };
        put_element(&bed.config, name::DOMAINS, PUBLIC.0, &policy);
        let refused = |bed: &Bed| bed.count(PUBLIC, Hook::Steer, Reason::RateSource);
        let connect = |bed: &Bed, source, times: u32| {
            let before = refused(bed);
            for _ in 0..times {
                bed.kernel.run_steer(&connection(source, 443, Transport::Tcp)).expect("running");
            }
            u64::from(times) - (refused(bed) - before)
        };
        assert_eq!(connect(bed, STRANGER_V4, 250), 250);
        for index in 0..SOURCES {
            // Unlike a run of `admit`, which waits for a grace period, this takes microseconds.
            bed.kernel.run_steer(&connection(number(index), 443, Transport::Tcp)).expect("running");
        }
        let fill = bed.kernel.rate_fill().expect("reading");
        let of = |domain: DomainId| *fill.iter().find(|fill| fill.domain == domain).expect("both are limited");
        assert!(of(PUBLIC).overflows > 0, "{fill:?}");
        assert!(of(PUBLIC).busy * 10 > of(PUBLIC).capacity * 9, "{fill:?}");
        // Of 300 it has used 250: had its bucket been given away, it would have all of them.
        assert_eq!(connect(bed, STRANGER_V4, 400), 50);
        // The other domain has places for all of its own.
        assert_eq!((of(SHARED).busy, of(SHARED).overflows), (0, 0));
        let state = bed.kernel.rate_state(SHARED, number(SOURCES + 1).into()).expect("reading");
        assert_eq!((state.source, state.is_shared), (Some(300), false));
    });
}

#[test]
fn changed_rates_hold_at_once_and_leave_other_buckets_alone() {
    on_bed(|bed| {
        let first = |admission: &mut Admission| admission.per_source = slow(1000);
        limit(bed, first);
        let since = Instant::now();
        send(bed, &syn(STRANGER_V4), 1000, Reason::RateSource);
        send(bed, &syn(number(1)), 400, Reason::RateSource);
        // A total comes and goes: nobody's bucket changes.
        for round in 0..20u32 {
            limit(bed, |admission| (admission.per_source, admission.total) = (slow(1000), slow(1000 + round)));
            limit(bed, first);
        }
        let (admitted, _) = send(bed, &syn(STRANGER_V4), 500, Reason::RateSource);
        assert!(admitted <= refilled(since), "{admitted} let in by an empty bucket");
        let (admitted, _) = send(bed, &syn(number(1)), 1000, Reason::RateSource);
        assert_allowance(admitted, 600, since);
        // Under a faster rate nobody serves out the slower one's sentence: a thousand seconds become milliseconds.
        limit(bed, |admission| admission.per_source = Some(RateLimit { rate: 1_000_000, burst: 1000 }));
        assert_eq!(action(bed, &syn(STRANGER_V4)), XDP_DROP);
        let waited = Instant::now();
        while action(bed, &syn(STRANGER_V4)) == XDP_DROP {
            assert!(waited.elapsed().as_secs() < 60, "still refused");
        }
        // Without a rate nobody is refused; with one again everybody starts with a full bucket.
        limit(bed, |_| {});
        assert_eq!(send(bed, &syn(number(1)), 5000, Reason::RateSource), (5000, 0));
        assert!(bed.kernel.rate_fill().expect("reading").is_empty());
        let since = Instant::now();
        limit(bed, first);
        let (admitted, _) = send(bed, &syn(number(1)), 3000, Reason::RateSource);
        assert_allowance(admitted, 1000, since);
    });
}

#[test]
fn nobody_is_misjudged_while_rates_of_others_change() {
    on_bed(|bed| {
        let shared = V4::new(STRANGER_V4, NODE_V4, TCP, tcp(8080)).on(Link::untagged());
        let mut states = [1u32, 2, 3].map(|round| {
            let mut state = desired(bed.wan, bed.lan);
            let limited = |burst| slow(burst);
            state.domains.get_mut(&SHARED).expect("in every bed").admission.per_source = limited(200_000);
            let public = &mut state.domains.get_mut(&PUBLIC).expect("in every bed").admission;
            public.per_source = if round == 3 { None } else { limited(round) };
            state
        });
        bed.kernel.apply(&states[0]).expect("applying");
        let since = Instant::now();
        for round in 0..30 {
            // Each change is in force for some thousand packets of the other domain.
            bed.kernel.apply(&states[round % 3]).expect("applying");
            bed.kernel.run_admit(&shared, bed.wan, 5000).expect("running");
            // Lists change too: the policy is replaced, the buckets are not.
            let public = &mut states[round % 3].domains.get_mut(&PUBLIC).expect("in every bed").admission;
            let shorter: Vec<_> = public.deny.iter().skip(1).collect();
            public.deny = shorter.into();
        }
        assert_eq!(bed.count(SHARED, ADMIT, Reason::Admitted), 150_000);
        bed.kernel.run_admit(&shared, bed.wan, 150_000).expect("running");
        assert_allowance(bed.count(SHARED, ADMIT, Reason::Admitted), 200_000, since);
    });
}

#[test]
fn buckets_outlive_the_agent_but_not_their_domain() {
    on_bed(|bed| {
        limit(bed, |admission| admission.per_source = slow(1000));
        send(bed, &syn(STRANGER_V4), 1000, Reason::RateSource);
        let since = Instant::now();
        let (kernel, opened) = Kernel::open(&bed.config).expect("opening again");
        assert!(opened.has_adopted_maps);
        bed.kernel = kernel;
        limit(bed, |admission| admission.per_source = slow(1000));
        let (admitted, _) = send(bed, &syn(STRANGER_V4), 500, Reason::RateSource);
        assert!(admitted <= refilled(since), "{admitted} let in by an empty bucket");
        bed.kernel.remove_domain(PUBLIC).expect("removing");
        assert!(bed.kernel.rate_fill().expect("reading").is_empty());
        limit(bed, |admission| admission.per_source = slow(1000));
        assert_eq!(send(bed, &syn(STRANGER_V4), 1000, Reason::RateSource), (1000, 0));
    });
}
