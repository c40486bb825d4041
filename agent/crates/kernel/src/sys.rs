//! The system calls that neither aya nor nix has in the form needed: links with their flags and facts, test runs of
//! sk_lookup, grace periods. What tables of sources need stands beside them.
#![expect(unsafe_code, reason = "bpf(2) takes untyped memory; aya::Pod is an unsafe trait")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixDatagram},
    },
    path::Path,
    thread,
    time::Duration,
};

use tidegate_abi::Plain;

/// A type of the contract as aya's maps take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct Wire<T: Plain>(pub(crate) T);

// SAFETY: `Plain` promises what `Pod` asks for, and `Wire` adds nothing.
unsafe impl<T: Plain> aya::Pod for Wire<T> {}

/// A value from bytes that the kernel has written, or `None` when there are too few.
pub(crate) fn read_plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, the read has no alignment, and every bit pattern is a `T`.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Commands of bpf(2), from include/uapi/linux/bpf.h.
mod command {
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_long = 3;
    pub(super) const OBJ_PIN: libc::c_long = 6;
    pub(super) const OBJ_GET: libc::c_long = 7;
    pub(super) const MAP_LOOKUP: libc::c_long = 1;
    pub(super) const MAP_NEXT_KEY: libc::c_long = 4;
    pub(super) const PROG_TEST_RUN: libc::c_long = 10;
    pub(super) const PROG_GET_FD_BY_ID: libc::c_long = 13;
    pub(super) const MAP_GET_FD_BY_ID: libc::c_long = 14;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(super) const LINK_CREATE: libc::c_long = 28;
    pub(super) const LINK_UPDATE: libc::c_long = 29;
    pub(super) const LINK_DETACH: libc::c_long = 34;
}

/// Attach types of bpf(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    SockCreate = 2,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    SkLookup = 36,
    Xdp = 37,
}

/// `XDP_FLAGS_SKB_MODE`.
pub(crate) const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
pub(crate) const XDP_NATIVE: u32 = 1 << 2;

/// What the kernel knows of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Program that it runs.
    pub(crate) program: u32,
    /// Interface index, id of the cgroup or inode of the network namespace; 0 when that is gone.
    pub(crate) target: u64,
}

const LINK_CGROUP: u32 = 3;

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

#[repr(C)]
struct MapAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// One system call. `T` is the part of `union bpf_attr` that the command reads; the kernel takes what lies beyond it as zero.
pub(crate) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of `attr` and what its pointers name, which the callers
    // keep alive and of the stated lengths.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The descriptor that a command has returned.
pub(crate) fn to_fd(result: libc::c_long) -> OwnedFd {
    // SAFETY: a successful command of this kind returns a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn to_c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Removes an element of a map. `key` is as long as the map's keys.
pub(crate) fn delete_element(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr { map: raw(map), pad: 0, key: key.as_ptr() as u64 };
    bpf(command::MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// A random key for a hash; never zero, which says that there is none.
pub(crate) fn random_seed() -> io::Result<[u64; 2]> {
    let mut seed = [0u64; 2];
    // SAFETY: the kernel writes at most as many bytes as `seed` has; so few are never interrupted.
    let filled = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), size_of_val(&seed), 0) };
    seed[0] |= 1;
    match usize::try_from(filled) {
        Ok(filled) if filled == size_of_val(&seed) => Ok(seed),
        Ok(_) => Err(io::Error::other("too few random bytes")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Cookie of the network namespace of the calling thread (Linux 5.14).
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    let at = (&raw mut cookie).cast();
    // SAFETY: the kernel writes at most `len` bytes, which `cookie` has.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, at, &mut len) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Of include/uapi/asm-generic/socket.h, as all architectures of this project have it.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = to_c_path(path)?;
    bpf(command::OBJ_GET, &mut ObjAttr { pathname: path.as_ptr() as u64, fd: 0, flags: 0 }).map(to_fd)
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = to_c_path(path)?;
    bpf(command::OBJ_PIN, &mut ObjAttr { pathname: path.as_ptr() as u64, fd: raw(fd), flags: 0 }).map(drop)
}

/// Puts a program into the first place of an array of programs.
pub(crate) fn set_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, raw(program));
    let (key, value) = (std::ptr::from_ref(&key) as u64, std::ptr::from_ref(&value) as u64);
    bpf(command::MAP_UPDATE_ELEM, &mut MapAttr { map: raw(array), pad: 0, key, value, flags: 0 }).map(drop)
}

/// Attaches a program to an interface index or to a descriptor's object.
pub(crate) fn create_link(program: BorrowedFd<'_>, target: u32, kind: AttachType, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr { program: raw(program), target, attach_type: kind as u32, flags };
    bpf(command::LINK_CREATE, &mut attr).map(to_fd)
}

/// Puts another program in the place of a link's: no packet sees neither or both.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    bpf(command::LINK_UPDATE, &mut attr).map(drop)
}

/// Ends a link at once. Removing the last pin and descriptor does so too, but some milliseconds later.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(command::LINK_DETACH, &mut LinkDetachAttr { link: raw(link) }).map(drop)
}

/// Facts of a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // struct bpf_link_info: type, id, prog_id, padding to eight bytes, then a union by type of which the first member is
    // what the link hangs on. Larger than any kernel's, so none truncates it.
    let mut info = [0u32; 64];
    let mut attr = InfoAttr { fd: raw(link), info_len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    let target = if info[0] == LINK_CGROUP { u64::from(info[4]) | u64::from(info[5]) << 32 } else { info[4].into() };
    Ok(LinkInfo { program: info[2], target })
}

/// Most maps of one program that [`program_maps`] tells: several times what an object of this project has.
const MAX_PROGRAM_MAPS: usize = 64;

/// Ids of the maps that a program uses, sorted.
///
/// aya's `ProgramInfo::map_ids` opens the program again by its id, and the kernel wants `CAP_SYS_ADMIN` for that.
pub(crate) fn program_maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // struct bpf_prog_info up to `map_ids`, as words: nr_map_ids is word 13, map_ids (64 bits) words 14 and 15.
    let mut maps = [0u32; MAX_PROGRAM_MAPS];
    let at = maps.as_mut_ptr() as u64;
    let mut info = [0u32; 16];
    info[13] = MAX_PROGRAM_MAPS as u32;
    (info[14], info[15]) = (at as u32, (at >> 32) as u32);
    let mut attr = InfoAttr { fd: raw(program), info_len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    let count = info[13] as usize;
    let mut maps = maps.get(..count).ok_or_else(|| io::Error::other(format!("{count} maps in one program")))?.to_vec();
    maps.sort_unstable();
    Ok(maps)
}

/// What the kernel knows of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramFacts {
    pub(crate) id: u32,
    /// Hash of its instructions.
    pub(crate) tag: u64,
    /// When it was loaded, in nanoseconds of CLOCK_BOOTTIME.
    pub(crate) loaded_ns: u64,
    /// Its name, cut at 15 bytes.
    pub(crate) name: String,
}

/// Facts of a program; an error for other objects.
pub(crate) fn program_facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    // struct bpf_prog_info as words: type, id, tag (2), jited and xlated length (2), jited and xlated instructions (4),
    // load_time (2), created_by_uid, nr_map_ids, map_ids (2), name (4). The head of struct bpf_map_info and bpf_link_info
    // is another, but a link to /proc tells the kinds apart.
    check_kind(program, "bpf-prog")?;
    let mut info = [0u32; 20];
    let mut attr = InfoAttr { fd: raw(program), info_len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    let wide = |at: usize| u64::from(info[at]) | u64::from(info[at + 1]) << 32;
    Ok(ProgramFacts { id: info[1], tag: wide(2), loaded_ns: wide(10), name: read_name(&info[16..20]) })
}

/// What the kernel knows of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapFacts {
    pub(crate) id: u32,
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) capacity: u32,
}

/// Facts of a map; an error for other objects.
pub(crate) fn map_facts(map: BorrowedFd<'_>) -> io::Result<MapFacts> {
    check_kind(map, "bpf-map")?;
    // struct bpf_map_info as words: type, id, key_size, value_size, max_entries.
    let mut info = [0u32; 5];
    let mut attr = InfoAttr { fd: raw(map), info_len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(MapFacts { id: info[1], kind: info[0], key_size: info[2], capacity: info[4] })
}

/// Makes sure that a descriptor is of a kind of BPF object: the kernel fills any of their infos for any of them.
fn check_kind(object: BorrowedFd<'_>, kind: &str) -> io::Result<()> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    if link.to_string_lossy().contains(kind) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn read_name(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

/// The id of a link.
pub(crate) fn link_id(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0u32; 64];
    let mut attr = InfoAttr { fd: raw(link), info_len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info[1])
}

#[repr(C)]
struct ByIdAttr {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// Opens a program by its id (CAP_SYS_ADMIN).
pub(crate) fn open_program(id: u32) -> io::Result<OwnedFd> {
    bpf(command::PROG_GET_FD_BY_ID, &mut ByIdAttr { id, next_id: 0, flags: 0 }).map(to_fd)
}

/// Opens a map by its id (CAP_SYS_ADMIN).
pub(crate) fn open_map(id: u32) -> io::Result<OwnedFd> {
    bpf(command::MAP_GET_FD_BY_ID, &mut ByIdAttr { id, next_id: 0, flags: 0 }).map(to_fd)
}

/// Reads the key behind `key` (the first one when it is `None`) into `next`; false at the end. Both are of the map's key size.
pub(crate) fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, |key| key.as_ptr() as u64);
    let mut attr = MapAttr { map: raw(map), pad: 0, key, value: next.as_mut_ptr() as u64, flags: 0 };
    match bpf(command::MAP_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Id of the map that a map of maps holds under a key; `None` when there is none.
pub(crate) fn inner_map(map: BorrowedFd<'_>, key: &[u8]) -> Option<u32> {
    let mut id = 0u32;
    let at = (&raw mut id) as u64;
    let mut attr = MapAttr { map: raw(map), pad: 0, key: key.as_ptr() as u64, value: at, flags: 0 };
    bpf(command::MAP_LOOKUP, &mut attr).ok().map(|_| id)
}

/// Result of a test run.
pub(crate) struct TestRunResult {
    pub(crate) returned: u32,
    /// Bytes of the packet afterwards.
    pub(crate) len: usize,
    /// Mean of one run.
    pub(crate) duration: Duration,
}

/// Runs a program on a packet (may be empty for sk_lookup) and a context. What it makes of the packet goes to `made`; what does
/// not fit there is left out.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    context: &mut [u8],
    made: &mut [u8],
    repeat: u32,
) -> io::Result<TestRunResult> {
    let mut attr = TestRunAttr {
        program: raw(program),
        data_size_in: packet.len() as u32,
        data_in: if packet.is_empty() { 0 } else { packet.as_ptr() as u64 },
        data_size_out: made.len() as u32,
        data_out: if made.is_empty() { 0 } else { made.as_mut_ptr() as u64 },
        repeat,
        ctx_size_in: context.len() as u32,
        ctx_in: context.as_ptr() as u64,
        ctx_size_out: context.len() as u32,
        ctx_out: context.as_mut_ptr() as u64,
        ..TestRunAttr::default()
    };
    bpf(command::PROG_TEST_RUN, &mut attr)?;
    let (returned, len) = (attr.retval, attr.data_size_out as usize);
    Ok(TestRunResult { returned, len, duration: Duration::from_nanos(attr.duration.into()) })
}

/// Longer than any program runs; only for kernels without the system call (nohz_full).
const GRACE_FALLBACK: Duration = Duration::from_millis(100);

/// Waits until no BPF program runs that was running at the call: programs run in RCU read sections, and the global command
/// of membarrier(2) is `synchronize_rcu`.
pub(crate) fn wait_grace_period() {
    // SAFETY: the call takes no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        thread::sleep(GRACE_FALLBACK);
    }
}
