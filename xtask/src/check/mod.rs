//! `check`: what CI runs before the tests, everything that needs no running agent.
//!
//! All checks run, also after one failed, so that one run shows everything that is to be mended.

mod abi;
mod btf;
mod crates;
mod files;
mod licences;

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    crds, ebpf, place, run,
    setup::{self, Need},
    types,
};

/// What `check` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build cargo-deny when it is not installed (some minutes), instead of checking licences alone.
    #[arg(long)]
    deny: bool,
}

/// A check that runs no command worth a log.
type Judge = fn() -> Result<()>;

/// The checks of files and of cargo's metadata: quick, so they come first.
const JUDGES: [(&str, Judge); 6] = [
    ("no file is too long", files::sizes),
    ("every lint exception has its reason", files::exceptions),
    ("shell scripts parse", files::shell),
    ("crates keep the one-way rule", crates::one_way),
    ("licences are allowed", licences::allowed),
    ("generated types are up to date", types::verify),
];

/// Docs are for who works on the code, so they include what is private and may link to it.
const DOC_FLAGS: &str = "--deny warnings --allow rustdoc::private-intra-doc-links";

/// Runs all checks.
///
/// # Errors
/// One of them failed; each has been shown.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Fuzz])?;
    let mut failed = Vec::new();
    let mut note = |title: &'static str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("\nerror: {error:#}\n");
            failed.push(title);
        }
    };
    for workspace in crates::WORKSPACES {
        // --all follows path dependencies, which are another workspace's to judge.
        let scope: &[&str] = if workspace.is_empty() { &["--all"] } else { &[] };
        let format = [&["fmt", "--check"], scope, &["--", "--color=never"]].concat();
        note("format", cargo("format", workspace, &format, &[]));
    }
    for (title, judge) in JUDGES {
        note(title, run::judge(title, judge));
    }
    note("BPF programs", ebpf::build(false).map(drop));
    note("layouts", run::judge("the BPF object has the contract's layouts", abi::compare));
    for workspace in crates::WORKSPACES {
        let mut lint = vec!["clippy", "--workspace", "--all-targets"];
        lint.extend(crates::lock(workspace));
        lint.extend(["--", "--deny", "warnings"]);
        note("lints", cargo("lint", workspace, &lint, &[]));
    }
    note("CRDs", crds::verify());
    let docs = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    note("docs", cargo("document", "", &docs, &[("RUSTDOCFLAGS", DOC_FLAGS)]));
    note("dependencies", licences::cargo_deny(args.deny));
    if !failed.is_empty() {
        bail!("{} of the checks failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}

/// Runs cargo in a workspace; each has its own folder of results, or they would be rebuilt for each other.
fn cargo(title: &str, workspace: &str, args: &[&str], envs: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(args).envs(envs.iter().copied()).current_dir(place::workspace(workspace));
    if workspace.is_empty() {
        return run::step(title, &mut command);
    }
    command.env("CARGO_TARGET_DIR", place::target_of(workspace));
    run::step(&format!("{title} {workspace}"), &mut command)
}
