//! Go modules as files: brought from the module proxy, without Go, and checked by the hash of Go's checksum database.
//!
//! The proxy keeps what it once gave, and the database keeps everyone from being given something else: a module is the
//! same everywhere and for ever. A folder with its final name is complete and was checked.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{place, run};

/// A Go module proxy, where `GOPROXY` names none.
const PROXY: &str = "https://proxy.golang.org";

/// A module of one version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module {
    /// Its path, e.g. `sigs.k8s.io/gateway-api`: in lower case, so that the proxy's escapes are not needed.
    pub(crate) path: &'static str,
    /// Its version, with the `v`.
    pub(crate) version: &'static str,
    /// The checksum database's hash (`h1`, over names and contents of files), in hexadecimal.
    pub(crate) sum: &'static str,
}

/// Brings a module into the cache; returns its folder.
///
/// # Errors
/// It cannot be downloaded, or is not what its hash says.
pub(crate) fn fetch(module: &Module) -> Result<PathBuf> {
    let Module { path, version, sum } = module;
    let downloads = place::cache()?.join("downloads");
    let name = path.rsplit('/').next().expect("a split has a last part");
    let folder = downloads.join(format!("{name}-{version}"));
    let files = folder.join(format!("{path}@{version}"));
    if folder.exists() {
        return Ok(files);
    }
    let (zip, partial) = (suffixed(&folder, "zip"), suffixed(&folder, "partial"));
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    place::remove_folder(&partial)?;
    let proxy = env::var("GOPROXY").unwrap_or_default();
    let proxy = proxy.split([',', '|']).find(|proxy| proxy.starts_with("http")).unwrap_or(PROXY);
    let url = format!("{}/{path}/@v/{version}.zip", proxy.trim_end_matches('/'));
    let mut curl = Command::new("curl");
    curl.args(["-fsSL", "--retry", "3", "-o"]).arg(&zip).arg(url);
    run::step(&format!("download {name} {version}"), &mut curl)?;
    run::read(Command::new("unzip").args(["-qo"]).arg(&zip).arg("-d").arg(&partial))?;
    let found = hash(&partial)?;
    if found != *sum {
        bail!("{path} {version} has the hash {found}, not {sum}: the proxy gave something else than it gave before");
    }
    fs::remove_file(&zip)?;
    fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", partial.display()))?;
    Ok(files)
}

/// A path with one more ending, whatever dots are in its name.
fn suffixed(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Go's `h1` hash of a module's files, in hexadecimal: the hash of a list of names with their hashes, sorted by name.
fn hash(folder: &Path) -> Result<String> {
    let files = place::files_below(folder)?;
    let mut names: Vec<_> =
        files.iter().filter_map(|file| Some((file.strip_prefix(folder).ok()?.to_str()?, file))).collect();
    names.sort_unstable();
    let mut list = Sha256::new();
    for (name, file) in names {
        list.update(format!("{:x}  {name}\n", Sha256::digest(fs::read(file)?)));
    }
    Ok(format!("{:x}", list.finalize()))
}
