//! `types`: generates the Gateway API types of `tidegate-gateway-api` from the CRDs of the pinned release.
//!
//! The CRDs come as a Go module, because Go's module proxy and checksum database make them the same everywhere and for
//! ever. The header of the result carries a hash of what it was made with and of what was made; `check` compares both.

mod layout;
mod names;
mod parts;
mod rewrite;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{
    modules, place, run,
    setup::{self, Need},
    versions::{self, GATEWAY_API, GATEWAY_API_SUM, KOPIUM},
};

/// The channel is a superset of the standard one.
const CRDS: &str = "config/crd/experimental";
/// The API version of every kind.
const VERSION: &str = "v1";
/// Where the result goes.
const GENERATED: &str = "agent/crates/gateway-api/src/generated";
/// The file there that declares the modules and carries the hashes of all others.
const INDEX: &str = "mod.rs";

/// Plural name of each kind and its module. What several share gets the docs of the first.
const KINDS: [(&str, &str); 10] = [
    ("gatewayclasses", "gateway_class"),
    ("gateways", "gateway"),
    ("listenersets", "listener_set"),
    ("httproutes", "http_route"),
    ("grpcroutes", "grpc_route"),
    ("tlsroutes", "tls_route"),
    ("tcproutes", "tcp_route"),
    ("udproutes", "udp_route"),
    ("backendtlspolicies", "backend_tls_policy"),
    ("referencegrants", "reference_grant"),
];

/// What kopium is told beside the file. No prelude: it would carry a lint exception without a reason.
const KOPIUM_ARGS: [&str; 9] = [
    "--api-version",
    VERSION,
    "--docs",
    "--hide-prelude",
    "--smart-derive-elision",
    "-D",
    "PartialEq",
    "-D",
    "Default",
];

/// Digits of hashes in the header: they tell versions apart, they guard nothing.
const HASH_DIGITS: usize = 16;

/// What `types` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Generates the types anew.
///
/// # Errors
/// The CRDs or kopium cannot be had, or the CRDs do not fit the tables of names and parts. The files are as before then.
pub(crate) fn run(_: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Download])?;
    let kopium = setup::kopium()?;
    let crds = modules::fetch(&versions::GATEWAY_API_MODULE)?.join(CRDS);
    let mut outputs = Vec::new();
    run::judge(&format!("generate {} kinds", KINDS.len()), || {
        for (plural, module) in KINDS {
            let file = crds.join(format!("gateway.networking.k8s.io_{plural}.yaml"));
            outputs.push((module, run::read(Command::new(&kopium).arg("-f").arg(&file).args(KOPIUM_ARGS))?));
        }
        Ok(())
    })?;
    let modules = rewrite::modules(&outputs, &names::table())?;
    let files = format(&layout::files(&modules, parts::PARTS)?)?;
    layout::judge_lengths(&files)?;
    let folder = place::root().join(GENERATED);
    place::remove_folder(&folder)?;
    write(&folder, &files)?;
    write(&folder, &BTreeMap::from([(INDEX.to_owned(), index(&files))]))?;
    run::note(&format!("{} modules in {} files of {GENERATED}", modules.len(), files.len() + 1));
    verify()
}

/// Checks that the committed types are those that [`run()`] would write, without running it.
///
/// # Errors
/// They were made with something else, or edited; a file is missing, or one is left that `types` does not write.
pub(crate) fn verify() -> Result<()> {
    judge(read(&place::root().join(GENERATED))?)
}

/// Checks that files, by their paths below [`GENERATED`], are those that `types` would write.
fn judge(mut files: BTreeMap<String, String>) -> Result<()> {
    let found = files.remove(INDEX).with_context(|| format!("{GENERATED} has no {INDEX}: run `cargo xtask types`"))?;
    let (have, want) = (files.keys().cloned().collect(), layout::paths(modules(), parts::PARTS));
    let missing: Vec<_> = want.difference(&have).cloned().collect();
    ensure!(missing.is_empty(), "{GENERATED} lacks {}: run `cargo xtask types`", missing.join(", "));
    let stale: Vec<_> = have.difference(&want).cloned().collect();
    ensure!(
        stale.is_empty(),
        "{GENERATED} has what `cargo xtask types` does not write, {}: run it, it removes that",
        stale.join(", ")
    );
    ensure!(
        found == index(&files),
        "{GENERATED} is not what `cargo xtask types` writes with Gateway API {GATEWAY_API} and kopium {KOPIUM}: run it"
    );
    Ok(())
}

/// All modules, sorted.
fn modules() -> BTreeSet<&'static str> {
    KINDS.iter().map(|(_, module)| *module).chain([rewrite::COMMON]).collect()
}

/// The file [`INDEX`] for the others.
fn index(files: &BTreeMap<String, String>) -> String {
    let mut made = Sha256::new();
    for (path, text) in files {
        made.update(format!("{path} {}\n{text}", text.len()));
    }
    let mut with = Sha256::new();
    with.update(format!("{GATEWAY_API} {GATEWAY_API_SUM} {KOPIUM} {KINDS:?} {KOPIUM_ARGS:?}"));
    for source in
        [include_str!("layout.rs"), include_str!("names.rs"), include_str!("parts.rs"), include_str!("rewrite.rs")]
    {
        with.update(source);
    }
    let (with, made) = (format!("{:x}", with.finalize()), format!("{:x}", made.finalize()));
    let (with, made) = (&with[..HASH_DIGITS], &made[..HASH_DIGITS]);
    let declarations: String = modules().iter().map(|module| format!("pub mod {module};\n")).collect();
    format!(
        "//! The kinds of Gateway API {GATEWAY_API}: one module a kind, and what several kinds share in [`common`].\n\
         //!\n\
         //! Of the experimental channel, a superset of the standard one. Generated by `cargo xtask types`: do not edit.\n\
         //! Made with kopium {KOPIUM}; inputs {with}, outputs {made}.\n\n\
         #![allow(missing_docs, reason = \"the CRDs describe fields, not the values of enums\")]\n\
         #![allow(rustdoc::all, clippy::all, reason = \"the text is the CRDs' own\")]\n\n\
         {declarations}",
    )
}

/// Puts files through rustfmt, in a folder of cargo's: nothing of the checkout changes before all is well.
fn format(files: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    let stage = place::target().join("xtask/types");
    place::remove_folder(&stage)?;
    write(&stage, files)?;
    let config = place::root().join("rustfmt.toml");
    let paths = files.keys().map(|path| stage.join(path));
    run::read(Command::new("rustfmt").args(["--edition", "2024", "--config-path"]).arg(config).args(paths))?;
    read(&stage)
}

/// Writes files below a folder, by their paths there.
fn write(folder: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    for (path, text) in files {
        let file = folder.join(path);
        let parent = file.parent().expect("it lies in the folder");
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// All files below a folder, by their paths there.
fn read(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for file in place::files_below(folder)? {
        let path = file.strip_prefix(folder).expect("it was found there").to_string_lossy().into_owned();
        texts.insert(path, fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> BTreeMap<String, String> {
        read(&place::root().join(GENERATED)).unwrap()
    }

    #[test]
    fn what_is_committed_is_what_types_writes() {
        judge(committed()).unwrap();
    }

    #[test]
    fn a_file_that_types_does_not_write_is_named() {
        let mut files = committed();
        files.insert("http_route/gone.rs".to_owned(), String::new());
        files.insert("http_route.rs".to_owned(), String::new());
        let error = judge(files).unwrap_err().to_string();
        assert!(error.contains("does not write, http_route.rs, http_route/gone.rs:"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut files = committed();
        files.remove("common/status.rs");
        let error = judge(files).unwrap_err().to_string();
        assert!(error.contains("lacks common/status.rs:"), "{error}");
    }

    #[test]
    fn an_edited_file_is_noticed_in_a_folder_too() {
        let mut files = committed();
        files.get_mut("common/status.rs").unwrap().push('\n');
        let error = judge(files).unwrap_err().to_string();
        assert!(error.contains("is not what `cargo xtask types` writes"), "{error}");
    }
}
