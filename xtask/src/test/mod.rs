//! `test`: the levels of tests, each with what it needs, and a summary that decides the exit code.
//!
//! A level that cannot run because the machine lacks something has failed: nothing is skipped in silence.

mod fuzz;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    place, run,
    setup::{self, Need},
};

/// What `test` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Levels to run; all when none is named.
    #[arg(value_enum)]
    levels: Vec<Level>,
    /// Run only tests whose name contains this (levels unit, packets and host; for fuzz: targets).
    #[arg(long)]
    only: Option<String>,
    /// How long each fuzz target runs, in seconds.
    #[arg(long, default_value_t = fuzz::SECONDS)]
    fuzz_seconds: u32,
}

/// A level of tests, in the order in which they run: the quick ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// Tests inside the crates: pure, no network, no rights.
    Unit,
    /// The BPF programs on packets, in the kernel (root).
    Packets,
    /// Real agents and workers in network namespaces (root).
    Host,
    /// Parsers and codecs on random input.
    Fuzz,
}

impl Level {
    const ALL: [Self; 4] = [Self::Unit, Self::Packets, Self::Host, Self::Fuzz];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packets => "packets",
            Self::Host => "host",
            Self::Fuzz => "fuzz",
        }
    }
}

/// What a level came to.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Package with the tests that need a machine.
const TESTS: &str = "tidegate-tests";

/// Runs the levels and prints what came of each.
///
/// # Errors
/// A level failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let levels = if args.levels.is_empty() { Level::ALL.to_vec() } else { args.levels.clone() };
    let mut rows = Vec::new();
    for level in levels {
        let begun = Instant::now();
        let outcome = match level {
            Level::Unit => unit(args),
            Level::Packets => machine(args, "packets", &[Need::Network]),
            Level::Host => machine(args, "host", &[Need::Network, Need::Peers]),
            Level::Fuzz => fuzz::run(args.only.as_deref(), args.fuzz_seconds),
        };
        rows.push((level, outcome, begun.elapsed()));
    }
    let all_good = summarize(rows);
    if !all_good {
        bail!("tests failed");
    }
    Ok(())
}

fn unit(args: &Args) -> Result<Tally> {
    setup::ensure(&[Need::Build])?;
    crate::ebpf::build(false)?;
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--workspace", "--no-fail-fast", "--exclude", TESTS]);
    cargo_test("test: unit", command, args)
}

/// A level of the package that needs root and the agent's binary.
fn machine(args: &Args, level: &str, needs: &[Need]) -> Result<Tally> {
    setup::ensure(needs)?;
    if run::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("the level {level} loads BPF programs and makes network namespaces: run it as root");
    }
    let agent = build::agent(Profile::Dev)?;
    let mut command = Command::new("cargo");
    command
        .args(["test", "--locked", "--package", TESTS, "--test", level, "--no-fail-fast"])
        .env("TIDEGATE_BIN", agent);
    cargo_test(&format!("test: {level}"), command, args)
}

fn cargo_test(title: &str, mut command: Command, args: &Args) -> Result<Tally> {
    if let Some(only) = &args.only {
        command.args(["--", only]);
    }
    let attempt = run::attempt(title, command.current_dir(place::root()))?;
    let mut tally = tally(&attempt.log)?;
    if let Some(failure) = attempt.failure {
        eprintln!("\n{failure}\n");
        // A crate that does not compile, or a test that took the whole process with it, has no line of its own.
        tally.failed = tally.failed.max(1);
    } else if tally.passed == 0 && args.only.is_none() {
        bail!("{title} ran no test (see {})", attempt.log.display());
    }
    Ok(tally)
}

/// Adds up libtest's "test result:" lines.
fn tally(log: &Path) -> Result<Tally> {
    let mut tally = Tally::default();
    for line in fs::read_to_string(log)?.lines().filter_map(|line| line.strip_prefix("test result:")) {
        let words: Vec<_> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let count = || pair[0].parse::<usize>().unwrap_or(0);
            match pair[1] {
                "passed" => tally.passed += count(),
                "failed" => tally.failed += count(),
                "ignored" => tally.ignored += count(),
                _ => {}
            }
        }
    }
    Ok(tally)
}

/// Prints a row for each level; says whether all are good.
fn summarize(rows: Vec<(Level, Result<Tally>, Duration)>) -> bool {
    let mut lines =
        vec![format!("{:<8} {:>6} {:>6} {:>7} {:>12}  result", "level", "passed", "failed", "ignored", "time")];
    let mut all_good = true;
    for (level, outcome, elapsed) in rows {
        let time = run::human(elapsed);
        match outcome {
            Ok(Tally { passed, failed, ignored }) => {
                let is_good = failed == 0;
                all_good &= is_good;
                let result = if is_good { "ok" } else { "FAILED" };
                lines.push(format!("{:<8} {passed:>6} {failed:>6} {ignored:>7} {time:>12}  {result}", level.name()));
            }
            Err(error) => {
                all_good = false;
                eprintln!("\nerror: level {}: {error:#}", level.name());
                lines.push(format!("{:<8} {:>6} {:>6} {:>7} {time:>12}  COULD NOT RUN", level.name(), "-", "-", "-"));
            }
        }
    }
    println!("\n{}", lines.join("\n"));
    all_good
}
