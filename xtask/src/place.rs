//! Where things lie: the checkout, cargo's target folder, the cache outside of both.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// Root of the checkout: the one that cargo runs this program for, which a target folder shared between checkouts may
/// have been built for another of.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().expect("xtask/ lies in the root").to_path_buf()
}

/// Cargo's target folder of the main workspace.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").or_else(|| env::var_os("CARGO_BUILD_TARGET_DIR")) {
        Some(dir) => std::path::absolute(dir).expect("CARGO_TARGET_DIR is not empty: cargo refuses that"),
        None => root().join("target"),
    }
}

/// The commit of the checkout, `-dirty` when it has changes beside; `None` outside of git.
pub(crate) fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--exclude=*", "--abbrev=10", "--dirty"]).current_dir(root());
    let said = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(said.stdout).ok()?.trim().to_owned())
}

/// Folder of a workspace of the checkout; the main one has the name "".
pub(crate) fn workspace(name: &str) -> PathBuf {
    if name.is_empty() { root() } else { root().join(name) }
}

/// Cargo's target folder of another workspace of the checkout, built for the host.
pub(crate) fn target_of(workspace: &str) -> PathBuf {
    target().join("workspaces").join(workspace)
}

/// The BPF object, where the build script of `tidegate-kernel` looks for it.
pub(crate) fn bpf_object() -> PathBuf {
    target().join("bpf/tidegate.o")
}

/// What survives `cargo clean` and a new checkout: tools, downloads.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("TIDEGATE_CACHE") {
        return std::path::absolute(dir).context("TIDEGATE_CACHE names no folder");
    }
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("set TIDEGATE_CACHE: there is no HOME to cache below")?)
            .join(".cache"),
    };
    Ok(base.join("tidegate"))
}

/// An executable by name: in `PATH`, or in the folders that only root's `PATH` has.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// All files below a folder.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// Removes a folder that may not be there.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file, with the folders that it lies in.
pub(crate) fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}
