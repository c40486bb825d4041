//! Mounts bpffs where it is not mounted: BPF programs, maps and links live there while the agent is away.

use std::path::{Path, PathBuf};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Why there is no bpffs.
#[derive(Debug, thiserror::Error)]
pub(super) enum BpffsError {
    /// The folder cannot be made.
    #[error("cannot make the folder {path} for bpffs: {error}; make it, or choose another with --bpffs")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It cannot be mounted.
    #[error("cannot mount bpffs at {path}: {error}; run as root, or mount it: mount -t bpf bpf {path}")]
    Mount {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: nix::Error,
    },
}

/// Mounts bpffs at `path` unless a bpffs is there already.
pub(super) fn mount_if_missing(path: &Path) -> Result<(), BpffsError> {
    std::fs::create_dir_all(path).map_err(|error| BpffsError::Folder { path: path.into(), error })?;
    if statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    // Root's alone: whoever can open a pinned map can change what is admitted.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|error| BpffsError::Mount { path: path.into(), error })?;
    tracing::info!("mounted bpffs at {}", path.display());
    Ok(())
}
