//! `tidegate-lab`: the parts of the lab that must be a process of their own, and the demo.

use std::{
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

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
    /// Joins a cgroup (v2) and connects; prints `connected`, `EPERM` or the error.
    Dial {
        /// Folder of the cgroup.
        group: PathBuf,
        /// Address to connect to.
        addr: SocketAddr,
    },
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

/// `EPERM` of Linux: what a refused connect of a cgroup program returns.
const EPERM: i32 = 1;

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Demo(options) => demo::run(&options),
        Verb::Dial { group, addr } => {
            std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
            match TcpStream::connect_timeout(&addr, Duration::from_secs(5)) {
                Ok(_) => println!("connected"),
                Err(error) if error.raw_os_error() == Some(EPERM) => println!("EPERM"),
                Err(error) => println!("{error}"),
            }
            Ok(())
        }
        Verb::Hold { addr, count, seconds } => hold::run(addr, count, Duration::from_secs(seconds)),
    }
}
