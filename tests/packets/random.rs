//! Hostile bytes: truncated at every length, spoiled at every place, and random. The loaded program says what the pure
//! decision says over tables of another making, for every one of them.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    bed::{
        ALLOWED_V4, Bed, CLOSED_V4, DENIED_V4, NODE_V4, PRIVATE_V4, PUBLIC_V4, PUBLIC_V6, STRANGER_V4, STRANGER_V6,
        desired, on_bed, v6,
    },
    frame::{ICMP, ICMP_V6, Link, TCP, UDP, V4, V6, authentication, extension, fragment, icmp, tcp, udp},
    mirror::Mirror,
};

/// BPF_PROG_TEST_RUN takes no shorter frame.
const SHORTEST: usize = 14;

fn assert_same(bed: &Bed, mirror: &Mirror<'_>, frame: &[u8]) {
    for ifindex in [bed.wan, bed.lan] {
        let verdict = bed.kernel.explain(frame, ifindex).expect("running explain");
        assert_eq!((verdict.domain, verdict.reason), mirror.judge(frame, ifindex), "{frame:02x?} on {ifindex}");
    }
}

/// One frame for each path through the parser.
fn seeds() -> Vec<Vec<u8>> {
    let mut options = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443));
    options.options = vec![1; 12];
    let chain = V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), TCP, tcp(443))
        .extend(0, extension(1))
        .extend(43, extension(2))
        .extend(51, authentication())
        .extend(44, fragment(0, true));
    let later = V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), UDP, udp(53)).extend(44, fragment(3, false));
    vec![
        V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged()),
        V4::new(DENIED_V4, PUBLIC_V4, UDP, udp(53)).on(Link::untagged().tag(0x8100, 100)),
        V4::new(STRANGER_V4, PUBLIC_V4, ICMP, icmp(8, 0)).on(Link::untagged().tag(0x88a8, 200).tag(0x8100, 300)),
        V4::new(ALLOWED_V4, PRIVATE_V4, TCP, tcp(80)).on(Link::untagged()),
        V4::new(STRANGER_V4, NODE_V4, TCP, tcp(8080)).on(Link::untagged()),
        V4::new(STRANGER_V4, CLOSED_V4, TCP, tcp(80)).on(Link::untagged()),
        options.on(Link::untagged()),
        V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), ICMP_V6, icmp(135, 0)).on(Link::untagged()),
        chain.on(Link::untagged()),
        later.on(Link::untagged()),
    ]
}

#[test]
fn judges_frames_truncated_at_every_length() {
    on_bed(|bed| {
        let desired = desired(bed.wan, bed.lan);
        let mirror = Mirror::new(&desired);
        for seed in seeds() {
            for len in SHORTEST..=seed.len() {
                assert_same(bed, &mirror, &seed[..len]);
            }
        }
    });
}

#[test]
fn judges_frames_spoiled_at_every_byte() {
    on_bed(|bed| {
        let desired = desired(bed.wan, bed.lan);
        let mirror = Mirror::new(&desired);
        for seed in seeds() {
            for at in 0..seed.len() {
                for value in [0, 1, 0x0f, 0x2c, 0x45, 0x60, 0x7f, 0x80, 0xff, seed[at].wrapping_add(1)] {
                    let mut frame = seed.clone();
                    frame[at] = value;
                    assert_same(bed, &mirror, &frame);
                }
            }
        }
    });
}

#[test]
fn judges_random_frames_as_the_pure_decision_does() {
    on_bed(|bed| {
        let desired = desired(bed.wan, bed.lan);
        let mirror = Mirror::new(&desired);
        let seeds = seeds();
        // A seed, bytes that are overwritten, a cut and a tail: mostly near to something valid, sometimes far from it.
        let strategy = (
            0..seeds.len(),
            proptest::collection::vec((0..120usize, any::<u8>()), 0..8),
            0..160usize,
            proptest::collection::vec(any::<u8>(), 0..200),
        );
        let mut runner = TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
        runner
            .run(&strategy, |(seed, changes, cut, tail)| {
                let mut frame = seeds[seed].clone();
                for (at, value) in changes {
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = value;
                    }
                }
                frame.truncate(cut.max(SHORTEST));
                frame.extend(tail);
                assert_same(bed, &mirror, &frame);
                Ok(())
            })
            .expect("kernel and model agree");
        let noise = proptest::collection::vec(any::<u8>(), SHORTEST..300);
        runner
            .run(&noise, |frame| {
                assert_same(bed, &mirror, &frame);
                Ok(())
            })
            .expect("kernel and model agree on noise");
    });
}
