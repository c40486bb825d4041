//! Samples: what they say, and that a flood cannot fill more than its budget.

use std::net::{IpAddr, SocketAddr};

use tidegate_kernel::{Connection, Hook, Reason, Sample};
use tidegate_model::{DomainId, Transport};

use crate::{
    bed::{Bed, DENIED_V6, PUBLIC, PUBLIC_V4, PUBLIC_V6, STRANGER_V4, desired, on_bed, v6},
    frame::{ICMP, Link, TCP, V4, V6, icmp, tcp},
};

fn drain(samples: &mut tidegate_kernel::Samples) -> Vec<Sample> {
    let mut all = Vec::new();
    samples.drain(usize::MAX, |sample| all.push(sample));
    all
}

fn admit(bed: &Bed, frame: &[u8], repeat: u32) {
    bed.kernel.run_admit(frame, bed.wan, repeat).expect("running");
}

#[test]
fn a_denial_is_sampled_with_everything_that_was_read() {
    on_bed(|bed| {
        let mut samples = bed.kernel.take_samples().expect("the reader");
        assert!(bed.kernel.take_samples().is_err(), "there is one reader");
        let denied = V6::new(v6(DENIED_V6), v6(PUBLIC_V6), TCP, tcp(443)).on(Link::untagged().tag(0x8100, 100));
        admit(bed, &denied, 1);
        let ping = V4::new(STRANGER_V4, PUBLIC_V4, ICMP, icmp(13, 2)).on(Link::untagged());
        admit(bed, &ping, 1);
        let all = drain(&mut samples);
        assert_eq!(all.len(), 2, "{all:?}");
        let sample = all[0];
        assert_eq!((sample.domain, sample.hook, sample.reason), (PUBLIC, Hook::Admit, Reason::SourceDenied));
        assert_eq!((sample.source, sample.source_port), (IpAddr::from(v6(DENIED_V6)), 40_000));
        assert_eq!((sample.destination, sample.destination_port), (IpAddr::from(v6(PUBLIC_V6)), 443));
        assert_eq!((sample.protocol, sample.tcp_flags), (6, 2));
        assert_eq!((sample.ifindex, sample.vlan, sample.len), (bed.wan, 100, denied.len() as u32));
        assert!(sample.seen_at().elapsed().is_ok_and(|age| age.as_secs() < 60));
        let sample = all[1];
        assert_eq!((sample.reason, sample.protocol), (Reason::IcmpDenied, 1));
        assert_eq!((sample.source_port, sample.destination_port), (13, 2), "type and code");
        assert_eq!(sample.source, IpAddr::from(STRANGER_V4));
    });
}

#[test]
fn admissions_are_sampled_where_connections_begin_and_not_for_each_packet() {
    on_bed(|bed| {
        let mut samples = bed.kernel.take_samples().expect("the reader");
        let frame = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        admit(bed, &frame, 100);
        assert!(drain(&mut samples).is_empty());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binding");
        bed.kernel.set_sockets(PUBLIC, Some(std::os::fd::AsFd::as_fd(&listener)), None).expect("giving a socket");
        let connection = Connection {
            source: SocketAddr::new(STRANGER_V4.into(), 40_001),
            destination: SocketAddr::new(PUBLIC_V4.into(), 443),
            transport: Transport::Tcp,
        };
        // BPF_PROG_TEST_RUN has it come in at interface 0.
        bed.kernel.apply(&desired(0, bed.lan)).expect("applying");
        bed.kernel.run_steer(&connection).expect("running");
        let all = drain(&mut samples);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!((all[0].hook, all[0].reason, all[0].domain), (Hook::Steer, Reason::Admitted, PUBLIC));
        assert_eq!((all[0].source, all[0].source_port), (IpAddr::from(STRANGER_V4), 40_001));
        assert_eq!((all[0].destination, all[0].destination_port), (IpAddr::from(PUBLIC_V4), 443));
    });
}

#[test]
fn a_flood_is_sampled_within_its_budget_and_the_rest_is_counted() {
    on_bed(|bed| {
        let mut samples = bed.kernel.take_samples().expect("the reader");
        let frame = V4::new([192, 0, 2, 1], PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        admit(bed, &frame, 100_000);
        let sampled = drain(&mut samples).len() as u64;
        assert!((100..2000).contains(&sampled), "{sampled} samples");
        let losses = bed.kernel.sample_losses().expect("reading");
        assert_eq!(sampled + losses.over_budget + losses.lost, 100_000);
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::SourceDenied), 100_000);
        assert_eq!(bed.count(DomainId(0), Hook::Admit, Reason::SourceDenied), 0);
    });
}
