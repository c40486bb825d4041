//! `conformance`: the official Gateway API conformance suite, as its authors publish it, run in the test cluster against the
//! agent as users deploy it.
//!
//! The suite runs where a client of the node is: what it sends comes in through a NIC of the domain and is judged there.
//! Which features are tested, the GatewayClass's `status.supportedFeatures` decides: nothing is declared or exempted here.
//! The suite's own exit code is the result.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    cluster::{self, Channel, Client, Programs, Release, Up},
    image, place, run,
};

/// Where reports go that are to be kept.
const REPORTS: &str = "bench/results/conformance";

/// What is deployed for the suite.
const MANIFESTS: &str = "tests/cluster/manifests/conformance";
/// The GatewayClass in it.
const CLASS: &str = "tidegate";
/// An address of the domain's pool that no Gateway is given by itself, and one that the domain does not have.
const ADDRESSES: [&str; 2] = ["-usable-address=198.18.255.1", "-unusable-address=192.0.2.200"];

/// Label of the suite's namespaces.
const NAMESPACES: &str = "gateway-conformance";

/// Minutes after which the suite gives up.
const MINUTES: u32 = 60;

/// What the suite says of a test that was not asked for.
const NOT_CHOSEN: &str = "test explicitly skipped";

/// What `conformance` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Profiles to test; all when none is named.
    #[arg(long = "profile", value_enum, value_delimiter = ',')]
    profiles: Vec<Profile>,
    /// Run this test alone, whatever the class supports; no report is written.
    #[arg(long, value_name = "NAME")]
    run_test: Option<String>,
    /// GatewayClass to test.
    #[arg(long, value_name = "NAME", default_value = CLASS)]
    gateway_class: String,
    #[command(flatten)]
    own: image::Own,
    /// Test what is deployed in the cluster that runs; deploy and remove nothing.
    #[arg(long)]
    deployed: bool,
    /// Channel of the Gateway API that is installed in a new cluster, and that a running one must have.
    #[arg(long, value_enum, default_value_t = Channel::Experimental)]
    channel: Channel,
    /// Release of the suite, and of the Gateway API that is installed in a new cluster, and that a running one must have.
    #[arg(long, value_enum, default_value = "1.6.3")]
    version: Release,
    /// List the tests of the profiles with the features that each needs, and run none.
    #[arg(long)]
    list: bool,
    /// Folder that the report is written to; below the checkout, unless it is absolute.
    #[arg(long, value_name = "DIR", default_value = REPORTS)]
    report: PathBuf,
    /// Leave the agent deployed, and the cluster running that was started for this. One that ran before is left running anyway.
    #[arg(long)]
    keep: bool,
    /// Minutes after which the suite gives up.
    #[arg(long, default_value_t = MINUTES)]
    minutes: u32,
    /// Further flags for the suite, after `--`, e.g. `-debug`.
    #[arg(last = true)]
    flags: Vec<String>,
}

/// A conformance profile for gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Profile {
    /// HTTPRoute, BackendTLSPolicy.
    Http,
    /// GRPCRoute.
    Grpc,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
    /// UDPRoute.
    Udp,
}

impl Profile {
    const ALL: [Self; 5] = [Self::Http, Self::Grpc, Self::Tls, Self::Tcp, Self::Udp];

    /// As the suite calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Http => "GATEWAY-HTTP",
            Self::Grpc => "GATEWAY-GRPC",
            Self::Tls => "GATEWAY-TLS",
            Self::Tcp => "GATEWAY-TCP",
            Self::Udp => "GATEWAY-UDP",
        }
    }
}

/// Runs the suite, or lists its tests.
///
/// # Errors
/// A test failed, or the suite or the cluster cannot be had.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        return list(args, &cluster::suite(args.version)?);
    }
    match in_cluster(args)?.1 {
        Some(failure) => bail!(failure),
        None => Ok(()),
    }
}

/// Runs the whole suite, or the test of one name, against an agent that was built already, and leaves the report with the logs;
/// returns how many tests passed, failed and were left out.
///
/// # Errors
/// The suite cannot be run, or it fails without a test that does.
pub(crate) fn whole(agent: PathBuf, run_test: Option<String>) -> Result<(usize, usize, usize)> {
    let args = Args {
        profiles: Vec::new(),
        run_test,
        gateway_class: CLASS.to_owned(),
        own: image::Own::of(agent),
        deployed: false,
        channel: Channel::Experimental,
        version: Release::Suite,
        list: false,
        report: place::target().join("xtask"),
        keep: false,
        minutes: MINUTES,
        flags: Vec::new(),
    };
    let (results, failure) = in_cluster(&args)?;
    match failure {
        Some(failure) if results.failed.is_empty() => bail!(failure),
        _ => Ok((results.passed.len(), results.failed.len(), results.left_out().count())),
    }
}

/// Runs the suite in the cluster that runs, else in one of its own.
fn in_cluster(args: &Args) -> Result<(Results, Option<String>)> {
    let programs = cluster::programs(args.version)?;
    let is_new = cluster::up(Up { crds: args.channel, version: args.version }, &programs)?;
    let outcome = if args.deployed { test(args, &programs) } else { deploy_and_test(args, &programs) };
    if is_new && !args.keep {
        cluster::down()?;
    }
    outcome
}

/// Tests the agent of this checkout, under the rights that it is deployed with.
fn deploy_and_test(args: &Args, programs: &Programs) -> Result<(Results, Option<String>)> {
    cluster::deploy(&args.own, MANIFESTS)?;
    cluster::wait_for("Accepted", &format!("gatewayclass/{}", args.gateway_class))?;
    let outcome = test(args, programs)?;
    if !args.keep {
        cluster::remove(MANIFESTS)?;
    }
    Ok(outcome)
}

/// Runs the suite; returns what came of each test, and why it failed, if it did.
fn test(args: &Args, programs: &Programs) -> Result<(Results, Option<String>)> {
    // An earlier run may have left some, or they are still going.
    cluster::remove_namespaces(NAMESPACES)?;
    let mut suite = cluster::inside_client(Client::Internet, &programs.conformance())?;
    suite.args(["-test.v", "-test.run=^TestConformance$", &format!("-test.timeout={}m", args.minutes)]);
    suite.arg(format!("-gateway-class={}", args.gateway_class));
    suite.arg(format!("-conformance-profiles={}", names(&profiles(args)).join(","))).args(ADDRESSES);
    // The suite gives its namespaces ten seconds to go, and fails when they take longer.
    suite.arg("-cleanup-base-resources=false");
    // Written beside the old one, which stays when the suite comes to no end.
    let report = report(args);
    let partial = report.with_extension("partial");
    match &args.run_test {
        Some(name) => suite.arg(format!("-run-test={name}")),
        None => {
            place::write(&partial, "")?;
            suite.arg(format!("-report-output={}", partial.display())).args(implementation())
        }
    };
    suite.args(&args.flags);
    let attempt = run::attempt(&format!("conformance suite {}", args.version.version()), &mut suite)?;
    let results = Results::read(&fs::read_to_string(&attempt.log)?);
    run::print(&results.describe());
    run::note(&format!("log: {}", attempt.log.display()));
    if partial.exists() && results.passed.len() + results.failed.len() > 0 {
        fs::rename(&partial, &report)?;
        run::note(&format!("report: {}", report.display()));
    } else if partial.exists() {
        fs::remove_file(&partial)?;
    }
    if !args.keep {
        cluster::remove_namespaces(NAMESPACES)?;
    }
    let failure = match attempt.failure {
        // The end of its log is about cleaning up.
        Some(_) if !results.errors.is_empty() => Some(format!("the suite failed: {}", run::shown(&suite))),
        failure => failure,
    };
    Ok((results, failure))
}

fn names(profiles: &[Profile]) -> Vec<&'static str> {
    profiles.iter().map(|profile| profile.name()).collect()
}

/// The profiles that are asked for, in the order of [`Profile::ALL`].
fn profiles(args: &Args) -> Vec<Profile> {
    Profile::ALL.into_iter().filter(|profile| args.profiles.is_empty() || args.profiles.contains(profile)).collect()
}

/// The file of a run's report: one for each choice of profiles.
fn report(args: &Args) -> PathBuf {
    let channel = if args.channel == Channel::Standard { "standard" } else { "experimental" };
    let mut name = format!("{}-{channel}", args.version.version());
    let profiles = profiles(args);
    if profiles.len() < Profile::ALL.len() {
        for profile in profiles {
            name = format!("{name}-{}", profile.name().trim_start_matches("GATEWAY-").to_lowercase());
        }
    }
    place::root().join(&args.report).join(format!("{name}.yaml"))
}

/// Who the report is about.
fn implementation() -> [String; 5] {
    let version = place::commit().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let url = env!("CARGO_PKG_REPOSITORY");
    [
        "-organization=tidegate".to_owned(),
        "-project=tidegate".to_owned(),
        format!("-url={url}"),
        format!("-version={version}"),
        format!("-contact={url}/issues"),
    ]
}

/// Prints the tests of the profiles: name, profiles, features.
fn list(args: &Args, suite: &Path) -> Result<()> {
    let printed = run::read(Command::new(suite).arg("-test.run=^TestList$"))?;
    let wanted = names(&profiles(args));
    let mut lines = Vec::new();
    for line in printed.lines().filter_map(|line| line.strip_prefix("TEST\t")) {
        let [name, of, features] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("the suite lists its tests in a form that is not known: {line}");
        };
        let of: Vec<_> = of.split(',').filter(|profile| wanted.contains(profile)).collect();
        if !of.is_empty() {
            lines.push(format!("{name:<60} {:<12} {features}\n", of.join(",").replace("GATEWAY-", "")));
        }
    }
    run::print(&lines.concat());
    run::note(&format!("{} tests", lines.len()));
    Ok(())
}

/// What came of each test, without those that a test consists of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Results {
    passed: Vec<String>,
    failed: Vec<String>,
    /// Name, and the suite's reason.
    skipped: BTreeMap<String, String>,
    /// What was wrong, by the test or the part of a test that found it.
    errors: Vec<(String, String)>,
}

impl Results {
    /// Reads what `go test -v` prints.
    fn read(log: &str) -> Self {
        let mut results = Self::default();
        let reasons: BTreeMap<_, _> = log
            .lines()
            .filter_map(|line| line.split_once(": Skipping "))
            .filter_map(|(_, reason)| reason.split_once(": "))
            .collect();
        for line in log.lines() {
            let Some((mark, name)) =
                line.strip_prefix("    --- ").and_then(|line| line.split_once(": TestConformance/"))
            else {
                continue;
            };
            let name = name.split(' ').next().unwrap_or(name);
            match mark {
                "PASS" => results.passed.push(name.to_owned()),
                "FAIL" => results.failed.push(name.to_owned()),
                _ => {
                    let reason = *reasons.get(name).unwrap_or(&"the test says why in the log");
                    results.skipped.insert(name.to_owned(), reason.to_owned());
                }
            }
        }
        results.errors = errors(log);
        results
    }

    /// Tests that were to be run and were not, with the reason. Those of meshes are of no gateway's profile.
    fn left_out(&self) -> impl Iterator<Item = (&str, &str)> {
        let skipped = self.skipped.iter().map(|(name, reason)| (name.as_str(), reason.as_str()));
        skipped.filter(|(name, reason)| *reason != NOT_CHOSEN && !name.starts_with("Mesh"))
    }

    /// All of it for people.
    fn describe(&self) -> String {
        let Self { passed, failed, skipped, errors } = self;
        let mut lines = vec![format!("\n{} passed, {} failed, {} skipped", passed.len(), failed.len(), skipped.len())];
        lines.extend(failed.iter().map(|name| format!("  FAILED {name}")));
        lines.extend(errors.iter().map(|(test, error)| format!("  {test}:\n    {}", error.replace('\n', "\n    "))));
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, reason) in self.left_out() {
            by_reason.entry(reason).or_default().push(name);
        }
        lines.extend(by_reason.iter().map(|(reason, names)| format!("  skipped, {reason}: {}", names.join(", "))));
        lines.join("\n") + "\n"
    }
}

/// What the suite's assertions say, in testify's form: `Error Trace:`, `Error:`, `Test:`, `Messages:`, each with further lines.
fn errors(log: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut field = "";
    let (mut test, mut error) = (String::new(), String::new());
    for line in log.lines().map(str::trim).chain([""]) {
        let (label, value) = line.split_once(':').unwrap_or(("", line));
        let is_new = ["Error Trace", "Error", "Test", "Messages"].contains(&label) && value.starts_with([' ', '\t']);
        let value = if is_new { value } else { line };
        // The last field ends with the next line of the log, which begins with its source's place.
        let is_end = line.is_empty() || label.ends_with(".go") || line.starts_with("---") || line.starts_with("===");
        if (is_end || label == "Error Trace") && !test.is_empty() {
            found.push((std::mem::take(&mut test), std::mem::take(&mut error)));
        }
        if is_end || is_new {
            field = if is_end { "" } else { label };
        }
        match field {
            "Test" => test.push_str(value.trim()),
            "Error" | "Messages" => {
                error.push_str(if error.is_empty() { "" } else { "\n" });
                error.push_str(value.trim());
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "=== RUN   TestConformance
=== RUN   TestConformance/MeshBasic
    conformance.go:56: Skipping MeshBasic: suite does not support Mesh
=== RUN   TestConformance/GatewayX/A_part
    conformance.go:70: 2026-11-23T17:00:00Z: Applying a.yaml
--- FAIL: TestConformance (12.00s)
    --- SKIP: TestConformance/MeshBasic (0.01s)
    --- FAIL: TestConformance/GatewayX (1.20s)
        --- FAIL: TestConformance/GatewayX/A_part (1.00s)
    --- PASS: TestConformance/HTTPRouteY (1.20s)
    --- SKIP: TestConformance/Quiet (0.00s)
FAIL
";

    #[test]
    fn tests_are_counted_once_and_skipped_ones_have_their_reason() {
        let results = Results::read(LOG);
        assert_eq!(results.passed, ["HTTPRouteY"]);
        assert_eq!(results.failed, ["GatewayX"]);
        assert_eq!(results.skipped["MeshBasic"], "suite does not support Mesh");
        assert_eq!(results.skipped["Quiet"], "the test says why in the log");
        assert_eq!(results.skipped.len(), 2);
    }

    #[test]
    fn errors_are_found_with_their_tests() {
        let log = "    helpers.go:108: \n        \tError Trace:\tsigs.k8s.io/a.go:141\n        \t            \t\t\t\tb.go:13
        \tError:      \tReceived unexpected error:\n        \t            \tno class: gone\n        \tTest:       \tTestConformance/X
        \tMessages:   \twaited in vain\n    apply.go:279: 2026-11-23T17:40:02Z: Deleting it
    x.go:1: \n        \tError Trace:\tc.go:1\n        \tError:      \tfalse\n        \tTest:       \tTestConformance/Y\n--- FAIL: TestConformance (0.08s)\n";
        let found = errors(log);
        let wanted = [
            ("TestConformance/X", "Received unexpected error:\nno class: gone\nwaited in vain"),
            ("TestConformance/Y", "false"),
        ];
        assert_eq!(found, wanted.map(|(test, error)| (test.to_owned(), error.to_owned())));
    }
}
