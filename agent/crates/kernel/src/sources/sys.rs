//! Tables as BPF arrays: made, mapped into the agent, and put where the programs find them.
#![expect(unsafe_code, reason = "bpf(2) takes untyped memory, and a mapping is memory of the kernel's")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use tidegate_abi::SourceLine;

use crate::sys::{bpf, to_fd};

/// Commands of bpf(2), from include/uapi/linux/bpf.h.
mod command {
    pub(super) const MAP_CREATE: libc::c_long = 0;
    pub(super) const MAP_LOOKUP_ELEM: libc::c_long = 1;
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_long = 3;
}

const MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_INNER_MAP`: inner maps may have different sizes (kernel 5.10).
const INNER_MAP: u32 = 1 << 12;

#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
struct ElemAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElemAttr {
    fn new(map: BorrowedFd<'_>, key: &u32, value: u64) -> Self {
        Self { map: map.as_raw_fd() as u32, pad: 0, key: std::ptr::from_ref(key) as u64, value, flags: 0 }
    }
}

/// Makes an array of so many lines, all zeroes. Its memory is the kernel's from here on, and counted for the agent's cgroup.
pub(super) fn create_table(domain: u32, lines: u32) -> io::Result<OwnedFd> {
    // What `bpftool map` shows.
    let mut map_name = [0; 16];
    let text = format!("sources_{domain}");
    map_name[..text.len()].copy_from_slice(text.as_bytes());
    let mut attr = CreateAttr {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: size_of::<SourceLine>() as u32,
        max_entries: lines,
        map_flags: MMAPABLE | INNER_MAP,
        inner_map_fd: 0,
        numa_node: 0,
        map_name,
    };
    bpf(command::MAP_CREATE, &mut attr).map(to_fd)
}

/// Puts a table into an element of the map of tables. The kernel waits a grace period before it returns.
pub(super) fn set_table(map: BorrowedFd<'_>, slot: u32, table: BorrowedFd<'_>) -> io::Result<()> {
    let value = table.as_raw_fd() as u32;
    bpf(command::MAP_UPDATE_ELEM, &mut ElemAttr::new(map, &slot, std::ptr::from_ref(&value) as u64)).map(drop)
}

/// Takes a table out; the kernel frees it when no program reads it.
pub(super) fn clear_table(map: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
    bpf(command::MAP_DELETE_ELEM, &mut ElemAttr::new(map, &slot, 0)).map(drop)
}

/// Whether an element has a table.
pub(super) fn has_table(map: BorrowedFd<'_>, slot: u32) -> io::Result<bool> {
    let mut id = 0u32;
    let mut attr = ElemAttr::new(map, &slot, std::ptr::from_mut(&mut id) as u64);
    match bpf(command::MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lines of a table, mapped.
pub(super) struct Lines {
    first: NonNull<SourceLine>,
    count: usize,
}

// SAFETY: the mapping belongs to this value alone and hangs on no thread.
unsafe impl Send for Lines {}
// SAFETY: shared it is only read, exclusive only written, as a slice of its own.
unsafe impl Sync for Lines {}

impl Lines {
    /// Maps a table of `count` lines.
    pub(super) fn map(table: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let len = count * size_of::<SourceLine>();
        // SAFETY: a new mapping at a place of the kernel's choice; `count` is the array's size, which the kernel checks.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                table.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast()) {
            Some(first) if at != libc::MAP_FAILED => Ok(Self { first, count }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRef<[SourceLine]> for Lines {
    fn as_ref(&self) -> &[SourceLine] {
        // SAFETY: the mapping has `count` lines for as long as this value lives, and nobody else writes them: programs only
        // read, and `as_mut` takes this value for itself.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl AsMut<[SourceLine]> for Lines {
    fn as_mut(&mut self) -> &mut [SourceLine] {
        // SAFETY: as above; the caller writes only tables that no program reads (see the module above).
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, which nothing borrows any more.
        unsafe {
            libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<SourceLine>());
        }
    }
}
