//! A hand in the pinned maps, to make states that the kernel tier never makes, sockets as only an attacker uses them, and signals.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes untyped memory; sockets of kinds and in states that std does not know; signals to one thread"
)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tidegate_abi::Plain;
use tidegate_kernel::KernelConfig;

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `attr` is the part of `union bpf_attr` that the command reads.
fn bpf<const WORDS: usize>(command: libc::c_long, attr: &mut [u64; WORDS]) -> libc::c_long {
    // SAFETY: the kernel reads and writes at most these bytes and what they point at, which the callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    assert!(result >= 0, "bpf({command}): {}", io::Error::last_os_error());
    result
}

fn open_map(config: &KernelConfig, map: &str) -> OwnedFd {
    let folder = config.bpffs.join("tidegate").join(&config.instance);
    open_pin(&folder.join(format!("maps-v{}", tidegate_abi::ABI_VERSION)).join(map))
}

/// Removes an element of a pinned map, behind the kernel tier's back.
pub(crate) fn delete_element(config: &KernelConfig, map: &str, key: &[u8]) {
    let map = open_map(config, map);
    bpf(BPF_MAP_DELETE_ELEM, &mut [map.as_raw_fd() as u64, key.as_ptr() as u64, 0, 0]);
}

/// Puts an element into a pinned map whose keys are numbers.
pub(crate) fn put_element<V: Plain>(config: &KernelConfig, map: &str, key: u32, value: &V) {
    let map = open_map(config, map);
    let (key, value) = (&raw const key as u64, std::ptr::from_ref(value) as u64);
    bpf(BPF_MAP_UPDATE_ELEM, &mut [map.as_raw_fd() as u64, key, value, 0]);
}

/// Puts elements into a pinned map: keys one behind the other, each with the same value.
pub(crate) fn fill_map(config: &KernelConfig, map: &str, keys: &[u8], value: &[u8], count: u32) {
    let map = open_map(config, map);
    let values = value.repeat(count as usize);
    // In and out positions (none), keys, values, count and descriptor, flags of elements and of the call.
    let (keys, values, place) = (keys.as_ptr() as u64, values.as_ptr() as u64, (map.as_raw_fd() as u64) << 32);
    bpf(BPF_MAP_UPDATE_BATCH, &mut [0, 0, keys, values, u64::from(count) | place, 0, 0]);
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> OwnedFd {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no zero byte in a path");
    to_fd(bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0]))
}

fn to_fd(result: libc::c_long) -> OwnedFd {
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

/// Runs the program that a pinned XDP link runs now on a frame, whoever has loaded it; returns the action.
pub(crate) fn run_attached(link: &Path, frame: &[u8], ifindex: u32) -> u32 {
    let link = open_pin(link);
    std::iter::repeat_with(|| try_run_attached(&link, frame, ifindex))
        .flatten()
        .next()
        .expect("it goes on until there is one")
}

fn try_run_attached(link: &OwnedFd, frame: &[u8], ifindex: u32) -> Option<u32> {
    // struct bpf_link_info: type, id, prog_id, …
    let mut info = [0u32; 16];
    let words = size_of_val(&info) as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut [link.as_raw_fd() as u64 | words << 32, info.as_mut_ptr() as u64]);
    let mut by_id = [u64::from(info[2]), 0];
    // SAFETY: the kernel reads the words.
    let program =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_GET_FD_BY_ID, by_id.as_mut_ptr(), size_of_val(&by_id)) };
    if program < 0 {
        // Another one took its place meanwhile, and it is gone.
        return None;
    }
    let program = to_fd(program);
    // struct xdp_md with data_end and ingress_ifindex.
    let mut context = [0u32, frame.len() as u32, 0, ifindex, 0, 0];
    let mut attr = [0u64; 10];
    attr[0] = program.as_raw_fd() as u64;
    attr[1] = frame.len() as u64;
    attr[2] = frame.as_ptr() as u64;
    attr[4] = 1;
    attr[5] = size_of_val(&context) as u64;
    attr[6] = context.as_mut_ptr() as u64;
    bpf(BPF_PROG_TEST_RUN, &mut attr);
    Some((attr[0] >> 32) as u32)
}

/// Opens a socket of any kind.
pub(crate) fn open_socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a frame as it is through an interface of the calling thread's namespace.
pub(crate) fn send_frame(ifindex: u32, frame: &[u8]) {
    let socket = open_socket(libc::AF_PACKET, libc::SOCK_RAW, 0).expect("a packet socket");
    // SAFETY: every bit pattern is an address.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    let length = size_of_val(&to) as libc::socklen_t;
    // SAFETY: the kernel reads as many bytes as frame and address have.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), length)
    };
    assert!(sent == frame.len() as isize, "sending a frame: {}", io::Error::last_os_error());
}

/// Takes a connected or listening socket back to where it was after it was made (connect(2) with `AF_UNSPEC`).
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads as many bytes as the address has.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &nowhere, size_of_val(&nowhere) as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs code in a copy of this process and returns its process id. What the code returns is the exit code; a panic is 101.
///
/// The copy has this thread only, and whatever the others hold locked stays locked in it: the code must not print through
/// `std` nor use what other threads may be initializing.
pub(crate) fn fork(code: impl FnOnce() -> i32) -> nix::unistd::Pid {
    // SAFETY: see above; glibc makes its allocator usable in the copy.
    match unsafe { nix::unistd::fork() }.expect("a copy of this process") {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            // Whoever ends the test's thread ends its copies.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("a signal");
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code)).unwrap_or(101);
            // SAFETY: ends the copy at once, without the exit handlers of the process that it was copied from.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Writes to standard error from a copy of this process.
pub(crate) fn complain(text: &str) {
    // SAFETY: the bytes live through the call.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// From now on this process stops for its tracer (`PTRACE_EVENT_SECCOMP`) before each of these system calls, and before
/// bpf(2) with one of these commands; all others cost what they always do.
pub(crate) fn stop_at(calls: &[libc::c_long], commands: &[u32]) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Offsets in struct seccomp_data of the number and of the lower half of the first argument.
    const NUMBER: u32 = 0;
    const ARGUMENT: u32 = 16;
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let stop_if = |value| {
        let skip = libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: value };
        [skip, step(RETURN, libc::SECCOMP_RET_TRACE)]
    };
    let mut code = vec![step(LOAD, NUMBER)];
    code.extend(calls.iter().flat_map(|call| stop_if(*call as u32)));
    code.push(libc::sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: libc::SYS_bpf as u32 });
    code.push(step(RETURN, libc::SECCOMP_RET_ALLOW));
    code.push(step(LOAD, ARGUMENT));
    code.extend(commands.iter().flat_map(|command| stop_if(*command)));
    code.push(step(RETURN, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: the kernel copies the filter.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert!(result == 0, "seccomp: {}", io::Error::last_os_error());
}

/// Number and first argument of the system call that a stopped process is about to make.
pub(crate) fn next_call(process: nix::unistd::Pid) -> (libc::c_long, u64) {
    // struct ptrace_syscall_info (include/uapi/linux/ptrace.h, kernel 5.3): four words before number and arguments.
    const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    let mut info = [0u64; 11];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    let written = unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_INFO,
            process.as_raw(),
            size_of_val(&info),
            (&raw mut info).cast::<libc::c_void>(),
        )
    };
    assert!(written > 0, "PTRACE_GET_SYSCALL_INFO: {}", io::Error::last_os_error());
    (info[3] as libc::c_long, info[4])
}

/// Segments that the peer of a connection did not acknowledge in time and that were sent again, the first SYN among them.
pub(crate) fn retransmits(socket: BorrowedFd<'_>) -> u32 {
    // SAFETY: every bit pattern is a tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    let at = (&raw mut info).cast();
    // SAFETY: the kernel writes at most `length` bytes of `info`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, &mut length) };
    assert!(result == 0, "TCP_INFO: {}", io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// Loads an XDP program of somebody else's, which passes everything.
pub(crate) fn load_neighbour(name: &str) -> OwnedFd {
    const XDP: u64 = 6;
    // r0 = XDP_PASS; exit
    let code: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let mut attr = [0u64; 9];
    attr[0] = XDP | (code.len() as u64) << 32;
    attr[1] = code.as_ptr() as u64;
    attr[2] = c"GPL".as_ptr() as u64;
    let mut text = [0u8; 16];
    text[..name.len()].copy_from_slice(name.as_bytes());
    for (word, bytes) in attr[6..8].iter_mut().zip(text.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    }
    to_fd(bpf(BPF_PROG_LOAD, &mut attr))
}

/// Attaches a program to a NIC in the driver; it stays as long as the descriptor.
pub(crate) fn attach_neighbour(program: BorrowedFd<'_>, ifindex: u32) -> OwnedFd {
    const XDP: u64 = 37;
    const DRIVER_MODE: u64 = 1 << 2;
    let program = program.as_raw_fd() as u64;
    to_fd(bpf(BPF_LINK_CREATE, &mut [program | u64::from(ifindex) << 32, XDP | DRIVER_MODE << 32]))
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no zero byte in a path");
    bpf(BPF_OBJ_PIN, &mut [path.as_ptr() as u64, object.as_raw_fd() as u64]);
}

/// Ends a pinned link while others hold it, as `bpftool link detach` does.
pub(crate) fn detach_link(pin: &Path) {
    let link = open_pin(pin);
    bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd() as u64]);
}

/// Id of the program or map behind a descriptor: the second word of its info.
pub(crate) fn id_of(object: BorrowedFd<'_>) -> u32 {
    let mut info = [0u32; 2];
    let words = size_of_val(&info) as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut [object.as_raw_fd() as u64 | words << 32, info.as_mut_ptr() as u64]);
    info[1]
}

/// Runs code on a thread that gets a signal every 300 µs for so long.
pub(crate) fn under_signals<R>(time: Duration, code: impl FnOnce() -> R) -> R {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: a handler that does nothing may run anywhere; nobody else uses the signal.
    unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as libc::sighandler_t) };
    // SAFETY: it only says who calls.
    let target = unsafe { libc::pthread_self() };
    thread::scope(|scope| {
        scope.spawn(move || {
            let end = Instant::now() + time;
            while Instant::now() < end {
                // SAFETY: the thread ends after this one, which its scope waits for.
                unsafe { libc::pthread_kill(target, libc::SIGUSR2) };
                thread::sleep(Duration::from_micros(300));
            }
        });
        code()
    })
}
