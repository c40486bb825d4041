//! `tidegate-lab`: the parts of the lab that must be a process of their own, and the demo.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, Subcommand};
use tidegate_lab::{demo, hold};

/// The test lab of Tidegate.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows the main job: two domains, admission, a canary, faults.
    Demo(demo::Options),
    /// Opens idle connections and keeps them until standard input ends.
    Hold {
        /// Address to connect to.
        addr: SocketAddr,
        /// How many connections.
        count: usize,
        /// Longest wait for all of them, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Demo(options) => demo::run(&options),
        Verb::Hold { addr, count, seconds } => hold::run(addr, count, Duration::from_secs(seconds)),
    }
}
