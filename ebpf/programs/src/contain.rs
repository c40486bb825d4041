//! What a worker may do with sockets beside dialling: open those that serving needs, and bind none.
//!
//! A worker dials its endpoints from ports that the kernel chooses, and is given the sockets that it listens on; so it binds
//! nothing. Fails closed: a process of an unknown cgroup gets nothing. Must not know where tables live.

use tidegate_abi::Reason;

use crate::{decide::Verdict, packet::protocol};

/// Type of a socket (include/linux/net.h).
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// Verdict on a socket of an internet family that a process opens: TCP streams and UDP datagrams, whose addresses are judged
/// when they are dialled. Everything else has no such judgement: raw sockets write any header, ping sockets and SCTP have
/// no address in `DIALLED`, and the subflows of Multipath TCP are the kernel's own. `domain` is `None` when the process's
/// cgroup is not known.
#[inline(always)]
pub fn judge_socket(domain: Option<&u32>, kind: u32, protocol: u32) -> Option<Verdict> {
    let Some(&domain) = domain else { return Some(Verdict { domain: 0, reason: Reason::SocketDenied }) };
    let is_stream = kind == SOCK_STREAM && protocol == protocol::TCP as u32;
    let is_datagram = kind == SOCK_DGRAM && protocol == protocol::UDP as u32;
    if is_stream || is_datagram { None } else { Some(Verdict { domain, reason: Reason::SocketDenied }) }
}

/// Verdict on an address that a process binds a socket to.
#[inline(always)]
pub fn judge_bind(domain: Option<&u32>) -> Verdict {
    let domain = if let Some(&domain) = domain { domain } else { 0 };
    Verdict { domain, reason: Reason::BindDenied }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_opens_streams_and_datagrams_and_nothing_else() {
        const SOCK_RAW: u32 = 3;
        const MPTCP: u32 = 262;
        const SCTP: u32 = 132;
        const ICMP: u32 = 1;
        let judge = |domain: Option<u32>, kind, protocol| judge_socket(domain.as_ref(), kind, protocol);
        assert_eq!(judge(Some(7), SOCK_STREAM, 6), None);
        assert_eq!(judge(Some(7), SOCK_DGRAM, 17), None);
        let denied = |domain| Some(Verdict { domain, reason: Reason::SocketDenied });
        for (kind, protocol) in [
            (SOCK_RAW, 255),
            (SOCK_RAW, 6),
            (SOCK_STREAM, MPTCP),
            (SOCK_STREAM, SCTP),
            (SOCK_DGRAM, ICMP),
            (SOCK_STREAM, 17),
            (SOCK_DGRAM, 6),
        ] {
            assert_eq!(judge(Some(7), kind, protocol), denied(7), "type {kind}, protocol {protocol}");
        }
        assert_eq!(judge(None, SOCK_STREAM, 6), denied(0), "an unknown cgroup");
    }

    #[test]
    fn a_worker_binds_nothing() {
        assert_eq!(judge_bind(Some(&7)), Verdict { domain: 7, reason: Reason::BindDenied });
        assert_eq!(judge_bind(None), Verdict { domain: 0, reason: Reason::BindDenied });
    }
}
