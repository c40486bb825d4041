//! `cargo xtask VERB`: everything that is done to this repository, from installing the tool chain to running the tests.
//!
//! One file a verb. A verb is one line in [`Verb`] and one in [`main`]; it knows how to run commands ([`run`]) and where
//! things lie ([`place`]), never how another verb does its work: what two of them need is a function of the verb that owns it.

mod bench;
mod build;
mod check;
mod cluster;
mod conformance;
mod crds;
mod demo;
mod ebpf;
mod image;
mod modules;
mod place;
mod run;
mod setup;
mod test;
mod types;
mod versions;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tidegate's development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need, where it is missing.
    Setup(setup::Args),
    /// Build the BPF programs.
    Ebpf(ebpf::Args),
    /// Build the BPF programs and the agent.
    Build(build::Args),
    /// Show the main job: two domains, admission, a canary, faults (root).
    Demo(demo::Args),
    /// Check everything that needs no running agent: format, lints, docs, licences, sizes, layouts, crate walls.
    Check(check::Args),
    /// Run the tests, all levels or those named.
    Test(test::Args),
    /// Measure: proxy, routes, kernel, change, memory, watch (root).
    Bench(bench::Args),
    /// Generate the Gateway API types from their CRDs again.
    Types(types::Args),
    /// Run a real Kubernetes cluster of one node on this machine, without Docker (root).
    Cluster(cluster::Args),
    /// Run the official Gateway API conformance suite in the cluster (root).
    Conformance(conformance::Args),
    /// Write the agent's container image, without Docker.
    Image(image::Args),
    /// Write the CRDs of group tidegate.dev from their types to deploy/crds.
    Crds(crds::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Ebpf(args) => ebpf::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Types(args) => types::run(&args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Conformance(args) => conformance::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Crds(args) => crds::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
