//! SYN cookies from the driver: which SYNs are answered, how, and that the kernel takes the acknowledgement of such an answer.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use tidegate_kernel::{Hook, Kernel, KernelConfig, Reason};
use tidegate_model::{SynCookies, Transport};

use crate::{
    bed::{
        Bed, NODE_V4, PUBLIC, PUBLIC_V4, PUBLIC_V6, STRANGER_V4, STRANGER_V6, XDP_DROP, XDP_PASS, desired, frontend,
        index_of, ip, on_bed, v6,
    },
    frame::{Link, MORE_FRAGMENTS, TCP, V4, V6, extension, tcp},
    wire::{make_internet, on_the_internet},
};

const XDP_TX: u32 = 3;
/// Where the parts of an answer without tags begin.
const IP: usize = 14;
const SYN_ACK: u8 = 0x12;

/// `net.ipv4.tcp_syncookies` of this namespace: 0 never, 1 when the queue is full, 2 always.
fn set_cookies(value: &str) {
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", value).expect("a namespace of the test's own");
}

/// A domain `PUBLIC` that answers in the driver, with sockets that listen.
fn serve(bed: &mut Bed) -> [TcpListener; 2] {
    let mut state = desired(bed.wan, bed.lan);
    let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
    public.admission.syn_cookies = SynCookies::Xdp;
    bed.kernel.apply(&state).expect("applying");
    bed.kernel.attach_steer().expect("attaching");
    let v4 = TcpListener::bind("127.0.0.1:0").expect("binding");
    let v6 = TcpListener::bind("[::1]:0").expect("binding");
    bed.kernel.set_sockets(PUBLIC, Some(v4.as_fd()), Some(v6.as_fd())).expect("giving sockets");
    [v4, v6]
}

fn syn_v4() -> V4 {
    V4::new(STRANGER_V4, PUBLIC_V4, TCP, with_mss(1460))
}

fn syn_v6() -> V6 {
    V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), TCP, with_mss(1440))
}

fn with_mss(mss: u16) -> Vec<u8> {
    let mut header = tcp(443);
    header[12] = 0x60;
    header.extend([2, 4]);
    header.extend(mss.to_be_bytes());
    header
}

/// Sum of 16-bit words (RFC 1071), 0 when the checksum among them is right.
fn residue(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum::<u64>() % 0xffff
}

#[track_caller]
fn assert_answer_v4(frame: &[u8], answer: &[u8], ip: usize) {
    assert_eq!((&answer[..6], &answer[6..12]), (&frame[6..12], &frame[..6]), "hardware addresses change places");
    assert_eq!(answer[12..ip], frame[12..ip], "tags stay");
    let (network, tcp) = (&answer[ip..ip + 20], &answer[ip + 20..ip + 44]);
    assert_eq!((network[0], u16::from_be_bytes([network[2], network[3]]), network[9]), (0x45, 44, TCP));
    assert_eq!((&network[12..16], &network[16..20]), (&PUBLIC_V4[..], &STRANGER_V4[..]));
    assert_eq!(residue(network), 0);
    assert_eq!(residue(&[&network[12..], &[0, TCP, 0, 24], tcp].concat()), 0);
    assert_tcp(tcp, &frame[ip + 20..], 1500 - 40);
}

#[track_caller]
fn assert_tcp(answer: &[u8], syn: &[u8], mss: u16) {
    assert_eq!((&answer[..2], &answer[2..4]), (&syn[2..4], &syn[..2]), "ports change places");
    let number = |header: &[u8], at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(number(answer, 8), number(syn, 4).wrapping_add(1));
    assert_ne!(number(answer, 4), 0);
    assert_eq!(answer[12..14], [0x60, SYN_ACK]);
    assert_eq!(answer[20..24], [&[2, 4], &mss.to_be_bytes()[..]].concat());
}

#[test]
fn answers_a_syn_in_its_own_frame() {
    on_bed(|bed| {
        let _sockets = serve(bed);
        set_cookies("2");
        let tagged = Link::untagged().tag(0x8100, 100);
        let double = Link::untagged().tag(0x88a8, 200).tag(0x8100, 300);
        let mut sent = 0;
        for (link, ip) in [(Link::untagged(), 14), (tagged, 18), (double, 22)] {
            let frame = syn_v4().on(link.clone());
            let (run, answer) = bed.kernel.run_admit_on(&frame, bed.wan).expect("running");
            assert_eq!(run.returned, XDP_TX);
            assert_eq!(answer.len(), (ip + 44).max(60));
            assert_answer_v4(&frame, &answer, ip);

            let frame = syn_v6().on(link);
            let (run, answer) = bed.kernel.run_admit_on(&frame, bed.wan).expect("running");
            assert_eq!(bed.kernel.explain(&frame, bed.wan).expect("running").reason, Reason::CookieSent);
            assert_eq!(run.returned, XDP_TX);
            assert_eq!(answer.len(), ip + 64);
            let (network, tcp) = (&answer[ip..ip + 40], &answer[ip + 40..]);
            assert_eq!(network[..8], [0x60, 0, 0, 0, 0, 24, TCP, 64]);
            assert_eq!(network[8..], [v6(PUBLIC_V6), v6(STRANGER_V6)].concat());
            assert_eq!(residue(&[&network[8..], &[0, 0, 0, 24, 0, 0, 0, TCP], tcp].concat()), 0);
            assert_tcp(tcp, &frame[ip + 40..], 1500 - 60);
            sent += 2;
            assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::CookieSent), sent);
        }
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::Admitted), 0);
        // A long one is cut, a short one without options grows.
        let mut long = syn_v4();
        long.payload.extend([0; 1000]);
        let bare = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443));
        for frame in [long.on(Link::untagged()), bare.on(Link::untagged())] {
            let (run, answer) = bed.kernel.run_admit_on(&frame, bed.wan).expect("running");
            assert_eq!((run.returned, answer.len()), (XDP_TX, 60));
            assert_answer_v4(&frame, &answer, IP);
        }
    });
}

#[test]
fn advertises_segments_that_the_nic_takes() {
    on_bed(|bed| {
        let _sockets = serve(bed);
        set_cookies("2");
        for mtu in [1280u16, 1450, 3000] {
            ip(&format!("link set wan0 mtu {mtu}"));
            let frame = syn_v4().on(Link::untagged());
            let (_, answer) = bed.kernel.run_admit_on(&frame, bed.wan).expect("running");
            assert_tcp(&answer[IP + 20..IP + 44], &frame[IP + 20..], mtu - 40);
        }
    });
}

#[test]
fn leaves_to_the_stack_what_it_cannot_answer() {
    on_bed(|bed| {
        let sockets = serve(bed);
        set_cookies("2");
        let mut with_options = syn_v4();
        with_options.options = vec![1; 4];
        let mut first_fragment = syn_v4();
        first_fragment.fragment = MORE_FRAGMENTS;
        let flags = |flags: u8| {
            let mut packet = syn_v4();
            packet.payload[13] = flags;
            packet.on(Link::untagged())
        };
        let cases = [
            ("IP options", with_options.on(Link::untagged())),
            ("a fragment", first_fragment.on(Link::untagged())),
            ("an extension header", syn_v6().extend(60, extension(1)).on(Link::untagged())),
            ("a SYN-ACK", flags(SYN_ACK)),
            ("an ACK", flags(0x10)),
            ("a RST", flags(0x04)),
            ("a SYN with FIN", flags(0x03)),
        ];
        let mut passed = 0;
        for (name, frame) in &cases {
            let (run, made) = bed.kernel.run_admit_on(frame, bed.wan).expect("running");
            assert_eq!((run.returned, &made), (XDP_PASS, frame), "{name}");
            passed += 1;
            assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::Admitted), passed, "{name}");
            assert_eq!(bed.kernel.explain(frame, bed.wan).expect("running").reason, Reason::Admitted, "{name}");
        }
        let refused = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(22)).on(Link::untagged());
        let (run, made) = bed.kernel.run_admit_on(&refused, bed.wan).expect("running");
        assert_eq!((run.returned, &made), (XDP_DROP, &refused), "a port without a frontend");
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::CookieSent), 0);

        let frame = syn_v4().on(Link::untagged());
        // Who asks hears the same, and nothing is counted for it.
        let answered = |bed: &Bed| {
            let is_answered = bed.kernel.run_admit_on(&frame, bed.wan).expect("running").0.returned == XDP_TX;
            let rows = bed.kernel.counters().expect("reading counters");
            let explained = bed.kernel.explain(&frame, bed.wan).expect("running").reason;
            assert_eq!(explained, if is_answered { Reason::CookieSent } else { Reason::Admitted });
            assert_eq!(bed.kernel.counters().expect("reading counters"), rows);
            is_answered
        };
        assert!(answered(bed));
        for value in ["0", "1"] {
            set_cookies(value);
            assert!(!answered(bed), "the queue is not full, or cookies are off");
        }
        set_cookies("2");
        bed.kernel.set_sockets(PUBLIC, None, None).expect("taking the sockets");
        assert!(!answered(bed), "nobody listens");
        bed.kernel.set_sockets(PUBLIC, Some(sockets[0].as_fd()), None).expect("giving it back");
        assert!(answered(bed));
        bed.kernel.apply(&desired(bed.wan, bed.lan)).expect("applying");
        assert!(!answered(bed), "the domain leaves cookies to the kernel");
    });
}

#[test]
fn answers_at_a_shared_address_for_its_frontends_only() {
    on_bed(|bed| {
        let sockets = serve(bed);
        set_cookies("2");
        let mut state = desired(bed.wan, bed.lan);
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        public.admission.syn_cookies = SynCookies::Xdp;
        public.frontends.keys.push(frontend(NODE_V4, 9090, Transport::Tcp));
        bed.kernel.apply(&state).expect("applying");
        for (port, returned) in [(9090, XDP_TX), (8080, XDP_PASS), (22, XDP_PASS)] {
            let frame = V4::new(STRANGER_V4, NODE_V4, TCP, tcp(port)).on(Link::untagged());
            assert_eq!(bed.kernel.run_admit_on(&frame, bed.wan).expect("running").0.returned, returned, "{port}");
        }
        drop(sockets);
    });
}

/// Makes `wan1` take what the driver of `wan0` sends back: a veth does so only while an XDP program runs at the receiving end
/// (`veth_xdp_flush`). An instance without domains passes everything.
fn answerable(bed: &Bed, internet: &fs::File) -> Kernel {
    let config = KernelConfig::new(&bed.config.bpffs, format!("{}-client", bed.config.instance));
    let (mut kernel, _) = Kernel::open(&config).expect("opening a second instance");
    on_the_internet(internet, || {
        let wan1 = index_of("wan1");
        kernel.attach_interface(wan1).expect("attaching");
    });
    kernel
}

/// What the whole is for: a client that the driver has answered is connected to the listener, which knew nothing of it before.
#[test]
fn a_client_that_was_answered_in_the_driver_reaches_the_listener() {
    on_bed(|bed| {
        let internet = make_internet();
        ip("route add 2001:db8:ffff::/64 dev wan0");
        ip("-6 addr add 2001:db8:ffff::1/64 dev wan0 nodad");
        ip("-6 route add local 2001:db8:1::1/128 dev lo");
        on_the_internet(&internet, || {
            ip("-6 addr add 2001:db8:ffff::10/64 dev wan1 nodad");
            ip("-6 route add 2001:db8:1::1/128 via 2001:db8:ffff::1");
        });
        let _other_end = answerable(bed, &internet);
        let sockets = serve(bed);
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        set_cookies("2");
        let frontends = [SocketAddr::new(PUBLIC_V4.into(), 443), SocketAddr::new(v6(PUBLIC_V6).into(), 443)];
        for (round, (frontend, listener)) in frontends.into_iter().zip(&sockets).cycle().take(20).enumerate() {
            on_the_internet(&internet, || {
                let mut stream = TcpStream::connect_timeout(&frontend, Duration::from_secs(5)).expect("connecting");
                stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                stream.write_all(&[7; 100_000]).expect("sending");
                let (mut accepted, client) = listener.accept().expect("accepting");
                assert_eq!(client, stream.local_addr().expect("bound"));
                let mut received = vec![0; 100_000];
                accepted.read_exact(&mut received).expect("receiving");
                accepted.write_all(b"answer").expect("answering");
                drop(accepted);
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("reading");
                assert_eq!(answer, "answer");
            });
            assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::CookieSent), round as u64 + 1);
        }
    });
}
