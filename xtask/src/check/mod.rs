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
    ebpf, place, run,
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

/// Runs all checks.
///
/// # Errors
/// One of them failed; each has been shown.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    let mut failed = Vec::new();
    let mut note = |title: &'static str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("\nerror: {error:#}\n");
            failed.push(title);
        }
    };
    note("format", cargo("format", &["fmt", "--all", "--check"], &[]));
    for (title, judge) in JUDGES {
        note(title, run::judge(title, judge));
    }
    note("BPF programs", ebpf::build(false).map(drop));
    note("layouts", run::judge("the BPF object has the contract's layouts", abi::compare));
    note(
        "lints",
        cargo("lint", &["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[]),
    );
    let docs = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    note("docs", cargo("document", &docs, &[("RUSTDOCFLAGS", "--deny warnings")]));
    note("dependencies", licences::cargo_deny(args.deny));
    if !failed.is_empty() {
        bail!("{} of the checks failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}

fn cargo(title: &str, args: &[&str], envs: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(args).envs(envs.iter().copied()).current_dir(place::root());
    run::step(title, &mut command)
}
