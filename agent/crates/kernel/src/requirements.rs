//! What the programs need of the kernel beyond its release: the one table to extend when a program uses something new.
//!
//! A release alone says little: distributions leave options out and carry features back. What every release from
//! [`OLDEST_KERNEL`](mod@crate::probe) on has whatever its options is not listed: links of XDP, cgroups and namespaces (5.9), atomic
//! instructions with a result (5.12), arrays that can be mapped (5.5).

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use crate::probe::Missing;

/// Program types: name, type, the option of the kernel that brings it.
const PROGRAMS: &[(&str, ProgramType, &str)] = &[
    ("XDP", ProgramType::Xdp, "CONFIG_BPF_SYSCALL and CONFIG_NET"),
    ("sk_lookup", ProgramType::SkLookup, "CONFIG_BPF_SYSCALL and CONFIG_INET"),
    ("cgroup socket programs", ProgramType::CgroupSock, "CONFIG_CGROUP_BPF"),
    ("cgroup socket address programs", ProgramType::CgroupSockAddr, "CONFIG_CGROUP_BPF"),
    ("sock_ops", ProgramType::SockOps, "CONFIG_CGROUP_BPF and CONFIG_INET"),
];

/// Map types.
const MAPS: &[(&str, MapType, &str)] = &[
    ("hash maps", MapType::Hash, "CONFIG_BPF_SYSCALL"),
    ("arrays", MapType::Array, "CONFIG_BPF_SYSCALL"),
    ("per-CPU arrays", MapType::PerCpuArray, "CONFIG_BPF_SYSCALL"),
    ("longest-prefix tries", MapType::LpmTrie, "CONFIG_BPF_SYSCALL"),
    ("arrays of maps", MapType::ArrayOfMaps, "CONFIG_BPF_SYSCALL"),
    ("program arrays", MapType::ProgramArray, "CONFIG_BPF_SYSCALL"),
    ("ring buffers", MapType::RingBuf, "CONFIG_BPF_SYSCALL"),
    ("socket maps", MapType::SockMap, "CONFIG_INET"),
    ("socket storage", MapType::SkStorage, "CONFIG_NET"),
];

/// Helpers, with the program type that calls them.
const HELPERS: &[(&str, ProgramType, BpfHelper, &str)] = &[
    ("tail calls in XDP", ProgramType::Xdp, BpfHelper::BPF_FUNC_tail_call, "CONFIG_BPF_SYSCALL"),
    ("ring buffers in XDP", ProgramType::Xdp, BpfHelper::BPF_FUNC_ringbuf_reserve, "CONFIG_BPF_SYSCALL"),
    ("socket look-up in XDP", ProgramType::Xdp, BpfHelper::BPF_FUNC_skc_lookup_tcp, "CONFIG_INET"),
    ("SYN cookies in XDP", ProgramType::Xdp, BpfHelper::BPF_FUNC_tcp_gen_syncookie, "CONFIG_SYN_COOKIES"),
    ("MTU checks in XDP", ProgramType::Xdp, BpfHelper::BPF_FUNC_check_mtu, "CONFIG_NET"),
    ("socket choice in sk_lookup", ProgramType::SkLookup, BpfHelper::BPF_FUNC_sk_assign, "CONFIG_INET"),
    (
        "cgroup ids in cgroup socket programs",
        ProgramType::CgroupSock,
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
        "CONFIG_CGROUP_BPF",
    ),
    (
        "cgroup ids in cgroup socket address programs",
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
        "CONFIG_CGROUP_BPF",
    ),
    (
        "socket cookies in cgroup socket address programs",
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_socket_cookie,
        "CONFIG_NET",
    ),
    ("namespace cookies in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie, "CONFIG_NET_NS"),
    ("socket storage in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get, "CONFIG_NET"),
];

/// Everything of the table that the running kernel lacks, one line each.
pub(crate) fn find_missing() -> Vec<Missing> {
    let programs = PROGRAMS.iter().map(|&(name, kind, option)| (name, judge(is_program_supported(kind)), option));
    let maps = MAPS.iter().map(|&(name, kind, option)| (name, judge(is_map_supported(kind)), option));
    let helpers = HELPERS
        .iter()
        .map(|&(name, program, helper, option)| (name, judge(is_helper_supported(program, helper)), option));
    programs
        .chain(maps)
        .chain(helpers)
        .filter_map(|(feature, found, option)| {
            Some(Missing { feature, found: found?, mend: format!("use a kernel built with {option}") })
        })
        .collect()
}

/// What is wrong with a feature; `None` when it is there.
fn judge<E: std::fmt::Display>(answer: Result<bool, E>) -> Option<String> {
    match answer {
        Ok(true) => None,
        Ok(false) => Some("the kernel does not know it".to_owned()),
        Err(error) => Some(format!("the kernel refuses it: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_is_not_there_is_said_as_it_was_found() {
        assert_eq!(judge(Ok::<_, String>(true)), None);
        assert_eq!(judge(Ok::<_, String>(false)), Some("the kernel does not know it".to_owned()));
        assert_eq!(judge(Err("EPERM")), Some("the kernel refuses it: EPERM".to_owned()));
    }

    #[test]
    fn every_line_has_a_name_of_its_own() {
        let names =
            PROGRAMS.iter().map(|row| row.0).chain(MAPS.iter().map(|row| row.0)).chain(HELPERS.iter().map(|row| row.0));
        let names: Vec<_> = names.collect();
        assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1), "{names:?}");
    }
}
