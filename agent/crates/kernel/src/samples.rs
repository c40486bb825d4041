//! Reading sampled verdicts from the ring buffer.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::{Duration, SystemTime},
};

use aya::maps::{MapData, RingBuf};
use nix::time::{ClockId, clock_gettime};
use tidegate_abi::{self as abi, Hook, Reason, address::to_ip, map::name};
use tidegate_model::DomainId;

use crate::{Kernel, KernelError, sys::read_plain, tables::map_error};

/// One sampled verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub ktime_ns: u64,
    /// Domain; 0 is none.
    pub domain: DomainId,
    /// Where the verdict was made.
    pub hook: Hook,
    /// Why it is what it is.
    pub reason: Reason,
    /// Source; unspecified at [`Hook::Guard`].
    pub source: IpAddr,
    /// Source port, or type of an ICMP message.
    pub source_port: u16,
    /// Destination.
    pub destination: IpAddr,
    /// Destination port, or code of an ICMP message.
    pub destination_port: u16,
    /// IP protocol number; 0 when it could not be read.
    pub protocol: u8,
    /// Interface; 0 at [`Hook::Guard`].
    pub ifindex: u32,
    /// VLAN id of the outer tag, [`Hook::Admit`] only.
    pub vlan: u16,
    /// Length of the frame, [`Hook::Admit`] only.
    pub len: u32,
    /// Flags of the TCP header, [`Hook::Admit`] only.
    pub tcp_flags: u8,
}

impl Sample {
    /// When the verdict was made, by the wall clock of now: what was sampled before somebody set the clock is told by the new one.
    pub fn seen_at(&self) -> SystemTime {
        let now = SystemTime::now();
        let Ok(monotonic) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return now };
        seen_at(self.ktime_ns, monotonic.into(), now)
    }

    fn from_wire(bytes: &[u8]) -> Option<Self> {
        let sample: abi::Sample = read_plain(bytes)?;
        Some(Self {
            ktime_ns: sample.ktime_ns,
            domain: DomainId(sample.domain),
            hook: Hook::from_number(sample.hook)?,
            reason: Reason::from_number(sample.reason)?,
            source: to_ip(&sample.saddr),
            source_port: sample.sport,
            destination: to_ip(&sample.daddr),
            destination_port: sample.dport,
            protocol: sample.protocol,
            ifindex: sample.ifindex,
            vlan: sample.vlan,
            len: sample.len,
            tcp_flags: sample.tcp_flags,
        })
    }
}

/// The wall clock's time of a moment of the programs' clock, from what both say now.
fn seen_at(ktime_ns: u64, monotonic: Duration, now: SystemTime) -> SystemTime {
    let age = monotonic.saturating_sub(Duration::from_nanos(ktime_ns));
    now.checked_sub(age).unwrap_or(now)
}

/// The reader. Its descriptor is readable when samples wait.
pub struct Samples {
    ring: RingBuf<MapData>,
}

impl Samples {
    /// Hands out the samples that wait, at most `limit`; returns whether more may wait.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(Sample)) -> bool {
        for _ in 0..limit {
            let Some(item) = self.ring.next() else { return false };
            if let Some(sample) = Sample::from_wire(&item) {
                each(sample);
            }
        }
        true
    }
}

impl AsFd for Samples {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Samples {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Kernel {
    /// The reader of samples; there is one.
    ///
    /// # Errors
    /// When it was taken before, or the ring buffer cannot be mapped.
    pub fn take_samples(&mut self) -> Result<Samples, KernelError> {
        let map = self.samples.take().ok_or(KernelError::SamplesTaken)?;
        Ok(Samples { ring: RingBuf::try_from(map).map_err(map_error(name::SAMPLES))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_sample_does_not_depend_on_the_wall_clock() {
        let day = Duration::from_secs(86_400);
        let now = SystemTime::UNIX_EPOCH + 20_000 * day;
        for wall in [now, now + 100 * day, now - 100 * day] {
            let seen = seen_at(5_000_000_000, Duration::from_secs(8), wall);
            assert_eq!(wall.duration_since(seen).ok(), Some(Duration::from_secs(3)));
        }
        // Sampled while both clocks were read.
        assert_eq!(seen_at(9_000_000_000, Duration::from_secs(8), now), now);
        // A machine whose clock was never set.
        let unset = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(seen_at(0, day, unset), SystemTime::UNIX_EPOCH + Duration::from_secs(1) - day);
    }
}
