//! `crds`: writes the CustomResourceDefinitions of group `tidegate.dev` to `deploy/crds`, where users apply them from.
//!
//! They are made by an example of `tidegate-gateway-api` from its types, so that neither this program nor the agent
//! carries what writes them. `check` makes them again and compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    place, run,
    setup::{self, Need},
};

/// Where the result goes.
const COMMITTED: &str = "deploy/crds";
/// What makes them.
const MAKER: [&str; 6] = ["run", "--locked", "--package=tidegate-gateway-api", "--example", "crds", "--"];
/// Start of the first line of each file that this verb owns.
const HEADER: &str = "# Written by `cargo xtask crds`";

/// What `crds` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail when the files are not those that would be written.
    #[arg(long)]
    check: bool,
}

/// Writes the definitions anew, or checks them.
///
/// # Errors
/// They cannot be made or written; with `--check`, they are not up to date.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    if args.check {
        return verify();
    }
    let made = make()?;
    let folder = place::root().join(COMMITTED);
    for name in read(&folder)?.keys().filter(|name| !made.contains_key(*name)) {
        fs::remove_file(folder.join(name)).with_context(|| format!("cannot remove {COMMITTED}/{name}"))?;
    }
    for (name, text) in &made {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {COMMITTED}/{name}"))?;
    }
    run::note(&format!("{} definitions in {COMMITTED}", made.len()));
    Ok(())
}

/// Checks that the committed definitions are those that [`run()`] would write.
///
/// # Errors
/// Names the files that differ, are missing, or are left over.
pub(crate) fn verify() -> Result<()> {
    judge(&read(&place::root().join(COMMITTED))?, &make()?)
}

fn judge(committed: &BTreeMap<String, String>, made: &BTreeMap<String, String>) -> Result<()> {
    let names: BTreeSet<_> = committed.keys().chain(made.keys()).collect();
    let stale: Vec<_> = names.into_iter().filter(|name| committed.get(*name) != made.get(*name)).collect();
    ensure!(stale.is_empty(), "{COMMITTED} is not what the types say, see {stale:?}: run `cargo xtask crds`");
    Ok(())
}

fn make() -> Result<BTreeMap<String, String>> {
    let folder = place::target().join("xtask/crds");
    // What an earlier run left would pass for what this one made.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    run::step("make CRDs", Command::new("cargo").args(MAKER).arg(&folder).current_dir(place::root()))?;
    read(&folder)
}

/// The files of a folder that this verb owns, by name.
fn read(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {name}"))?;
            if text.starts_with(HEADER) {
                files.insert(name, text);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_missing_and_left_over_definitions_are_named() {
        let files = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        let made = files(&[("a.yaml", "1"), ("b.yaml", "2")]);
        assert!(judge(&made, &made).is_ok());
        for committed in [
            files(&[("a.yaml", "1"), ("b.yaml", "3")]),
            files(&[("a.yaml", "1")]),
            files(&[("a.yaml", "1"), ("b.yaml", "2"), ("c.yaml", "2")]),
        ] {
            let error = judge(&committed, &made).unwrap_err().to_string();
            assert!(error.contains("cargo xtask crds") && !error.contains("a.yaml"), "{error}");
        }
    }
}
