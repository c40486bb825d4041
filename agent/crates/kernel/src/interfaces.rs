//! Interfaces: their names, and which XDP program of whom runs there (rtnetlink(7); bpf links do not tell of others).

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use nix::{
    net::if_::if_indextoname,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::sys;

/// Name of an interface, or its number when it is gone.
pub(crate) fn interface_name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        Ok(name) => format!("interface {}", name.to_string_lossy()),
        Err(_) => format!("interface {ifindex}"),
    }
}

/// The id of the XDP program on an interface, whoever has put it there; `None` when there is none.
///
/// # Errors
/// When the interface is gone or the kernel does not answer.
pub(crate) fn find_xdp(ifindex: u32) -> io::Result<Option<u32>> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &link_question(ifindex), MsgFlags::empty())?;
    // One interface's attributes are a few KiB; what is cut off is statistics of offload features.
    let mut answer = vec![0; 32 * 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read_xdp(&answer[..length])
}

const HEADER: usize = 16;
const IFINFO: usize = 16;

/// `struct nlmsghdr` and `struct ifinfomsg` of an RTM_GETLINK for one interface.
fn link_question(ifindex: u32) -> [u8; HEADER + IFINFO] {
    let mut message = [0; HEADER + IFINFO];
    message[0..4].copy_from_slice(&((HEADER + IFINFO) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
    message
}

/// Reads IFLA_XDP (include/uapi/linux/if_link.h) of an answer.
fn read_xdp(answer: &[u8]) -> io::Result<Option<u32>> {
    const IFLA_XDP_PROG_ID: u16 = 4;
    const IFLA_XDP_DRV_PROG_ID: u16 = 5;
    const IFLA_XDP_SKB_PROG_ID: u16 = 6;
    let word =
        |at: usize| answer.get(at..at + 4).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")));
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes(bytes.try_into().expect("two bytes")));
    if kind == Some(libc::NLMSG_ERROR as u16) {
        let error = word(HEADER).unwrap_or(0) as i32;
        return Err(io::Error::from_raw_os_error(-error));
    }
    if kind != Some(libc::RTM_NEWLINK) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let attributes = answer.get(HEADER + IFINFO..).unwrap_or_default();
    let xdp = Attributes(attributes).find(|(kind, _)| *kind == libc::IFLA_XDP).map_or(&[][..], |(_, value)| value);
    let id = Attributes(xdp).find_map(|(kind, value)| {
        let is_id = matches!(kind, IFLA_XDP_PROG_ID | IFLA_XDP_DRV_PROG_ID | IFLA_XDP_SKB_PROG_ID);
        is_id.then(|| value.get(..4)).flatten().map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
    });
    Ok(id.filter(|id| *id != 0))
}

/// Attributes of netlink: length and kind of two bytes each, the value, filled up to four bytes.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const NESTED: u16 = 1 << 15;
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// What to call a program of somebody else: the instance whose pin it is, its name as far as it can be found out, its id.
pub(crate) fn describe_program(bpffs: &Path, id: u32) -> String {
    if let Some(instance) = find_instance(bpffs, id) {
        return format!("that of Tidegate's instance {instance:?} (program id {id})");
    }
    // Opening by id takes CAP_SYS_ADMIN, which the agent does not have.
    let by_id = sys::open_program(id).and_then(|program| sys::program_facts(program.as_fd())).ok();
    let facts = by_id.or_else(|| find_pinned(bpffs, id)).map(|facts| facts.name);
    match facts.or_else(|| find_listed(&fs::read_to_string(bpffs.join("progs.debug")).unwrap_or_default(), id)) {
        Some(name) => format!("{name:?} (program id {id})"),
        None => format!("program id {id} (its name: bpftool prog show id {id})"),
    }
}

/// The instance that has pinned a program.
fn find_instance(bpffs: &Path, id: u32) -> Option<String> {
    let instances = fs::read_dir(bpffs.join("tidegate")).ok()?;
    instances.flatten().find_map(|instance| {
        let facts = open_facts(&instance.path().join("programs/admit"))?;
        (facts.id == id).then(|| instance.file_name().to_string_lossy().into_owned())
    })
}

/// Facts of a program that is pinned anywhere near the root of the BPF file system.
fn find_pinned(bpffs: &Path, id: u32) -> Option<sys::ProgramFacts> {
    /// Folders are nested one or two deep by the tools that pin programs.
    const DEPTH: usize = 3;
    fn walk(folder: PathBuf, depth: usize, id: u32) -> Option<sys::ProgramFacts> {
        fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
            let kind = entry.file_type().ok()?;
            if kind.is_dir() && depth > 0 {
                return walk(entry.path(), depth - 1, id);
            }
            kind.is_file().then(|| open_facts(&entry.path())).flatten().filter(|facts| facts.id == id)
        })
    }
    walk(bpffs.to_owned(), DEPTH, id)
}

/// Name of a program in the list that the kernel itself gives in a BPF file system (CONFIG_BPF_PRELOAD): id and name in front.
fn find_listed(list: &str, id: u32) -> Option<String> {
    list.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse() == Ok(id)).then(|| words.next().map(str::to_owned))?
    })
}

fn open_facts(pin: &Path) -> Option<sys::ProgramFacts> {
    let object = sys::open_pin(pin).ok()?;
    sys::program_facts(object.as_fd()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + IFINFO];
        bytes[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn the_program_of_an_interface_is_read_in_every_mode() {
        let name = attribute(libc::IFLA_IFNAME, b"wan0\0");
        let none = attribute(libc::IFLA_XDP, &attribute(2, &[0]));
        assert_eq!(read_xdp(&answer(&[name.clone(), none].concat())).expect("an answer"), None);
        for kind in [4, 5, 6] {
            let inner = [attribute(2, &[1]), attribute(kind, &77u32.to_ne_bytes())].concat();
            let xdp = attribute(libc::IFLA_XDP | 1 << 15, &inner);
            assert_eq!(read_xdp(&answer(&[name.clone(), xdp].concat())).expect("an answer"), Some(77));
        }
    }

    #[test]
    fn a_program_is_found_in_the_kernels_own_list() {
        let list = "  id name             attached\n   1 dump_bpf_map\n  77 neighbour        x\n";
        assert_eq!(find_listed(list, 77), Some("neighbour".to_owned()));
        assert_eq!(find_listed(list, 7), None);
    }

    #[test]
    fn errors_and_broken_answers_end_reading() {
        let mut error = vec![0; HEADER];
        error[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        error.extend((-libc::ENODEV).to_ne_bytes());
        assert_eq!(read_xdp(&error).expect_err("an error").raw_os_error(), Some(libc::ENODEV));
        assert!(read_xdp(&[]).is_err());
        let whole = answer(&attribute(libc::IFLA_XDP, &attribute(4, &77u32.to_ne_bytes())));
        for length in HEADER + IFINFO..whole.len() {
            assert_eq!(read_xdp(&whole[..length]).expect("no error"), None, "cut at {length}");
        }
    }
}
