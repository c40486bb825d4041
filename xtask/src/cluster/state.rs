//! What is known of the machine's one cluster from one command to the next: where it lies, and who holds its namespaces.
//!
//! The record is written before anything is made that it names, so that what a crash leaves can be found and removed.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::processes::Process;
use crate::place;

/// The record; gone after `down`, and after a restart of the machine with what it tells of.
const RECORD: &str = "/run/tidegate-cluster.json";
/// What `up` and `down` hold, so that one of them works at a time. The empty file stays.
const LOCK: &str = "/run/lock/tidegate-cluster";

/// The cluster of this machine.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Folder of everything that the cluster writes but its logs.
    pub(super) run: PathBuf,
    /// Folder of its logs.
    pub(super) logs: PathBuf,
    /// Its control groups, one in each hierarchy.
    pub(super) groups: Vec<PathBuf>,
    /// Controllers to give back, see [`groups::borrowed`](super::groups::borrowed).
    pub(super) borrowed: Vec<String>,
    /// Folders to remove, see [`namespaces::missing_folders`](super::namespaces::missing_folders).
    pub(super) folders: Vec<PathBuf>,
    /// The process that keeps its namespaces.
    pub(super) holder: Option<Process>,
    /// The programs that it was started with.
    pub(super) fingerprint: String,
    /// Folders of the Kubernetes programs and of containerd.
    pub(super) kube: PathBuf,
    pub(super) containerd: PathBuf,
    /// The checkout that it was started from, for people.
    pub(super) checkout: PathBuf,
}

impl State {
    /// The record, where there is one.
    pub(super) fn read() -> Result<Option<Self>> {
        let text = match fs::read_to_string(RECORD) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("cannot read {RECORD}"))?,
        };
        Self::parse(&text).map(Some).with_context(|| {
            format!("{RECORD} is not readable: end what still runs of the cluster by hand and remove the file")
        })
    }

    pub(super) fn write(&self) -> Result<()> {
        // A reader sees the old record or the new one.
        let partial = format!("{RECORD}.partial");
        place::write(Path::new(&partial), self.to_json().to_string())?;
        fs::rename(&partial, RECORD).with_context(|| format!("cannot write {RECORD}"))
    }

    pub(super) fn remove() -> Result<()> {
        fs::remove_file(RECORD).with_context(|| format!("cannot remove {RECORD}"))
    }

    fn to_json(&self) -> Value {
        json!({
            "run": self.run,
            "logs": self.logs,
            "groups": self.groups,
            "borrowed": self.borrowed,
            "folders": self.folders,
            "holder": self.holder.map(|holder| holder.to_string()),
            "fingerprint": self.fingerprint,
            "kube": self.kube,
            "containerd": self.containerd,
            "checkout": self.checkout,
        })
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let text = |field: &str| value[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
        let list = |field: &str| {
            let texts = value[field].as_array().into_iter().flatten().map(|text| text.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().with_context(|| format!("{field} is no list of texts"))
        };
        Ok(Self {
            run: text("run")?.into(),
            logs: text("logs")?.into(),
            groups: list("groups")?.into_iter().map(PathBuf::from).collect(),
            borrowed: list("borrowed")?,
            folders: list("folders")?.into_iter().map(PathBuf::from).collect(),
            holder: value["holder"].as_str().and_then(Process::parse),
            fingerprint: text("fingerprint")?,
            kube: text("kube")?.into(),
            containerd: text("containerd")?.into(),
            checkout: text("checkout")?.into(),
        })
    }
}

/// Held while the cluster is changed.
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock.
///
/// # Errors
/// Another command has it.
pub(super) fn lock() -> Result<Lock> {
    let path = Path::new(LOCK);
    place::write(path, "")?;
    let file = File::open(path).with_context(|| format!("cannot open {LOCK}"))?;
    if file.try_lock().is_err() {
        bail!("another `cargo xtask cluster up` or `down` is at work on this machine: wait for it");
    }
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let state = State {
            run: "/r".into(),
            logs: "/l".into(),
            groups: vec!["/sys/fs/cgroup/cpu/x".into(), "/sys/fs/cgroup/memory/y/x".into()],
            borrowed: vec!["hugetlb".to_owned()],
            folders: vec!["/var/lib/cni".into()],
            holder: Process::parse("12 345"),
            fingerprint: "kube-1 etcd-2".to_owned(),
            kube: "/k".into(),
            containerd: "/c".into(),
            checkout: "/checkout".into(),
        };
        let back = State::parse(&state.to_json().to_string()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{state:?}"));
        assert!(back.holder.is_some());
    }

    #[test]
    fn a_broken_record_is_refused() {
        assert!(State::parse("{}").is_err());
        assert!(State::parse("").is_err());
    }
}
