//! `test`: the levels of tests, each with what it needs, and a summary that decides the exit code.
//!
//! A level that cannot run because the machine lacks something has failed: nothing is skipped in silence.

mod cluster;
mod fuzz;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::ValueEnum as _;
use serde_json::Value;

use crate::{
    conformance, ebpf, place, run,
    setup::{self, Need},
};

/// What `test` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Levels to run; all when none is named.
    #[arg(value_enum)]
    levels: Vec<Level>,
    /// Run only tests whose name contains this (levels unit, packets, host and cluster; for fuzz: targets; for conformance: the
    /// test of this name).
    #[arg(long)]
    only: Option<String>,
    /// How often an agent is killed in level packets; 1000 kills it before every single system call that changes something.
    #[arg(long, value_name = "NUMBER")]
    kills: Option<u32>,
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
    /// The agent as its DaemonSet deploys it, in a real cluster (root).
    Cluster,
    /// The official Gateway API conformance suite against it (root).
    Conformance,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packets => "packets",
            Self::Host => "host",
            Self::Fuzz => "fuzz",
            Self::Cluster => "cluster",
            Self::Conformance => "conformance",
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

/// Test targets that need root, each with the level that runs it: the lab itself comes before what stands on it.
const MACHINE_TARGETS: [(Level, &str); 4] =
    [(Level::Packets, "packets"), (Level::Host, "lab"), (Level::Host, "host"), (Level::Cluster, "cluster")];
/// Workspace whose library half is pure and tested on the host.
const PROGRAMS: &str = "ebpf/programs";

/// Runs the levels and prints what came of each.
///
/// # Errors
/// A level failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let levels = if args.levels.is_empty() { Level::value_variants() } else { &args.levels };
    let mut rows = Vec::new();
    for &level in levels {
        let begun = Instant::now();
        let outcome = match level {
            Level::Unit => unit(args),
            Level::Packets | Level::Host => machine(level, args),
            Level::Fuzz => fuzz::run(args.only.as_deref(), args.fuzz_seconds),
            Level::Cluster => cluster::run(args),
            Level::Conformance => conformance(args),
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
    ebpf::build(false)?;
    let mut command = workspace("test");
    command.args(["--no-fail-fast", "--lib", "--bins"]);
    for target in test_targets()?.iter().filter(|target| !MACHINE_TARGETS.iter().any(|(_, name)| name == target)) {
        command.args(["--test", target]);
    }
    let mut tally = cargo_test("test: unit", &mut command, args)?;
    tally.add(cargo_test("test: unit, examples in docs", workspace("test").args(["--no-fail-fast", "--doc"]), args)?);
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--lib"]).env("CARGO_TARGET_DIR", place::target_of(PROGRAMS));
    tally.add(cargo_test("test: unit, BPF programs", command.current_dir(place::workspace(PROGRAMS)), args)?);
    if tally.passed == 0 && args.only.is_none() {
        bail!("no test ran");
    }
    Ok(tally)
}

/// A level that loads BPF programs and makes network namespaces.
fn machine(level: Level, args: &Args) -> Result<Tally> {
    if run::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("it loads BPF programs and makes network namespaces: run it as root");
    }
    let mut needs = vec![Need::Build, Need::Network];
    needs.extend((level == Level::Host).then_some(Need::Company));
    setup::ensure(&needs)?;
    let agent = build(level)?;
    let mut tally = Tally::default();
    for target in targets(level) {
        let mut command = workspace("test");
        command.args(["--no-fail-fast", "--test", target]).env("TIDEGATE_BIN", &agent);
        command.envs(args.kills.map(|kills| ("TIDEGATE_TEST_KILLS", kills.to_string())));
        tally.add(cargo_test(&format!("test: {}, target {target}", level.name()), &mut command, args)?);
    }
    if tally.passed == 0 && args.only.is_none() {
        bail!("no test ran");
    }
    Ok(tally)
}

/// Builds the agent and a level's tests; returns the agent.
fn build(level: Level) -> Result<PathBuf> {
    ebpf::build(false)?;
    let mut build = workspace("build");
    build.args(["--bins"]).args(targets(level).flat_map(|target| ["--test", target]));
    run::step(&format!("build the agent and the tests: {}", level.name()), &mut build)?;
    Ok(place::target().join("debug/tidegate"))
}

fn targets(level: Level) -> impl Iterator<Item = &'static str> {
    MACHINE_TARGETS.iter().filter(move |(of, _)| *of == level).map(|(_, target)| *target)
}

/// The official suite, of which nothing may be left out.
fn conformance(args: &Args) -> Result<Tally> {
    let agent = build(Level::Conformance)?;
    let (passed, failed, ignored) = conformance::whole(agent, args.only.clone())?;
    Ok(Tally { passed, failed, ignored })
}

/// Cargo for all crates at once, whatever is wanted of them: with any other choice of crates their dependencies get other
/// features and are compiled again.
fn workspace(verb: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args([verb, "--locked", "--workspace"]).current_dir(place::root());
    command
}

/// Names of the workspace's integration tests.
fn test_targets() -> Result<Vec<String>> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--format-version=1", "--no-deps"]).current_dir(place::root());
    let metadata: Value = serde_json::from_str(&run::read(&mut command)?)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let tests = targets.filter(|target| target["kind"][0] == "test");
    Ok(tests.filter_map(|target| Some(target["name"].as_str()?.to_owned())).collect())
}

fn cargo_test(title: &str, command: &mut Command, args: &Args) -> Result<Tally> {
    if let Some(only) = &args.only {
        command.args(["--", only]);
    }
    let attempt = run::attempt(title, command)?;
    let log = fs::read_to_string(&attempt.log)?;
    let mut tally = tally(&log);
    if let Some(failure) = attempt.failure {
        let names: Vec<_> = log.lines().filter(|line| line.starts_with("test ") && line.ends_with("FAILED")).collect();
        eprintln!("\n{failure}\n{}\n", names.join("\n"));
        // A crate that does not compile, or a test that took the whole process with it, has no line of its own.
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

/// Adds up libtest's "test result:" lines.
fn tally(log: &str) -> Tally {
    let mut tally = Tally::default();
    for line in log.lines().filter_map(|line| line.strip_prefix("test result:")) {
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
    tally
}

/// Prints a row for each level; says whether all are good.
fn summarize(rows: Vec<(Level, Result<Tally>, Duration)>) -> bool {
    let mut lines =
        vec![format!("{:<11} {:>6} {:>6} {:>7} {:>12}  result", "level", "passed", "failed", "ignored", "time")];
    let mut all_good = true;
    for (level, outcome, elapsed) in rows {
        let time = run::human(elapsed);
        match outcome {
            Ok(Tally { passed, failed, ignored }) => {
                let is_good = failed == 0;
                all_good &= is_good;
                let result = if is_good { "ok" } else { "FAILED" };
                lines.push(format!("{:<11} {passed:>6} {failed:>6} {ignored:>7} {time:>12}  {result}", level.name()));
            }
            Err(error) => {
                all_good = false;
                eprintln!("\nerror: level {}: {error:#}", level.name());
                lines.push(format!("{:<11} {:>6} {:>6} {:>7} {time:>12}  COULD NOT RUN", level.name(), "-", "-", "-"));
            }
        }
    }
    println!("\n{}", lines.join("\n"));
    all_good
}
