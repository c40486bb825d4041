//! The level `fuzz`: libFuzzer on every target of `tests/fuzz`, for a short time each, from its committed corpus.
//!
//! The instrumentation is made of stable compiler flags (those that cargo-fuzz passes, without a sanitizer: the targets
//! hold no unsafe code), so neither a nightly nor cargo-fuzz is needed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::Tally;
use crate::{
    place, run,
    setup::{self, Need},
};

/// The workspace of the targets.
const FOLDER: &str = "tests/fuzz";

/// How long each target runs unless told, in seconds: finds what a change broke in a well-covered parser, and fits CI.
pub(super) const SECONDS: u32 = 20;

/// Coverage for libFuzzer: edges as 8-bit counters, their places, and operands of comparisons.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
    "--check-cfg=cfg(fuzzing)",
];

/// A target that needs more memory than this, in MiB, has found an input that makes ours grow without bound.
const MEMORY_MIB: u32 = 1024;
/// Seconds for one input: the targets take microseconds.
const INPUT_SECONDS: u32 = 10;

/// Builds the targets and runs each; those whose name contains `only` where that is given.
///
/// # Errors
/// They do not build, or there is no target to run.
pub(super) fn run(only: Option<&str>, seconds: u32) -> Result<Tally> {
    setup::ensure(&[Need::Build, Need::Fuzz])?;
    let folder = place::root().join(FOLDER);
    let targets = targets(&folder, only)?;
    // With a target named, cargo leaves build scripts and macros without instrumentation.
    let triple = host_triple()?;
    let target_dir = place::target_of(FOLDER).join("instrumented");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--target", &triple]).current_dir(&folder);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env("CARGO_TARGET_DIR", &target_dir);
    run::step("build the fuzz targets", &mut cargo)?;
    let results = place::target().join("fuzz");
    let mut tally = Tally::default();
    for target in targets {
        let program = target_dir.join(&triple).join("release").join(&target);
        let (found, crashes) = (results.join("corpus").join(&target), results.join("crashes"));
        for folder in [&found, &crashes] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut command = Command::new(program);
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .args(["-print_final_stats=1", "-verbosity=1"])
            .arg(format!("-artifact_prefix={}/{target}-", crashes.display()))
            .arg(&found)
            .arg(folder.join("corpus").join(&target))
            .current_dir(&folder);
        let attempt = run::attempt(&format!("fuzz: {target}"), &mut command)?;
        match attempt.failure {
            None => tally.passed += 1,
            Some(failure) => {
                tally.failed += 1;
                eprintln!("\n{failure}\nThe input is in {}\n", crashes.display());
            }
        }
    }
    Ok(tally)
}

/// Names of the targets; each must have a corpus, or a run begins with nothing.
fn targets(folder: &Path, only: Option<&str>) -> Result<Vec<String>> {
    let files = fs::read_dir(folder.join("targets")).context("tests/fuzz has no targets")?;
    let mut names: Vec<_> = files
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| only.is_none_or(|only| name.contains(only)))
        .collect();
    names.sort();
    for name in &names {
        let corpus = folder.join("corpus").join(name);
        if !fs::read_dir(&corpus).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is empty: put a few real inputs there", corpus.display());
        }
    }
    if names.is_empty() {
        bail!("no fuzz target is named so");
    }
    Ok(names)
}

fn host_triple() -> Result<String> {
    let said = run::read(Command::new("rustc").arg("-vV").current_dir(place::root()))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
