//! Where objects come from. A source yields batches of events and says what it could not read; it knows nothing of
//! domains, and nobody after it knows of files or clusters.

pub mod directory;
mod inbox;
pub mod kube;
pub mod objects;
mod store;
pub mod tree;
pub mod yaml;

use std::{fmt, net::IpAddr, path::PathBuf, time::Instant};

use serde::{Deserialize, Serialize};
use tidegate_gateway_api::Event;
use tidegate_model::ObjectName;
use tokio::sync::mpsc;

pub use directory::DirectoryError;
pub use store::{ReadError, Store};

/// A source that is ready to start.
pub enum Source {
    /// Files below a folder.
    Directory(PathBuf),
    /// A cluster.
    Kube(Box<kube::Setup>),
}

impl Source {
    /// Sends what the source has and what changes in it, until nobody receives any more.
    ///
    /// # Errors
    /// Only at the start, and only of a folder: a cluster that cannot be reached is waited for.
    pub async fn run(self, out: mpsc::Sender<Batch>) -> Result<(), DirectoryError> {
        match self {
            Self::Directory(folder) => directory::watch(folder, out).await,
            Self::Kube(setup) => {
                kube::watch(*setup, out).await;
                Ok(())
            }
        }
    }
}

/// Changes that were seen together.
#[derive(Debug)]
pub struct Batch {
    /// What changed.
    pub events: Vec<Event>,
    /// When the source saw the first of the changes.
    pub changed: Instant,
    /// State of the whole source after them.
    pub status: SourceStatus,
    /// What the source says of this node and of the cluster, when that has changed; a folder says nothing.
    pub facts: Option<Box<kube::Facts>>,
    /// Addresses that the status of Gateways shows, where they have changed; a folder holds no status.
    pub addresses: Vec<(ObjectName, Vec<IpAddr>)>,
}

/// What a source has and what it could not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Files that are read.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// What is wrong, by file and line, or by object.
    pub problems: Vec<Problem>,
}

/// Something wrong in a file. What could be read of it is in force, and so is the last good state of the rest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file, as it was found; `kubernetes` for an object of a cluster.
    pub file: PathBuf,
    /// Line from 1; 0 when the file as a whole is meant.
    pub line: u64,
    /// Column from 1; 0 when unknown.
    pub column: u64,
    /// How bad it is.
    pub severity: Severity,
    /// The object, when the text got as far as naming it.
    pub object: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is not in force.
    Error,
    /// Everything that is understood is in force; something was not understood.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column.max(1))?;
        }
        write!(f, ": {}: ", self.severity)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests;
