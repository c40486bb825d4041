//! What can go wrong with the kernel tier as a whole. Single entries that fail are [`crate::ApplyFailure`]s instead.

use std::{io, path::PathBuf};

/// Why an operation on the kernel tier failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The BPF object does not fit this program: it was built from other sources.
    #[error("BPF object has no {kind} {name:?}; build it again with `cargo xtask ebpf`")]
    Object {
        /// Map or program.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The object's programs read and write other keys and values than this program does.
    #[error("BPF object is of ABI version {}, this program speaks version {agent}: build both from one tree with `cargo xtask build`",
        object.map_or("none".to_owned(), |version| version.to_string()))]
    Version {
        /// What the object says.
        object: Option<u32>,
        /// What this program speaks.
        agent: u32,
    },
    /// The object could not be read or its maps not created.
    #[error("BPF object cannot be loaded (needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON): {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel refused a program; the verifier's last words are in the source.
    #[error("kernel refuses program {program}: {source}")]
    Program {
        /// The program.
        program: &'static str,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be read or written.
    #[error("BPF map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        source: Box<aya::maps::MapError>,
    },
    /// A pin could not be made, read or removed.
    #[error("BPF file system, {path}: {source}")]
    Pin {
        /// The pin or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is pinned may have been changed by somebody else.
    #[error("{path} {what}, and whoever made it could change what is admitted: remove it, then start again")]
    Foreign {
        /// Folder or pin.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {target}: {source}{}", mend(source))]
    Attach {
        /// The program.
        program: &'static str,
        /// Interface, cgroup or network namespace.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// Another XDP program is on the NIC.
    #[error(
        "{target} has another XDP program, {program}, which is not replaced: frames are not judged there. Remove it (ip link \
         set dev NIC xdp off, or bpftool link detach); the place is taken when it is gone"
    )]
    Occupied {
        /// Interface.
        target: String,
        /// Its name and id.
        program: String,
    },
    /// A link could not be moved to another program.
    #[error("cannot update link {link}: {source}")]
    Update {
        /// Name of its pin.
        link: String,
        /// Why.
        source: io::Error,
    },
    /// A program could not be run on a packet.
    #[error("cannot run {program} on the packet: {source} (a packet needs 14 bytes and an interface that exists)")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file that the kernel gives could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Domain numbers go from 1 to 255.
    #[error("domain number {0} is not between 1 and {max}", max = tidegate_abi::map::MAX_DOMAINS - 1)]
    Domain(u32),
    /// The samples have one reader.
    #[error("samples are being read already")]
    SamplesTaken,
}

fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (somebody else's program is attached there)",
        Some(libc::ENODEV) => " (the interface is gone)",
        Some(libc::EPERM) => " (needs CAP_BPF and CAP_NET_ADMIN)",
        _ => "",
    }
}
