//! What the agent wants the kernel to enforce, and what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tidegate_model::{Admission, Dial, DomainId, domain::Frontends};

/// Everything that the kernel must enforce on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The domains.
    pub domains: BTreeMap<DomainId, DomainDesired>,
}

/// What the kernel must enforce for one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainDesired {
    /// NICs that its frontends are reachable through. Several domains may name the same one.
    pub interfaces: Vec<Interface>,
    /// Who may send packets to its frontends.
    pub admission: Admission,
    /// Its addresses and frontends.
    pub frontends: Frontends,
    /// Addresses that its workers may dial.
    pub dialled: BTreeSet<Dial>,
}

/// A NIC, or a VLAN on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface {
    /// The NIC that `admit` runs on.
    pub ifindex: u32,
    /// VLAN id of the (outer) tag; 0 is untagged.
    pub vlan: u16,
    /// VLAN id of the inner tag (802.1ad); 0 is none.
    pub inner_vlan: u16,
    /// The VLAN device, which is where the stack, and so `steer`, sees a tagged packet come in.
    pub device: Option<u32>,
}

impl Interface {
    /// A whole NIC, untagged frames.
    pub fn untagged(ifindex: u32) -> Self {
        Self { ifindex, ..Self::default() }
    }

    /// A VLAN on a NIC with its VLAN device.
    pub fn tagged(ifindex: u32, vlan: u16, device: u32) -> Self {
        Self { ifindex, vlan, inner_vlan: 0, device: Some(device) }
    }
}

/// What an [`apply`](crate::Kernel::apply) changed.
#[derive(Clone, Debug, Default)]
pub struct AppliedReport {
    /// Map elements written.
    pub written: usize,
    /// Map elements removed.
    pub removed: usize,
    /// What could not be applied; everything else is in force.
    pub failures: Vec<ApplyFailure>,
}

/// One thing that could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyFailure {
    /// Domain that wants it.
    pub domain: DomainId,
    /// What it is, e.g. `frontend 203.0.113.1:443/TCP`.
    pub subject: String,
    /// Why, with the mend where there is one.
    pub error: String,
}

impl fmt::Display for ApplyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.error)
    }
}
