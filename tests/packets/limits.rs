//! Size, conflicts and removal.

use std::net::{IpAddr, Ipv4Addr};

use tidegate_kernel::{Hook, Reason};
use tidegate_model::{DomainId, Transport};

use crate::{
    bed::{CLOSED, NODE_V4, PRIVATE, PRIVATE_V4, PUBLIC, PUBLIC_V4, STRANGER_V4, desired, frontend, on_bed},
    frame::{Link, TCP, V4, tcp},
};

#[test]
fn judges_ten_thousand_frontends() {
    on_bed(|bed| {
        let mut state = desired(bed.wan, bed.lan);
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        let addr = |index: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + index);
        for index in 0..1000 {
            public.frontends.exclusive.push(IpAddr::V4(addr(index)));
            public.frontends.keys.extend((1..=10).map(|port| frontend(addr(index), port, Transport::Tcp)));
        }
        let report = bed.kernel.apply(&state).expect("applying");
        assert!(report.failures.is_empty());
        assert_eq!(report.written, 11_000);
        for index in [0, 1, 499, 998, 999] {
            for (port, reason) in [(1, Reason::Admitted), (10, Reason::Admitted), (11, Reason::NoFrontend)] {
                let frame = V4::new(STRANGER_V4, addr(index).octets(), TCP, tcp(port)).on(Link::untagged());
                bed.assert_admit(&format!("{}:{port}", addr(index)), &frame, bed.wan, PUBLIC, reason);
            }
        }
        // One frontend of ten thousand goes: one element.
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        public.frontends.keys.pop();
        let report = bed.kernel.apply(&state).expect("applying");
        assert_eq!((report.written, report.removed), (0, 1));
    });
}

#[test]
fn two_domains_that_claim_one_frontend_are_told_apart_by_who_came_first() {
    on_bed(|bed| {
        let mut state = desired(bed.wan, bed.lan);
        let private = state.domains.get_mut(&PRIVATE).expect("in every bed");
        private.frontends.exclusive.push(IpAddr::from(PUBLIC_V4));
        private.frontends.keys.push(frontend(PUBLIC_V4, 443, Transport::Tcp));
        private.frontends.keys.push(frontend(PRIVATE_V4, 8443, Transport::Tcp));
        let report = bed.kernel.apply(&state).expect("applying");
        let subjects: Vec<&str> = report.failures.iter().map(|failure| failure.subject.as_str()).collect();
        assert_eq!(subjects, ["address 203.0.113.1", "frontend 203.0.113.1:443/TCP"]);
        assert!(report.failures.iter().all(|failure| failure.domain == PRIVATE));
        let frame = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("the holder's", &frame, bed.wan, PUBLIC, Reason::Admitted);
        // The rest of the loser's change is in force.
        let frame = V4::new([10, 20, 0, 9], PRIVATE_V4, TCP, tcp(8443)).on(Link::untagged());
        bed.assert_admit("the loser's other frontend", &frame, bed.lan, PRIVATE, Reason::Admitted);
    });
}

#[test]
fn a_removed_domain_leaves_nothing_behind() {
    on_bed(|bed| {
        let frame = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("before", &frame, bed.wan, PUBLIC, Reason::Admitted);
        let report = bed.kernel.remove_domain(PUBLIC).expect("removing");
        assert!(report.failures.is_empty());
        bed.assert_admit("after", &frame, bed.wan, DomainId(0), Reason::NotFrontend);
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::Admitted), 0);
        // The others are as they were.
        let closed = V4::new(STRANGER_V4, [203, 0, 113, 4], TCP, tcp(80)).on(Link::untagged());
        bed.assert_admit("another domain", &closed, bed.wan, CLOSED, Reason::SourceNotAllowed);
        let shared = V4::new(STRANGER_V4, NODE_V4, TCP, tcp(8080)).on(Link::untagged());
        bed.assert_admit("a shared address", &shared, bed.wan, DomainId(3), Reason::Admitted);
        let mut rest = desired(bed.wan, bed.lan);
        rest.domains.remove(&PUBLIC);
        let report = bed.kernel.apply(&rest).expect("applying");
        assert_eq!((report.written, report.removed), (0, 0), "the maps hold exactly the other domains");
    });
}

#[test]
fn domain_numbers_out_of_range_are_refused_before_anything_is_changed() {
    on_bed(|bed| {
        for number in [0, 256, u32::MAX] {
            let mut state = desired(bed.wan, bed.lan);
            let domain = state.domains.remove(&PUBLIC).expect("in every bed");
            state.domains.insert(DomainId(number), domain);
            assert!(bed.kernel.apply(&state).is_err());
        }
        let frame = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("unchanged", &frame, bed.wan, PUBLIC, Reason::Admitted);
    });
}
