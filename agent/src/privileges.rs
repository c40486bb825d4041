//! Which capabilities the agent has. Init takes all others from its bounding set before the agent's program runs, so
//! nothing in it, and nothing it could start, ever has more.

use caps::Capability;

use crate::options::KernelOption;

/// Capabilities of an agent that runs as root.
pub fn agent_capabilities(kernel: KernelOption) -> Vec<Capability> {
    // NET_ADMIN: local routes, XDP and cgroup attachment. NET_BIND_SERVICE: UDP frontends below port 1024, and without the
    // kernel tier those of TCP. BPF, PERFMON: loading programs that follow kernel pointers.
    let mut kept = vec![Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];
    if kernel != KernelOption::Off {
        kept.extend([Capability::CAP_BPF, Capability::CAP_PERFMON]);
    }
    kept
}

/// Whether this process has a capability in effect.
pub fn has(capability: Capability) -> bool {
    caps::has_cap(None, caps::CapSet::Effective, capability).unwrap_or(false)
}
