//! Asking the loaded programs: BPF_PROG_TEST_RUN over the live maps.

use std::{net::SocketAddr, time::Duration};

use tidegate_abi::{Reason, map::from_explained};
use tidegate_model::{DomainId, Transport};

use crate::{Kernel, KernelError, programs::ProgramName, sys};

/// A verdict of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Domain that it was made for; 0 is none.
    pub domain: DomainId,
    /// The verdict.
    pub reason: Reason,
}

/// Result of running a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What it returned: an XDP action, or `SK_PASS` (1) or `SK_DROP` (0).
    pub returned: u32,
    /// Mean time of one run.
    pub duration: Duration,
}

/// A new connection or datagram for [`Kernel::run_steer`]. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who connects.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// Transport protocol.
    pub transport: Transport,
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
const XDP_CONTEXT: usize = 24;
/// Most bytes that `admit` adds to a frame: to the shortest that goes on a wire.
const GROWTH: usize = 64;
/// `struct bpf_sk_lookup`.
const SK_LOOKUP_CONTEXT: usize = 72;

impl Kernel {
    /// The verdict of `admit` on a frame that comes in at an interface, by the rules now applied. Counts and samples nothing.
    ///
    /// # Errors
    /// When the kernel does not take the frame (shorter than an Ethernet header, larger than a page) or the interface is gone.
    pub fn explain(&self, frame: &[u8], ifindex: u32) -> Result<Verdict, KernelError> {
        let run = self.run_xdp(ProgramName::Explain, frame, ifindex, 1)?;
        let (domain, reason) =
            from_explained(run.returned).ok_or(KernelError::Object { kind: "program", name: "explain" })?;
        Ok(Verdict { domain: DomainId(domain), reason })
    }

    /// Runs `admit` on a frame `repeat` times. It counts and samples as it does for real packets.
    ///
    /// # Errors
    /// As for [`Kernel::explain`].
    pub fn run_admit(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<TestRun, KernelError> {
        self.run_xdp(ProgramName::Admit, frame, ifindex, repeat)
    }

    /// Runs `admit` on a frame once, as [`Kernel::run_admit`], and returns what became of the frame, too.
    ///
    /// # Errors
    /// As for [`Kernel::explain`].
    pub fn run_admit_on(&self, frame: &[u8], ifindex: u32) -> Result<(TestRun, Vec<u8>), KernelError> {
        let mut made = vec![0; frame.len() + GROWTH];
        let mut context = xdp_context(frame, ifindex);
        let (run, len) = self.run(ProgramName::Admit, frame, &mut context, &mut made, 1)?;
        made.truncate(len);
        Ok((run, made))
    }

    /// Runs `steer` on a new connection that comes in at interface 0: the kernel takes no other here. It counts and samples as
    /// it does for real ones.
    ///
    /// # Errors
    /// When the kernel does not take the context.
    pub fn run_steer(&self, connection: &Connection) -> Result<TestRun, KernelError> {
        let mut context = [0u8; SK_LOOKUP_CONTEXT];
        let protocol: u32 = match connection.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        // struct bpf_sk_lookup: sk or cookie (8 bytes), family, protocol, remote_ip4, remote_ip6[4], remote_port (network
        // order, two bytes and two of padding), local_ip4, local_ip6[4], local_port (host order, four bytes), ingress_ifindex (must be 0).
        let family = if connection.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        context[8..12].copy_from_slice(&family.to_ne_bytes());
        context[12..16].copy_from_slice(&protocol.to_ne_bytes());
        for (addr, at_v4, at_v6) in [(connection.source, 16, 20), (connection.destination, 40, 44)] {
            match addr {
                SocketAddr::V4(addr) => context[at_v4..at_v4 + 4].copy_from_slice(&addr.ip().octets()),
                SocketAddr::V6(addr) => context[at_v6..at_v6 + 16].copy_from_slice(&addr.ip().octets()),
            }
        }
        context[36..38].copy_from_slice(&connection.source.port().to_be_bytes());
        context[60..64].copy_from_slice(&u32::from(connection.destination.port()).to_ne_bytes());
        self.run(ProgramName::Steer, &[], &mut context, &mut [], 1).map(|(run, _)| run)
    }

    fn run_xdp(&self, name: ProgramName, frame: &[u8], ifindex: u32, repeat: u32) -> Result<TestRun, KernelError> {
        self.run(name, frame, &mut xdp_context(frame, ifindex), &mut [], repeat).map(|(run, _)| run)
    }

    fn run(
        &self,
        name: ProgramName,
        data: &[u8],
        context: &mut [u8],
        made: &mut [u8],
        repeat: u32,
    ) -> Result<(TestRun, usize), KernelError> {
        let result = sys::test_run(self.program(name), data, context, made, repeat)
            .map_err(|source| KernelError::Run { program: name.as_str(), source })?;
        Ok((TestRun { returned: result.returned, duration: result.duration }, result.len))
    }
}

fn xdp_context(frame: &[u8], ifindex: u32) -> [u8; XDP_CONTEXT] {
    let mut context = [0u8; XDP_CONTEXT];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
