//! The model's walk: each reason, and the object, field and value that it names. That the loaded program says the same is
//! a test of the level `host`.

use std::{collections::BTreeMap, net::IpAddr, rc::Rc, sync::Arc};

use tidegate_kernel::{RateState, Reason};
use tidegate_model::{
    Admission, Domain, DomainId, DomainName, FrontendKey, Model, RateLimit, ResourceLimits, SynCookies, Transport,
    domain::Frontends,
};

use super::{
    Facts,
    packet::{self, Cookies, Scene, Way},
};
use crate::{
    admin::protocol::{Payload, Question},
    state::{Attach, DomainState, InterfaceState},
};

fn domain(name: &str, interface: &str, address: &str, admission: Admission) -> (DomainName, DomainState) {
    let domain = Domain {
        name: DomainName::new(name),
        interfaces: vec![interface.to_owned()],
        labels: BTreeMap::new(),
        admission,
        limits: ResourceLimits::default(),
        shards: None,
    };
    let mut state = DomainState::new(DomainId(1), Model::new(Arc::new(domain)));
    let addr = address.parse().unwrap();
    state.frontends = Rc::new(Frontends {
        keys: vec![FrontendKey { addr, port: 443, transport: Transport::Tcp }],
        exclusive: vec![addr],
    });
    state.interfaces = vec![nic(interface)];
    (DomainName::new(name), state)
}

fn nic(name: &str) -> InterfaceState {
    InterfaceState { name: name.to_owned(), ifindex: Some(1), vlan: None, attach: Attach::Native }
}

fn walk(source: &str, destination: &str, interface: Option<&str>) -> (Reason, String) {
    walk_with(Payload::Tcp, source, destination, interface)
}

fn walk_with(payload: Payload, source: &str, destination: &str, interface: Option<&str>) -> (Reason, String) {
    walk_through(payload, source, destination, interface, Cookies::WhenFull { is_full: false }).0
}

/// What decides, and what is said of cookies.
fn walk_through(
    payload: Payload,
    source: &str,
    destination: &str,
    interface: Option<&str>,
    cookies: Cookies,
) -> ((Reason, String), Vec<String>) {
    let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let domains = [
        domain(
            "public",
            "wan0",
            "203.0.113.1",
            Admission {
                deny: networks(&["192.0.2.0/24", "192.0.2.7/32"]),
                per_source: Some(RateLimit { rate: 10, burst: 20 }),
                total: Some(RateLimit { rate: 100, burst: 200 }),
                open_per_source: Some(2),
                open_total: Some(9),
                ..Admission::default()
            },
        ),
        domain(
            "private",
            "lan0",
            "10.20.1.1",
            Admission {
                allow: Some(networks(&["10.20.0.0/16"])),
                syn_cookies: SynCookies::Xdp,
                ..Admission::default()
            },
        ),
    ];
    let facts: Vec<Facts<'_>> = domains.iter().map(|(name, domain)| Facts { name, domain }).collect();
    let question = Question {
        source: source.parse().unwrap(),
        source_port: 40_000,
        destination: destination.parse().unwrap(),
        payload,
        interface: None,
        request: None,
    };
    let arrival = interface.map(nic);
    // Sources by what is left for them, and for the domain.
    let read_rates = |_, source: IpAddr| {
        let (source, total, total_known, echo) = match source.to_string().as_str() {
            "198.51.100.3" => (0, 5, 6, 7),
            "198.51.100.4" => (2, 0, 6, 7),
            "198.51.100.5" => (3, 5, 6, 0),
            _ => (3, 5, 6, 7),
        };
        Some(RateState {
            source: Some(source),
            is_shared: false,
            total: Some(total),
            total_known: Some(total_known),
            echo: Some(echo),
        })
    };
    // A source with two connections, and one that comes when the domain is full.
    let count_open = |_, source: IpAddr| match source.to_string().as_str() {
        "198.51.100.2" => Some((2, 5)),
        "198.51.100.9" => Some((1, 9)),
        _ => Some((1, 5)),
    };
    let scene = Scene {
        domains: &facts,
        arrival: arrival.as_ref(),
        is_kernel_on: true,
        find_origin: &|_, _| None,
        read_rates: &read_rates,
        is_known: false,
        count_open: &count_open,
        cookies,
    };
    let Way { steps, reason, .. } = packet::walk(&scene, &question);
    assert_eq!(reason.is_denial(), steps.iter().any(|step| step.is_denial), "{steps:?}");
    assert_eq!(steps.iter().filter(|step| step.is_deciding).count(), 1, "{steps:?}");
    let last = steps.iter().find(|step| step.is_deciding).unwrap();
    assert_eq!(Some(last), steps.last(), "nothing is decided after the verdict");
    let said = steps.iter().filter(|step| step.step.contains("cookie")).map(|step| step.outcome.clone()).collect();
    ((reason, format!("{} {} {}", last.object, last.field, last.value)), said)
}

#[test]
fn cookies_are_told_by_who_answers_and_when_and_are_a_verdict_of_the_driver_only() {
    let (stack, driver) = (("198.51.100.1", "203.0.113.1:443"), ("10.20.3.4", "10.20.1.1:443"));
    for (cookies, verdict, of_stack, of_driver) in [
        (
            Cookies::Never,
            Reason::Admitted,
            "SYNs beyond a full queue are dropped",
            "SYNs beyond a full queue are dropped",
        ),
        (
            Cookies::WhenFull { is_full: false },
            Reason::Admitted,
            "while the listener's queue is full",
            "is not full now",
        ),
        (
            Cookies::WhenFull { is_full: true },
            Reason::CookieSent,
            "is full: the stack sends one",
            "is full: the driver sends",
        ),
        (Cookies::Always, Reason::CookieSent, "the stack sends it", "the driver sends it"),
    ] {
        let (told, said) = walk_through(Payload::Tcp, stack.0, stack.1, None, cookies);
        assert_eq!(told.0, Reason::Admitted, "what the stack does with what is let in is no verdict");
        assert!(said[0].starts_with("the stack answers") && said[1].contains(of_stack), "{said:?}");
        let (told, said) = walk_through(Payload::Tcp, driver.0, driver.1, None, cookies);
        assert_eq!(told.0, verdict, "{cookies:?}");
        assert!(said[0].starts_with("the driver answers") && said[1].contains(of_driver), "{said:?}");
        // Of what is refused, and of what begins no connection, nothing is said.
        assert!(walk_through(Payload::Tcp, "192.0.2.7", stack.1, None, cookies).1.is_empty());
        assert!(walk_through(Payload::Icmp { kind: 8, code: 0 }, driver.0, driver.1, None, cookies).1.is_empty());
    }
    let (told, _) = walk_through(Payload::Tcp, driver.0, driver.1, None, Cookies::Always);
    assert_eq!(told, (Reason::CookieSent, "  net.ipv4.tcp_syncookies = 2".to_owned()));
}

#[test]
fn names_what_decides() {
    let public = "203.0.113.1:443";
    assert_eq!(walk("198.51.100.1", public, None).0, Reason::Admitted);
    assert_eq!(walk("198.51.100.1", public, Some("wan0")).0, Reason::Admitted);
    assert_eq!(
        walk("192.0.2.7", public, None),
        (Reason::SourceDenied, "TrafficDomain/public spec.sources.deny 192.0.2.7/32".to_owned())
    );
    assert_eq!(
        walk("192.0.2.7", public, Some("lan0")),
        (Reason::WrongInterface, "TrafficDomain/public spec.interfaces wan0".to_owned())
    );
    assert_eq!(
        walk("198.51.100.1", "203.0.113.1:80", Some("wan0")),
        (Reason::NoFrontend, "TrafficDomain/public spec.addresses served: 443/TCP".to_owned())
    );
    assert_eq!(
        walk("198.51.100.1", "10.20.1.1:443", None),
        (Reason::SourceNotAllowed, "TrafficDomain/private spec.sources.allow 10.20.0.0/16".to_owned())
    );
    assert_eq!(walk("10.20.3.4", "10.20.1.1:443", None).0, Reason::Admitted);
    assert_eq!(walk("10.20.3.4", "8.8.8.8:443", None).0, Reason::NotFrontend);
    // NIC and source come before the port: a scan of ports tells a denied source nothing.
    assert_eq!(walk("192.0.2.7", "203.0.113.1:80", Some("wan0")).0, Reason::SourceDenied);
    assert_eq!(walk("192.0.2.7", "203.0.113.1:80", Some("lan0")).0, Reason::WrongInterface);
}

#[test]
fn limits_on_open_connections_name_their_fields() {
    let public = "203.0.113.1:443";
    assert_eq!(
        walk("198.51.100.2", public, None),
        (Reason::OpenSource, "TrafficDomain/public spec.admission.openConnections.perSource 2".to_owned())
    );
    assert_eq!(
        walk("198.51.100.9", public, Some("wan0")),
        (Reason::OpenDomain, "TrafficDomain/public spec.admission.openConnections.total 9".to_owned())
    );
    // They are asked last, of TCP alone, and of domains that have them.
    assert_eq!(walk("198.51.100.2", "203.0.113.1:80", None).0, Reason::NoFrontend);
    assert_eq!(walk("198.51.100.2", public, Some("lan0")).0, Reason::WrongInterface);
    let ping = walk_with(Payload::Icmp { kind: 8, code: 0 }, "198.51.100.2", "203.0.113.1:0", None);
    assert_eq!(ping.0, Reason::Admitted);
}

#[test]
fn icmp_is_judged_by_its_type_and_errors_are_from_routers_that_no_allow_list_names() {
    let icmp = |kind, source, destination| walk_with(Payload::Icmp { kind, code: 0 }, source, destination, None).0;
    let public = "203.0.113.1:0";
    assert_eq!(icmp(8, "198.51.100.1", public), Reason::Admitted);
    assert_eq!(icmp(8, "192.0.2.7", public), Reason::SourceDenied);
    assert_eq!(icmp(13, "198.51.100.1", public), Reason::IcmpDenied);
    assert_eq!(icmp(8, "198.51.100.1", "10.20.1.1:0"), Reason::SourceNotAllowed);
    assert_eq!(icmp(3, "198.51.100.1", "10.20.1.1:0"), Reason::Admitted);
    assert_eq!(icmp(8, "198.51.100.1", "8.8.8.8:0"), Reason::NotFrontend);
    assert_eq!(walk_with(Payload::Udp, "198.51.100.1", "203.0.113.1:443", None).0, Reason::NoFrontend);
}

#[test]
fn sources_that_cannot_be_are_martians_and_routers_may_have_link_local_addresses() {
    let public = "203.0.113.1:443";
    for source in ["0.0.0.0", "127.0.0.1", "169.254.3.4", "224.0.0.1", "255.255.255.255"] {
        assert_eq!(walk(source, public, None).0, Reason::Martian, "{source}");
    }
    assert_eq!(
        walk("10.20.1.1", public, None),
        (Reason::Martian, "TrafficDomain/private spec.addresses 10.20.1.1".to_owned()),
        "an address of another domain"
    );
    let error = Payload::Icmp { kind: 3, code: 4 };
    assert_eq!(walk_with(error, "169.254.3.4", "203.0.113.1:0", None).0, Reason::Admitted);
    assert_eq!(walk_with(error, "127.0.0.1", "203.0.113.1:0", None).0, Reason::Martian);
    // The NIC comes first.
    assert_eq!(walk("127.0.0.1", public, Some("lan0")).0, Reason::WrongInterface);
}

#[test]
fn echo_beyond_its_rate_is_refused_and_errors_are_not_rated() {
    let icmp = |kind| walk_with(Payload::Icmp { kind, code: 0 }, "198.51.100.5", "203.0.113.1:0", None);
    let field = "TrafficDomain/public spec.admission.icmp.echo 1000 a second, 1000 at once";
    assert_eq!(icmp(8), (Reason::EchoRate, field.to_owned()));
    assert_eq!(icmp(0).0, Reason::EchoRate, "replies too");
    assert_eq!(icmp(3).0, Reason::Admitted);
}

#[test]
fn an_empty_bucket_names_its_rate() {
    let public = "203.0.113.1:443";
    let field = "TrafficDomain/public spec.admission.newConnections";
    assert_eq!(
        walk("198.51.100.3", public, None),
        (Reason::RateSource, format!("{field}.perSource 10 a second, 20 at once"))
    );
    assert_eq!(
        walk("198.51.100.4", public, None),
        (Reason::RateDomain, format!("{field}.total 100 a second, 200 at once"))
    );
    // Only what begins a connection to a frontend is rated, and domains without rates are not.
    assert_eq!(walk("198.51.100.3", "203.0.113.1:80", None).0, Reason::NoFrontend);
    assert_eq!(
        walk_with(Payload::Icmp { kind: 8, code: 0 }, "198.51.100.3", "203.0.113.1:0", None).0,
        Reason::Admitted
    );
    assert_eq!(walk("10.20.3.4", "10.20.1.1:443", None).0, Reason::Admitted);
}
