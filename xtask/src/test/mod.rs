//! `test`: the levels of tests, each with what it needs, and a summary that decides the exit code.
//!
//! A level that cannot run because the machine lacks something has failed: nothing is skipped in silence.

mod fuzz;

use std::{
    fs,
    path::{Path, PathBuf},
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

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Packages whose tests need root: the lab, which makes network namespaces, and what runs in it.
const LAB: &str = "tidegate-lab";
const TESTS: &str = "tidegate-tests";
/// Workspace whose library half is pure and tested on the host.
const PROGRAMS: &str = "ebpf/programs";

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
            Level::Packets => packets(args),
            Level::Host => host(args),
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
    command.args(["test", "--locked", "--workspace", "--no-fail-fast", "--exclude", TESTS, "--exclude", LAB]);
    let mut tally = cargo_test("test: unit", command.current_dir(place::root()), args)?;
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--lib"]).env("CARGO_TARGET_DIR", place::target_of(PROGRAMS));
    tally.add(cargo_test("test: unit, BPF programs", command.current_dir(place::root().join(PROGRAMS)), args)?);
    Ok(tally)
}

fn packets(args: &Args) -> Result<Tally> {
    let agent = prepare_machine("packets", &[Need::Network])?;
    machine("test: packets", &["--package", TESTS, "--test", "packets"], &agent, args)
}

fn host(args: &Args) -> Result<Tally> {
    let agent = prepare_machine("host", &[Need::Network, Need::Peers])?;
    // What the host tests stand on comes first.
    let mut tally = machine("test: host, the lab itself", &["--package", LAB], &agent, args)?;
    tally.add(machine("test: host", &["--package", TESTS, "--test", "host"], &agent, args)?);
    Ok(tally)
}

/// What the levels that need root need; returns the agent's binary.
fn prepare_machine(level: &str, needs: &[Need]) -> Result<PathBuf> {
    if run::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("the level {level} loads BPF programs and makes network namespaces: run it as root");
    }
    setup::ensure(needs)?;
    build::agent(Profile::Dev)
}

fn machine(title: &str, what: &[&str], agent: &Path, args: &Args) -> Result<Tally> {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--no-fail-fast"]).args(what).env("TIDEGATE_BIN", agent);
    cargo_test(title, command.current_dir(place::root()), args)
}

fn cargo_test(title: &str, command: &mut Command, args: &Args) -> Result<Tally> {
    if let Some(only) = &args.only {
        command.args(["--", only]);
    }
    let attempt = run::attempt(title, command)?;
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
