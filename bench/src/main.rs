//! `tidegate-bench`: measures the built programs in the lab and writes what was measured, with its method.
//!
//! Numbers of a shared machine are ratios within one run, never a promise in units; see `bench/README.md`.

mod change;
mod flood;
mod kernel;
mod load;
mod memory;
mod nginx;
mod proxy;
mod report;
mod rounds;
mod routes;
mod scene;
mod sources;
mod watch;
mod worst;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measurements of Tidegate.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, required = true)]
    what: Vec<What>,
    /// Folder that results are written to
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    #[command(flatten)]
    effort: Effort,
}

/// How much is done.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Effort {
    /// Rounds of each comparison; in each, every side runs twice (A B B A)
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds of load for each side in a round
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Routes of each series of `watch`
    #[arg(long, default_value_t = 1_000)]
    samples: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// CPU, system calls and context switches for each request, beside nginx
    Proxy,
    /// The last of 10,000 routes against the only one
    Routes,
    /// Nanoseconds of `admit` for each packet, of look-ups of sources, and of changes of long lists
    Kernel,
    /// The part of `kernel` that needs no agent: look-ups and changes of source lists
    Sources,
    /// From a changed file to a served request, and failed requests meanwhile
    Change,
    /// Clients beside a flood of SYNs, with and without admission
    Flood,
    /// Memory idle, by routes, by connections
    Memory,
    /// In the test cluster: from a created HTTPRoute to a served request, status writes, memory and CPU at rest
    Watch,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    for what in &arguments.what {
        let report = match what {
            What::Proxy => proxy::measure(arguments.effort)?,
            What::Routes => routes::measure(arguments.effort)?,
            What::Kernel => kernel::measure(arguments.effort)?,
            What::Sources => sources::measure(arguments.effort)?,
            What::Change => change::measure()?,
            What::Flood => flood::measure(arguments.effort)?,
            What::Memory => memory::measure()?,
            What::Watch => watch::measure(arguments.effort)?,
        };
        println!("{}", report.to_markdown()?);
        report.write(&arguments.results)?;
        if *what == What::Kernel {
            let report = sources::measure(arguments.effort)?;
            println!("{}", report.to_markdown()?);
            report.write(&arguments.results)?;
        }
    }
    Ok(())
}
