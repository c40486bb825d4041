//! What each panel must show after the traffic of this test: the value of the series with these labels.

/// What is right for one panel.
pub(super) struct Right {
    pub(super) board: &'static str,
    pub(super) title: &'static str,
    /// Labels of the series that is looked at; the values of all that have them are added up.
    pub(super) labels: &'static [(&'static str, &'static str)],
    pub(super) is_right: fn(f64) -> bool,
}

const fn right(
    board: &'static str,
    title: &'static str,
    labels: &'static [(&'static str, &'static str)],
    is_right: fn(f64) -> bool,
) -> Right {
    Right { board, title, labels, is_right }
}

fn some(value: f64) -> bool {
    value > 0.0
}

fn none(value: f64) -> bool {
    value == 0.0
}

fn one(value: f64) -> bool {
    value == 1.0
}

fn part(value: f64) -> bool {
    value > 0.0 && value < 1.0
}

fn two(value: f64) -> bool {
    value == 2.0
}

const KERNEL: &str = "kernel-admission";
const DOMAINS: &str = "domains";
const SOURCES: &str = "sources";
const PUBLIC: (&str, &str) = ("domain", "public");
const PRIVATE: (&str, &str) = ("domain", "private");

/// Every panel stands here at least once.
pub(super) const RIGHT: &[Right] = &[
    right(KERNEL, "Judged in the kernel", &[], one),
    // What this machine does not enforce is its own matter; that there is a number is checked for every panel.
    right(KERNEL, "Not enforced here", &[], |value| value >= 0.0),
    right(KERNEL, "Interfaces not judged", &[], none),
    right(KERNEL, "Refused now", &[], part),
    right(KERNEL, "Fullest map", &[], part),
    right(KERNEL, "Samples lost", &[], none),
    right(KERNEL, "Packets for frontends", &[("verdict", "admit")], some),
    right(KERNEL, "Packets for frontends", &[("verdict", "deny")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "source_denied")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "source_not_allowed")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "wrong_interface")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "no_frontend")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "malformed")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "icmp_denied")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "protocol_denied")], some),
    right(KERNEL, "Packets refused by reason", &[("reason", "martian")], some),
    right(KERNEL, "Bytes for frontends", &[("verdict", "deny")], some),
    right(KERNEL, "Packets that are nobody's", &[], some),
    right(KERNEL, "New connections and datagrams", &[("reason", "admitted")], some),
    right(KERNEL, "New connections and datagrams", &[("reason", "wrong_interface")], some),
    right(KERNEL, "System calls of workers", &[PUBLIC, ("reason", "dial_allowed")], some),
    right(KERNEL, "System calls of workers", &[PUBLIC, ("reason", "dial_denied")], some),
    right(KERNEL, "Map fill", &[("map", "FRONTENDS")], part),
    right(KERNEL, "Interfaces by mode", &[("mode", "native")], two),
    right(KERNEL, "Interfaces by mode", &[("mode", "missing")], none),
    right(KERNEL, "Samples", &[], some),
    right(DOMAINS, "Ready", &[], one),
    right(DOMAINS, "Workers that answer", &[], one),
    right(DOMAINS, "Generations behind", &[], none),
    right(DOMAINS, "Parts not applied", &[], none),
    right(DOMAINS, "Errors in objects", &[], none),
    right(DOMAINS, "First certificate ends", &[], some),
    right(DOMAINS, "Requests by status", &[PUBLIC, ("status", "2xx")], some),
    right(DOMAINS, "Requests by status", &[PUBLIC, ("status", "4xx")], some),
    right(DOMAINS, "Requests by status", &[PRIVATE, ("status", "2xx")], some),
    right(DOMAINS, "Request duration", &[PUBLIC], some),
    right(DOMAINS, "Answers that no backend gave", &[PUBLIC], some),
    right(DOMAINS, "Bodies", &[PUBLIC], some),
    right(DOMAINS, "New connections", &[PUBLIC], some),
    right(DOMAINS, "Open connections", &[PUBLIC], some),
    right(DOMAINS, "TLS handshakes", &[PUBLIC], some),
    right(DOMAINS, "Round-trip time", &[PUBLIC], some),
    right(DOMAINS, "Round-trip time", &[PRIVATE], some),
    right(DOMAINS, "Connection duration", &[PUBLIC], some),
    // Nothing is lost between namespaces, unless the machine is too busy.
    right(DOMAINS, "Segments sent again", &[PUBLIC], |value| value >= 0.0),
    right(DOMAINS, "Endpoints", &[PUBLIC, ("state", "ready")], two),
    right(DOMAINS, "Endpoints", &[PRIVATE, ("state", "ready")], one),
    right(DOMAINS, "Change to applied", &[PUBLIC], some),
    right(DOMAINS, "Worker restarts", &[PUBLIC], none),
    right(SOURCES, "On the deny list", &[PUBLIC], some),
    right(SOURCES, "On the deny list", &[PRIVATE], none),
    right(SOURCES, "Not on the allow list", &[PRIVATE], some),
    right(SOURCES, "Not on the allow list", &[PUBLIC], none),
    right(SOURCES, "Bytes refused by a list", &[PUBLIC], some),
    right(SOURCES, "Sources that cannot be", &[PUBLIC], some),
    right(SOURCES, "Through another domain's NIC", &[PUBLIC, ("hook", "admit")], some),
    right(SOURCES, "Through another domain's NIC", &[PUBLIC, ("hook", "steer")], some),
    right(SOURCES, "Ports that nobody serves", &[PUBLIC], some),
    right(SOURCES, "Malformed, foreign protocols, ICMP", &[("reason", "malformed")], some),
    right(SOURCES, "Malformed, foreign protocols, ICMP", &[("reason", "protocol_denied")], some),
    right(SOURCES, "Beyond a rate", &[PRIVATE, ("reason", "rate_source")], some),
    right(SOURCES, "Beyond a rate", &[PRIVATE, ("reason", "rate_domain")], some),
    right(SOURCES, "Sources with a bucket in use", &[PRIVATE], part),
    right(SOURCES, "Sources without a bucket", &[PRIVATE], none),
    right(SOURCES, "Share refused", &[PUBLIC], part),
    right(SOURCES, "Entries of source lists", &[], some),
];
