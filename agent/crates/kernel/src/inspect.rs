//! What instances have left in the kernel, read from their pins alone: works whether an agent runs or not, changes nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};

use crate::{
    attach::LinkName,
    interfaces::{describe_program, find_xdp, interface_name},
    pins::INNER,
    sys,
};

/// What one instance has in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceState {
    /// Its name.
    pub instance: String,
    /// Where its pins lie.
    pub folder: PathBuf,
    /// Where programs hang.
    pub links: Vec<LinkState>,
    /// Pinned programs.
    pub programs: Vec<ProgramState>,
    /// Pinned maps.
    pub maps: Vec<MapState>,
}

/// Where a program hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Name of its pin.
    pub pin: String,
    /// Its id.
    pub id: u32,
    /// Id of the program that it runs.
    pub program: u32,
    /// Interface, network namespace or cgroup; `None` when that is gone and the link runs nothing.
    pub target: Option<String>,
}

/// A pinned program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramState {
    /// Name of its pin.
    pub pin: String,
    /// Its id.
    pub id: u32,
    /// Hash of its instructions, as bpftool shows it.
    pub tag: String,
    /// When it was loaded.
    pub loaded: SystemTime,
    /// Bytes of kernel memory.
    pub memory: u64,
}

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapState {
    /// Name of its pin, below its folder (`maps-v2/DOMAINS`).
    pub pin: String,
    /// Its id.
    pub id: u32,
    /// Elements in it; `None` where every place is always there, or cannot be listed.
    pub entries: Option<u64>,
    /// Elements that it can hold.
    pub capacity: u32,
    /// Bytes of kernel memory, with those of the maps that it holds.
    pub memory: u64,
}

/// Reads what every instance has in the kernel; none where there is no folder of pins.
///
/// # Errors
/// When the folder, a pin or an object cannot be read (needs root).
pub fn inspect(bpffs: &Path) -> io::Result<Vec<InstanceState>> {
    let mut instances = Vec::new();
    for name in list(&bpffs.join("tidegate"))? {
        let folder = bpffs.join("tidegate").join(&name);
        let mut state =
            InstanceState { instance: name, links: Vec::new(), programs: Vec::new(), maps: Vec::new(), folder };
        let cgroups = find_cgroups();
        for pin in list(&state.folder.join("links"))? {
            state.links.extend(present(inspect_link(&state.folder.join("links").join(&pin), pin, &cgroups))?);
        }
        for pin in list(&state.folder.join("programs"))? {
            state.programs.extend(present(inspect_program(&state.folder.join("programs").join(&pin), pin))?);
        }
        for maps in list(&state.folder)?.into_iter().filter(|folder| folder.starts_with("maps-")) {
            // A map of maps counts what it holds.
            for pin in list(&state.folder.join(&maps))?.into_iter().filter(|pin| !pin.contains(INNER)) {
                let path = state.folder.join(&maps).join(&pin);
                state.maps.extend(present(inspect_map(&path, format!("{maps}/{pin}")))?);
            }
        }
        instances.push(state);
    }
    Ok(instances)
}

/// What runs on an interface in XDP, in words; `None` when nothing does.
///
/// # Errors
/// When the interface is gone.
pub fn describe_xdp(bpffs: &Path, ifindex: u32) -> io::Result<Option<String>> {
    Ok(find_xdp(ifindex)?.map(|id| describe_program(bpffs, id)))
}

/// What is there; `None` for a pin that an agent or somebody else has taken away since it was listed.
fn present<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Names in a folder, sorted; nothing when there is no such folder.
fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn inspect_link(path: &Path, pin: String, cgroups: &BTreeMap<u64, PathBuf>) -> io::Result<LinkState> {
    let link = sys::open_pin(path)?;
    let info = sys::link_info(link.as_fd())?;
    let target = (info.target != 0).then(|| match LinkName::parse(&pin) {
        Some(LinkName::Xdp { ifindex, mode }) => format!("{} ({mode})", interface_name(ifindex)),
        Some(LinkName::Steer) => format!("network namespace {}", info.target),
        _ => match cgroups.get(&info.target) {
            Some(path) => format!("cgroup {}", path.display()),
            None => format!("cgroup {} (outside of this mount)", info.target),
        },
    });
    Ok(LinkState { pin, id: sys::link_id(link.as_fd())?, program: info.program, target })
}

fn inspect_program(path: &Path, pin: String) -> io::Result<ProgramState> {
    let program = sys::open_pin(path)?;
    let facts = sys::program_facts(program.as_fd())?;
    let tag = facts.tag.to_ne_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let memory = read_memory(program.as_fd())?;
    Ok(ProgramState { pin, id: facts.id, tag, loaded: since_boot(facts.loaded_ns), memory })
}

fn inspect_map(path: &Path, pin: String) -> io::Result<MapState> {
    /// Kinds of `enum bpf_map_type` whose elements come and go and can be listed.
    const LISTED: [u32; 3] = [1, 9, 11];
    const ARRAY_OF_MAPS: u32 = 12;
    const HASH_OF_MAPS: u32 = 13;
    let map = sys::open_pin(path)?;
    let facts = sys::map_facts(map.as_fd())?;
    let mut memory = read_memory(map.as_fd())?;
    let mut entries = None;
    if LISTED.contains(&facts.kind) {
        entries = Some(keys(map.as_fd(), &facts)?.count() as u64);
    } else if [ARRAY_OF_MAPS, HASH_OF_MAPS].contains(&facts.kind) {
        let inner: Vec<u32> = keys(map.as_fd(), &facts)?.filter_map(|key| sys::inner_map(map.as_fd(), &key)).collect();
        entries = Some(inner.len() as u64);
        // One inner map may stand in several places.
        for id in inner.iter().collect::<std::collections::BTreeSet<_>>() {
            // Gone since it was listed, or no right to open it by its id.
            memory += sys::open_map(*id).and_then(|inner| read_memory(inner.as_fd())).unwrap_or(0);
        }
    }
    Ok(MapState { pin, id: facts.id, entries, capacity: facts.capacity, memory })
}

/// The keys of a map that may change meanwhile: at most as many as it can hold, since a key that goes makes the kernel begin anew.
fn keys<'a>(map: BorrowedFd<'a>, facts: &sys::MapFacts) -> io::Result<impl Iterator<Item = Vec<u8>> + 'a> {
    let mut next = vec![0; facts.key_size as usize];
    let mut last: Option<Vec<u8>> = None;
    // A map that cannot be read says so at the first key.
    sys::next_key(map, None, &mut next)?;
    let keys = std::iter::from_fn(move || {
        let is_more = sys::next_key(map, last.as_deref(), &mut next).unwrap_or(false);
        last = is_more.then(|| next.clone());
        last.clone()
    });
    Ok(keys.take(facts.capacity as usize))
}

/// Memory of a BPF object, which the kernel tells in `fdinfo` alone.
fn read_memory(object: BorrowedFd<'_>) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0))
}

fn since_boot(nanoseconds: u64) -> SystemTime {
    let now = SystemTime::now();
    let Ok(uptime) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return now };
    now.checked_sub(Duration::from(uptime).saturating_sub(Duration::from_nanos(nanoseconds))).unwrap_or(now)
}

/// Every cgroup of version 2 by its id.
fn find_cgroups() -> BTreeMap<u64, PathBuf> {
    fn walk(folder: PathBuf, found: &mut BTreeMap<u64, PathBuf>) {
        let Ok(metadata) = fs::metadata(&folder) else { return };
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(entry.path(), found);
            }
        }
        found.insert(metadata.ino(), folder);
    }
    let mut found = BTreeMap::new();
    if let Some(root) = crate::probe::cgroup2() {
        walk(root, &mut found);
    }
    found
}
