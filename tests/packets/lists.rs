//! Source lists: judged as the obvious model judges them, swapped whole, refused whole.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tidegate_kernel::{Kernel, MAX_PREFIXES, Reason};
use tidegate_model::SourceList;

use crate::{
    bed::{
        ALLOWED_V4, ALLOWED_V6, DENIED_V4, DENIED_V6, PRIVATE, PRIVATE_V4, PRIVATE_V6, PUBLIC, PUBLIC_V4, PUBLIC_V6,
        STRANGER_V4, STRANGER_V6, StopOnDrop, desired, nets, on_bed, v6,
    },
    frame::{Link, TCP, V4, V6, tcp},
    mirror::Mirror,
};

/// A SYN from an address to a domain, `PUBLIC` or `PRIVATE`.
fn syn(source: IpAddr, is_private: bool) -> Vec<u8> {
    match source.to_canonical() {
        IpAddr::V4(source) => {
            let destination = if is_private { PRIVATE_V4 } else { PUBLIC_V4 };
            V4::new(source.octets(), destination, TCP, tcp(80)).on(Link::untagged())
        }
        IpAddr::V6(source) => {
            let destination = v6(if is_private { PRIVATE_V6 } else { PUBLIC_V6 });
            V6::new(source.octets(), destination, TCP, tcp(80)).on(Link::untagged())
        }
    }
}

/// Swaps of the test below.
const ROUNDS: u32 = 1_000;

/// What two lists have besides what is looked at: spread over both families, so that the swaps have something to do.
fn filler(round: u32) -> impl Iterator<Item = IpNet> {
    (0..200u32).flat_map(move |index| {
        let v4 = Ipv4Addr::from(0xac10_0000 | index << 8 | round & 0xff);
        let v6 = Ipv6Addr::from(0x2a00_u128 << 112 | u128::from(index) << 80 | u128::from(round) << 64);
        [IpNet::from(Ipv4Net::new_assert(v4, 32)), IpNet::from(Ipv6Net::new_assert(v6, 64))]
    })
}

#[test]
fn a_thousand_swaps_under_traffic_misjudge_nothing() {
    on_bed(|bed| {
        let config = bed.config.clone();
        let (wan, lan) = (bed.wan, bed.lan);
        let is_done = AtomicBool::new(false);
        let parse = |text: &str| -> IpAddr { text.parse().expect("an address") };
        // Of `PRIVATE`, these two change places with every swap: one denied, the other allowed. Were ever the lists of two
        // states mixed, one of them would be neither.
        let (left, right) = (["10.20.200.1", "fd00:20:aa::1"], ["10.20.201.1", "fd00:20:bb::1"]);
        let cases: Vec<(Vec<u8>, u32, &[Reason])> = vec![
            (syn(DENIED_V4.into(), false), wan, &[Reason::SourceDenied]),
            (syn(parse(DENIED_V6), false), wan, &[Reason::SourceDenied]),
            (syn(STRANGER_V4.into(), false), wan, &[Reason::Admitted]),
            (syn(parse(STRANGER_V6), false), wan, &[Reason::Admitted]),
            (syn(ALLOWED_V4.into(), true), lan, &[Reason::Admitted]),
            (syn(parse(ALLOWED_V6), true), lan, &[Reason::Admitted]),
            (syn(STRANGER_V4.into(), true), lan, &[Reason::SourceNotAllowed]),
            (syn(parse(STRANGER_V6), true), lan, &[Reason::SourceNotAllowed]),
        ];
        let both: &[Reason] = &[Reason::Admitted, Reason::SourceDenied];
        let changing = left.into_iter().chain(right).map(|text| (syn(parse(text), true), lan, both));
        let cases: Vec<_> = cases.into_iter().chain(changing).collect();
        // Opened on this thread, whose namespaces are the bed's.
        let readers: Vec<Kernel> = (0..2).map(|_| Kernel::open(&config).expect("opening beside").0).collect();
        let begun = Instant::now();
        let judged = thread::scope(|scope| {
            let stop = StopOnDrop(&is_done);
            let (cases, is_done) = (&cases, &is_done);
            let judges: Vec<_> = readers
                .iter()
                .map(|reader| {
                    scope.spawn(move || {
                        let mut verdicts: BTreeMap<(usize, Reason), u64> = BTreeMap::new();
                        while !is_done.load(Ordering::Relaxed) {
                            for (index, (frame, ifindex, _)) in cases.iter().enumerate() {
                                let verdict = reader.explain(frame, *ifindex).expect("running");
                                *verdicts.entry((index, verdict.reason)).or_default() += 1;
                            }
                        }
                        verdicts
                    })
                })
                .collect();
            let mut state = desired(wan, lan);
            for round in 0..ROUNDS {
                // Each round changes the lists of one domain, by 400 prefixes that go and 400 that come.
                let plain = desired(wan, lan);
                if round % 8 == 7 {
                    let public = &mut state.domains.get_mut(&PUBLIC).expect("in every bed").admission;
                    *public = plain.domains[&PUBLIC].admission.clone();
                    public.deny.extend(filler(round));
                    let report = bed.kernel.apply(&state).expect("applying");
                    assert!(report.failures.is_empty(), "{:?}", report.failures);
                    continue;
                }
                let private = &mut state.domains.get_mut(&PRIVATE).expect("in every bed").admission;
                let (denied, allowed) = if round % 2 == 0 { (left, right) } else { (right, left) };
                let own = |addresses: [&str; 2]| addresses.map(|text| IpNet::from(parse(text)));
                private.deny = plain.domains[&PRIVATE].admission.deny.clone();
                private.deny.extend(own(denied));
                // Their network is on the allow list of every bed; here they have to be on it themselves.
                private.allow = Some(nets(&["10.20.0.0/17", "fd00:20:1::/48"]));
                private.allow.as_mut().expect("just set").extend(own(allowed).into_iter().chain(filler(round)));
                let report = bed.kernel.apply(&state).expect("applying");
                assert!(report.failures.is_empty(), "{:?}", report.failures);
            }
            drop(stop);
            judges.into_iter().map(|judge| judge.join().expect("a judging thread")).collect::<Vec<_>>()
        });
        println!("{ROUNDS} swaps in {:?}", begun.elapsed());
        for verdicts in judged {
            let total: u64 = verdicts.values().sum();
            assert!(total > 10_000, "hardly anything was judged: {verdicts:?}");
            // The first round's state is the bed's, in which the changing ones are allowed by their network.
            for ((index, reason), count) in &verdicts {
                let (_, _, right) = &cases[*index];
                assert!(right.contains(reason), "case {index}: {reason:?} {count} times of {total}");
            }
            let seen = |index: usize| both.iter().all(|reason| verdicts.contains_key(&(index, *reason)));
            assert!((8..12).all(seen), "the changing ones were seen in both states: {verdicts:?}");
        }
        assert_eq!(bed.kernel.source_tables(), 4, "two tables for each of two domains, whatever the number of swaps");
    });
}

#[test]
fn random_lists_are_judged_as_looking_at_every_prefix_does() {
    on_bed(|bed| {
        let v4 = (any::<u32>(), 0..=32u8).prop_map(|(bits, len)| {
            // Near to each other, so that they overlap and share nodes and leaves.
            let bits = if bits % 3 == 0 { bits } else { 0x0a14_0000 | bits & 0x0001_0333 };
            IpNet::from(Ipv4Net::new_assert(bits.into(), len))
        });
        let v6 = (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| {
            let bits =
                if bits % 3 == 0 { bits } else { 0xfd00_0020_u128 << 96 | bits & (0x3 << 76 | 0x3 << 62 | 0x303) };
            IpNet::from(Ipv6Net::new_assert(bits.into(), len))
        });
        // Whole families would hide the rest in every case, so lengths start at a few bits mostly.
        let longer = |prefix: &IpNet| prefix.prefix_len() > 4;
        let prefix = prop_oneof![8 => v4.clone().prop_filter("longer", longer), 8 => v6.clone().prop_filter("longer", longer), 1 => v4, 1 => v6];
        let list = proptest::collection::vec(prefix, 0..40);
        let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
        let bed = std::cell::RefCell::new(bed);
        runner
            .run(&(list.clone(), list.clone(), list), |(deny, private_deny, allow)| {
                let mut bed = bed.borrow_mut();
                let mut state = desired(bed.wan, bed.lan);
                state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny = deny.clone().into();
                let private = &mut state.domains.get_mut(&PRIVATE).expect("in every bed").admission;
                (private.deny, private.allow) = (private_deny.clone().into(), Some(allow.clone().into()));
                let report = bed.kernel.apply(&state).expect("applying");
                prop_assert!(report.failures.is_empty(), "{:?}", report.failures);
                let mirror = Mirror::new(&state);
                for prefix in deny.iter().chain(&private_deny).chain(&allow) {
                    for source in [prefix.network(), prefix.broadcast(), prefix.addr()] {
                        for (is_private, ifindex) in [(false, bed.wan), (true, bed.lan)] {
                            let frame = syn(source, is_private);
                            let verdict = bed.kernel.explain(&frame, ifindex).expect("running explain");
                            let expected = mirror.judge(&frame, ifindex);
                            prop_assert_eq!((verdict.domain, verdict.reason), expected, "{}", source);
                        }
                    }
                }
                Ok(())
            })
            .expect("kernel and model agree");
    });
}

#[test]
fn a_change_of_one_list_touches_no_other() {
    on_bed(|bed| {
        let mut state = desired(bed.wan, bed.lan);
        assert_eq!(bed.kernel.apply(&state).expect("applying").written, 0, "nothing differs");
        state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny.extend(nets(&["100.64.0.0/10"]).iter());
        let report = bed.kernel.apply(&state).expect("applying");
        assert_eq!((report.written, report.removed), (1, 0), "one policy, which names the other table");
        let frame = V4::new([100, 127, 0, 1], PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("a source denied later", &frame, bed.wan, PUBLIC, Reason::SourceDenied);
        let usage = bed.kernel.source_use();
        let public = usage.iter().find(|usage| usage.domain == PUBLIC).expect("has lists");
        assert_eq!(
            public.prefixes,
            [("deny", "ipv4", 2), ("deny", "ipv6", 1), ("allow", "ipv4", 0), ("allow", "ipv6", 0)]
        );
        assert!(public.bytes > 2 * 65_536 * 4, "two tables with their roots: {}", public.bytes);
        state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny = SourceList::default();
        let report = bed.kernel.apply(&state).expect("applying");
        assert_eq!((report.written, report.removed), (1, 2), "no list, no table");
        bed.assert_admit("no list any more", &frame, bed.wan, PUBLIC, Reason::Admitted);
        assert_eq!(bed.kernel.source_use().len(), 1, "the other domain's");
    });
}

#[test]
fn a_list_beyond_the_limit_is_refused_and_the_one_before_stays_in_force() {
    on_bed(|bed| {
        let mut state = desired(bed.wan, bed.lan);
        let many = |count: usize| {
            (0..count as u32).map(|index| IpNet::from(IpAddr::from(Ipv4Addr::from(0x1400_0000 + (index << 8)))))
        };
        let allowed = SourceList::from_iter(many(MAX_PREFIXES + 1));
        state.domains.get_mut(&PRIVATE).expect("in every bed").admission.allow = Some(allowed);
        let report = bed.kernel.apply(&state).expect("applying");
        assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
        let failure = &report.failures[0];
        assert_eq!((failure.domain, failure.subject.as_str()), (PRIVATE, "source lists"));
        for word in ["allow list", "1000001 prefixes", "limit is 1000000", "stay in force"] {
            assert!(failure.error.contains(word), "{word:?} is missing: {}", failure.error);
        }
        let frame = syn(ALLOWED_V4.into(), true);
        bed.assert_admit("by the list before", &frame, bed.lan, PRIVATE, Reason::Admitted);
        let frame = syn(STRANGER_V4.into(), true);
        bed.assert_admit("not by the list before", &frame, bed.lan, PRIVATE, Reason::SourceNotAllowed);
        // As many as are allowed are taken, beside the other list.
        state.domains.get_mut(&PRIVATE).expect("in every bed").admission.allow = Some(many(MAX_PREFIXES).collect());
        let report = bed.kernel.apply(&state).expect("applying");
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let frame = syn("20.0.7.0".parse().expect("an address"), true);
        bed.assert_admit("one of a million", &frame, bed.lan, PRIVATE, Reason::Admitted);
        let frame = syn("20.0.7.1".parse().expect("an address"), true);
        bed.assert_admit("beside it", &frame, bed.lan, PRIVATE, Reason::SourceNotAllowed);
    });
}

#[test]
fn the_next_agent_goes_on_with_the_lists_of_one_that_died() {
    on_bed(|bed| {
        let config = bed.config.clone();
        let mut state = desired(bed.wan, bed.lan);
        let frame = syn("198.51.100.77".parse().expect("an address"), false);
        for round in 0..4u32 {
            let is_denied = round % 2 == 0;
            let deny = &mut state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny;
            *deny = nets(if is_denied { &["198.51.100.77/32", "192.0.2.0/24"] } else { &["192.0.2.0/24"] });
            let reason = if is_denied { Reason::SourceDenied } else { Reason::Admitted };
            assert!(bed.kernel.apply(&state).expect("applying").failures.is_empty());
            bed.assert_admit("as applied", &frame, bed.wan, PUBLIC, reason);
            // Nothing but the pins says what the agent before did.
            bed.kernel = Kernel::open(&config).expect("opening again").0;
            bed.assert_admit("before the new agent has applied anything", &frame, bed.wan, PUBLIC, reason);
            assert!(bed.kernel.apply(&state).expect("applying").failures.is_empty());
            bed.assert_admit("after the new agent has applied the same", &frame, bed.wan, PUBLIC, reason);
        }
    });
}
