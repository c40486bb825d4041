//! Taking a lab away whole, whoever ends it: its owner, a panic, Ctrl-C, or the next lab after a `kill -9`.
//!
//! All that is needed is the lab's name: namespaces, cgroups and folders are found by it. Only processes inside the
//! lab's own namespaces are ended.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context;
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};

use crate::{
    island::{path_of, pids_in},
    process::{end, signal, start_time},
};

/// Folder of all labs: one folder each, with what must be known to take it away.
pub const ROOT: &str = "/run/tidegate-lab";

/// Namespaces of a lab by the ending of their names.
pub(crate) const NAMESPACES: [&str; 5] = ["inet", "dc", "gw", "back", "pod"];

/// Time for processes to end after SIGTERM: workers that drain need a little.
const GRACE: Duration = Duration::from_secs(3);

static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Writes down that this process owns the lab, takes away what dead owners left, and arms Ctrl-C.
pub(crate) fn register(name: &str) -> anyhow::Result<PathBuf> {
    arm();
    fs::create_dir_all(ROOT).with_context(|| format!("make {ROOT} (root is needed)"))?;
    let lock = File::create(Path::new(ROOT).join(".lock"))?;
    lock.lock()?;
    sweep();
    let folder = Path::new(ROOT).join(name);
    fs::create_dir_all(&folder)?;
    let own = std::process::id();
    fs::write(folder.join("owner"), format!("{own} {}", start_time(own).unwrap_or(0)))?;
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    Ok(folder)
}

/// Takes a lab away by its name. What is already gone is no error.
pub fn remove(name: &str) {
    let pids: Vec<u32> = NAMESPACES.iter().flat_map(|part| pids_in(&format!("{name}-{part}"))).collect();
    for &pid in &pids {
        signal(pid, Signal::SIGTERM);
    }
    for &pid in &pids {
        end(pid, GRACE);
    }
    // What was started meanwhile, e.g. by an init that was still alive.
    for pid in NAMESPACES.iter().flat_map(|part| pids_in(&format!("{name}-{part}"))) {
        end(pid, Duration::ZERO);
    }
    for part in NAMESPACES {
        let namespace = format!("{name}-{part}");
        if path_of(&namespace).exists() {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
    let folder = Path::new(ROOT).join(name);
    let _ = umount2(&folder.join("bpf"), MntFlags::MNT_DETACH);
    remove_cgroups(Path::new("/sys/fs/cgroup"), name, 0);
    let _ = fs::remove_dir_all(&folder);
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|live| live != name);
}

fn folders() -> Vec<String> {
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Takes away labs whose owner is dead.
fn sweep() {
    for name in folders() {
        let folder = Path::new(ROOT).join(&name);
        let owner = fs::read_to_string(folder.join("owner")).unwrap_or_default();
        let mut fields = owner.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(start))) = (fields.next(), fields.next()) else { continue };
        let is_dead = u32::try_from(pid).ok().and_then(start_time) != Some(start);
        if is_dead {
            remove(&name);
        }
    }
}

/// Removes empty cgroups below folders named after the lab, in whichever hierarchy the agent made them.
fn remove_cgroups(folder: &Path, name: &str, depth: usize) {
    // mount point / hierarchy / groups that this process was started in / tidegate / instance
    const DEPTH: usize = 6;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy() == name {
            remove_tree(&path);
        } else if depth < DEPTH {
            remove_cgroups(&path, name, depth + 1);
        }
    }
}

fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // A cgroup's files go with it; rmdir is the only way.
    let _ = fs::remove_dir(folder);
}

/// On SIGINT, SIGTERM and SIGHUP takes all labs of this process away and ends it.
fn arm() {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        thread::spawn(|| {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
                let mut streams: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
                futures_util::future::select_all(streams.iter_mut().map(|stream| Box::pin(stream.recv()))).await;
            });
            eprintln!("interrupted: cleaning up");
            let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for name in live {
                remove(&name);
            }
            std::process::exit(130);
        });
    });
}
