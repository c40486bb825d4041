//! Open connections: `observe` attached to the cgroup of the listening sockets, and what it has counted.
//!
//! Counts are right because of three things that outlive the agent: the link, the maps, and the marks on sockets. While a
//! link lives, nothing here touches a count. When none does (pins removed, host started again), sockets may have closed
//! unseen: counting begins anew with another epoch, and marks of an earlier one are never taken back. Must not know what
//! limits there are.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use tidegate_abi::{
    Connections, Instance, SourceKey,
    address::from_ip,
    connections::{
        MAX_OPEN_DOMAINS, MAX_OPEN_SOURCES, OPEN_SOURCES_ELEMENTS, duration_bound_us, name, open_of_word, rtt_bound_us,
    },
    rates::mask_source,
};
use tidegate_model::DomainId;

use crate::{
    Kernel, KernelError, MapFill,
    attach::{LinkName, open_cgroup},
    maps::Maps,
    programs::ProgramName,
    sys::{self, Wire, netns_cookie, random_seed},
    tables::{clear_per_cpu, map_error},
};

/// Connections of one domain, summed over the CPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRow {
    /// Domain.
    pub domain: DomainId,
    /// Open now.
    pub open: u64,
    /// Opened so far.
    pub opened: u64,
    /// Not counted for their source, or not at all: no room or no memory for it.
    pub uncounted: u64,
    /// Segments sent again by connections that have ended.
    pub retransmits: u64,
    /// Bytes that connections that have ended received in order.
    pub bytes_received: u64,
    /// Bytes of connections that have ended that clients acknowledged.
    pub bytes_acked: u64,
    /// Smoothed round-trip times at the end of connections.
    pub rtt: Histogram,
    /// How long connections were open.
    pub duration: Histogram,
}

/// A histogram in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bound and values up to it that are above the one before; what is above all bounds is the last, of infinity.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all values.
    pub sum: f64,
}

impl Histogram {
    fn new(counts: &[u64], bound_us: fn(usize) -> u64, sum_us: u64) -> Self {
        let bound = |bucket| if bucket + 1 == counts.len() { f64::INFINITY } else { seconds(bound_us(bucket)) };
        let buckets = counts.iter().enumerate().map(|(bucket, count)| (bound(bucket), *count)).collect();
        Self { buckets, sum: seconds(sum_us) }
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The maps of `observe` that the agent reads.
pub(crate) struct ConnectionTables {
    instance: Array<MapData, Wire<Instance>>,
    open_domains: Array<MapData, Wire<u64>>,
    open_sources: HashMap<MapData, Wire<SourceKey>, Wire<u64>>,
    connections: PerCpuArray<MapData, Wire<Connections>>,
}

impl ConnectionTables {
    pub(crate) fn take(maps: &mut Maps) -> Result<Self, KernelError> {
        Ok(Self {
            instance: maps.take(name::INSTANCE)?,
            open_domains: maps.take(name::OPEN_DOMAINS)?,
            open_sources: maps.take(name::OPEN_SOURCES)?,
            connections: maps.take(name::CONNECTIONS)?,
        })
    }

    /// Says which sockets are counted. With `is_new` nothing has seen sockets close lately: counting begins anew.
    fn prepare(&mut self, netns: u64, is_new: bool) -> Result<(), KernelError> {
        let current = self.instance.get(&0, 0).map_err(map_error(name::INSTANCE))?.0;
        let mut wanted = Instance { netns, ..current };
        // Without a seed the maps are new, whatever older maps a link still fills.
        if is_new || current.seed == [0; 2] {
            wanted.epoch += 1;
            wanted.seed = random_seed().map_err(|error| map_error(name::INSTANCE)(MapError::IoError(error)))?;
            self.clear()?;
        }
        if wanted != current {
            self.instance.set(0, Wire(wanted), 0).map_err(map_error(name::INSTANCE))?;
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), KernelError> {
        for domain in 0..MAX_OPEN_DOMAINS {
            self.open_domains.set(domain, Wire(0), 0).map_err(map_error(name::OPEN_DOMAINS))?;
        }
        let sources: Result<Vec<_>, _> = self.open_sources.keys().collect();
        for source in sources.map_err(map_error(name::OPEN_SOURCES))? {
            self.open_sources.remove(&source).map_err(map_error(name::OPEN_SOURCES))?;
        }
        Ok(())
    }

    /// Clears what is told of a domain that is gone. Connections that it still has stay counted until they close.
    pub(crate) fn forget(&mut self, domain: u32) -> Result<(), KernelError> {
        clear_per_cpu(&mut self.connections, domain, name::CONNECTIONS)
    }

    fn read_open(&self, domain: u32) -> Result<u64, KernelError> {
        Ok(self.open_domains.get(&domain, 0).map_err(map_error(name::OPEN_DOMAINS))?.0)
    }

    fn read(&self, domain: DomainId) -> Result<ConnectionRow, KernelError> {
        let values = self.connections.get(&domain.0, 0).map_err(map_error(name::CONNECTIONS))?;
        let mut sum = Connections::default();
        for Wire(value) in values.iter() {
            sum.rtt.iter_mut().zip(value.rtt).for_each(|(sum, count)| *sum += count);
            sum.duration.iter_mut().zip(value.duration).for_each(|(sum, count)| *sum += count);
            sum.rtt_us += value.rtt_us;
            sum.duration_us += value.duration_us;
            sum.opened += value.opened;
            sum.retransmits += value.retransmits;
            sum.bytes_received += value.bytes_received;
            sum.bytes_acked += value.bytes_acked;
            sum.uncounted += value.uncounted;
        }
        Ok(ConnectionRow {
            domain,
            open: self.read_open(domain.0)?,
            opened: sum.opened,
            uncounted: sum.uncounted,
            retransmits: sum.retransmits,
            bytes_received: sum.bytes_received,
            bytes_acked: sum.bytes_acked,
            rtt: Histogram::new(&sum.rtt, rtt_bound_us, sum.rtt_us),
            duration: Histogram::new(&sum.duration, duration_bound_us, sum.duration_us),
        })
    }

    /// Sources with open connections.
    pub(crate) fn fill(&self) -> MapFill {
        MapFill {
            map: name::OPEN_SOURCES,
            entries: self.read_open(OPEN_SOURCES_ELEMENTS).unwrap_or(0),
            capacity: MAX_OPEN_SOURCES.into(),
        }
    }
}

impl Kernel {
    /// Counts the connections of sockets that are made in a cgroup and the network namespace of the calling thread. Connections
    /// that are open already when counting begins are not counted.
    ///
    /// # Errors
    /// When the folder is no cgroup of version 2 or the kernel refuses the program.
    pub fn attach_observe(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        let (folder, id) = open_cgroup(cgroup)?;
        let mut is_attached = false;
        let mut is_new = true;
        for text in self.pins.link_names()? {
            let Some(LinkName::Observe { cgroup }) = LinkName::parse(&text) else { continue };
            if self.find_link(&text)?.is_some_and(|info| info.target == cgroup) {
                is_new = false;
                is_attached |= cgroup == id;
            }
        }
        let program = ProgramName::Observe;
        let attach_error =
            |source| KernelError::Attach { program: program.as_str(), target: cgroup.display().to_string(), source };
        self.connections.prepare(netns_cookie().map_err(attach_error)?, is_new)?;
        if is_attached {
            return Ok(());
        }
        let target = folder.as_fd().as_raw_fd() as u32;
        let link = sys::create_link(self.program(program), target, program.attach_type(), 0).map_err(attach_error)?;
        self.pin_link(link, LinkName::Observe { cgroup: id })
    }

    /// Connections of every domain.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn connections(&self) -> Result<Vec<ConnectionRow>, KernelError> {
        self.domains()?.into_iter().map(|domain| self.connections.read(domain)).collect()
    }

    /// Open connections of the source that an address belongs to, by the bits that its domain's policy tells sources apart
    /// by, and those of the domain.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn open_connections(&self, domain: DomainId, source: IpAddr) -> Result<(u64, u64), KernelError> {
        let policy = self.applied.policies.get(&domain.0).copied().unwrap_or_default();
        let addr = mask_source(&from_ip(source), policy.v4_bits, policy.v6_bits);
        let by_source = match self.connections.open_sources.get(&Wire(SourceKey { addr, domain: domain.0 }), 0) {
            Ok(word) => open_of_word(word.0).into(),
            Err(MapError::KeyNotFound) => 0,
            Err(error) => return Err(map_error(name::OPEN_SOURCES)(error)),
        };
        Ok((by_source, self.connections.read_open(domain.0)?))
    }
}
