//! Which capabilities the agent has. Init takes all others from its bounding set before the agent's program runs, so
//! nothing in it, and nothing it could start, ever has more.

use caps::Capability;

use crate::options::KernelOption;

/// Capabilities of an agent that runs as root.
pub fn agent_capabilities(kernel: KernelOption) -> Vec<Capability> {
    // NET_ADMIN: local routes, XDP and cgroup attachment. BPF, PERFMON: loading programs that follow kernel pointers.
    let mut kept = vec![Capability::CAP_NET_ADMIN];
    if kernel != KernelOption::Off {
        kept.extend([Capability::CAP_BPF, Capability::CAP_PERFMON]);
    }
    if kernel != KernelOption::Require {
        // Bound sockets below port 1024. With the kernel tier no socket is bound to a frontend.
        kept.push(Capability::CAP_NET_BIND_SERVICE);
    }
    kept
}

/// Whether this process has a capability in effect.
pub fn has(capability: Capability) -> bool {
    caps::has_cap(None, caps::CapSet::Effective, capability).unwrap_or(false)
}
