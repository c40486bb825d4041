//! An island: a network namespace with a thread that lives in it and runs a `current_thread` runtime.
//!
//! Every socket made by a task of that runtime belongs to the namespace. Mounts stay those of the process, other than
//! with `ip netns exec`, which puts a fresh `/sys` over the cgroup and BPF mounts that the agent needs.

use std::{
    fs::{self, File},
    future::Future,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use tokio::{runtime, sync::oneshot, task::JoinHandle};

use crate::process::run;

/// A namespace and its thread. Dropping it ends the thread; the namespace itself is deleted by [`crate::cleanup`].
#[derive(Debug)]
pub struct Island {
    name: String,
    namespace: File,
    handle: runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Island {
    /// Makes the namespace, with loopback up and without duplicate address detection (addresses must work at once).
    ///
    /// # Errors
    /// When `ip` refuses (not root) or the thread cannot enter the namespace.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let island = Self::join(name, &path_of(name))?;
        island.call(settle)?;
        island.ip("link set lo up\n")?;
        Ok(island)
    }

    /// Enters a namespace that somebody else has made, by the file that stands for it; nothing in it is changed. [`Island::ip`]
    /// and [`Island::pids`] are for namespaces of this machine's own.
    ///
    /// # Errors
    /// When the file is no namespace, or the thread cannot enter it.
    pub fn join(name: &str, path: &Path) -> anyhow::Result<Self> {
        let namespace = File::open(path).with_context(|| format!("open namespace {name}"))?;
        let inner = namespace.try_clone()?;
        let (send, receive) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let started = enter(&inner).and_then(|()| runtime::Builder::new_current_thread().enable_all().build());
            match started {
                Ok(runtime) => {
                    let _ = send.send(Ok(runtime.handle().clone()));
                    // An error means that the island was dropped without a word: the same.
                    let _ = runtime.block_on(stopped);
                    // Tasks still running are dropped: their sockets close with them.
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = send.send(Err(error));
                }
            }
        })?;
        let handle = receive.recv().context("the island's thread ended at once")?.context("enter the namespace")?;
        Ok(Self { name: name.to_owned(), namespace, handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Name of the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip -batch` in the namespace.
    ///
    /// # Errors
    /// When a line is refused, with `ip`'s words.
    pub fn ip(&self, batch: &str) -> anyhow::Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        let mut input = child.stdin.take().expect("stdin is piped");
        io::Write::write_all(&mut input, batch.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}\n{batch}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Runs a future on the island and waits for it.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        self.handle.spawn(async move {
            let _ = send.send(future.await);
        });
        receive.recv().expect("a task of the island panicked")
    }

    /// Starts a future on the island.
    pub fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(future)
    }

    /// Calls a blocking function on a thread of its own in the namespace.
    pub fn call<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.namespace).expect("the namespace was entered before");
                    function()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a process in the namespace: a child is born into the namespace of the thread that makes it.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn start(&self, command: &mut Command) -> io::Result<Child> {
        self.call(|| command.spawn())
    }

    /// Process ids that live in the namespace.
    pub fn pids(&self) -> Vec<u32> {
        pids_in(&self.name)
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where `ip netns` keeps a namespace.
pub(crate) fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Process ids in a namespace by its name; none when it does not exist.
pub(crate) fn pids_in(name: &str) -> Vec<u32> {
    Command::new("ip")
        .args(["netns", "pids", name])
        .output()
        .map(|output| {
            String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
        })
        .unwrap_or_default()
}

/// Longest that a connection to an address nobody answers for stays unanswered inside the lab before tests give up.
pub const SILENCE: Duration = Duration::from_millis(1500);

fn enter(namespace: &File) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Settings that must be in place before a link exists. `/proc/sys/net` shows the namespace of the thread that looks.
fn settle() -> io::Result<()> {
    for (name, value) in [
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value)?;
    }
    Ok(())
}
