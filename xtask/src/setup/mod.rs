//! `setup`: finds what building and testing need and installs what is missing. Doing nothing takes no second.
//!
//! Packages come from apt-get, tools from crates.io into the cache ([`crate::place::cache`]); nothing else of the machine
//! is changed, no service is started. Other verbs call [`ensure`] for what they need themselves.

mod compiler;
mod go;
mod packages;
mod tools;

use anyhow::Result;

use crate::run;

pub(crate) use compiler::{Compiler, Core, TARGET};
pub(crate) use go::go;
pub(crate) use tools::{cargo_deny, kopium};

/// What `setup` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also install what the benchmark uses (nginx, wrk, h2load, bpftool, strace).
    #[arg(long)]
    peers: bool,
    /// Also install what the test cluster runs with (runc, CNI plugins, iptables, conntrack, Go).
    #[arg(long)]
    cluster: bool,
}

/// What a verb is going to do, and so what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compile user space.
    Build,
    /// Make network namespaces and set up their interfaces.
    Network,
    /// Bring files from the network.
    Download,
    /// Compile libFuzzer.
    Fuzz,
    /// Run the programs that the benchmark measures with and compares to.
    Peers,
    /// Run the programs that tests let the product meet: a Prometheus that scrapes it, a bpftool that takes its NIC.
    Company,
    /// Run a Kubernetes cluster.
    Cluster,
}

/// Installs everything that `build`, `test` and `demo` need.
///
/// # Errors
/// Something cannot be installed; the error says what to do by hand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut needs = vec![Need::Build, Need::Network, Need::Company];
    needs.extend(args.peers.then_some(Need::Peers));
    if args.cluster {
        needs.extend([Need::Cluster, Need::Download]);
    }
    ensure(&needs)?;
    if args.cluster {
        run::note(&format!("Go:           {}", go()?.display()));
    }
    let tools = bpf()?;
    run::note(&format!("BPF compiler: {}", tools.compiler));
    run::note(&format!("BPF linker:   {}", tools.linker.display()));
    Ok(())
}

/// Installs the packages that are missing for something.
///
/// # Errors
/// As [`run()`].
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    packages::ensure(&packages::of_needs(needs))
}

/// A compiler and a linker for BPF programs that read the same LLVM's bitcode.
pub(crate) struct BpfTools {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// The linker's executable.
    pub(crate) linker: std::path::PathBuf,
}

/// Finds the BPF tool chain, and installs it where it is missing.
///
/// # Errors
/// As [`run()`].
pub(crate) fn bpf() -> Result<BpfTools> {
    let compiler = match Compiler::find() {
        Some(compiler) => compiler,
        None => compiler::install()?,
    };
    let linker = tools::bpf_linker(&compiler)?;
    Ok(BpfTools { compiler, linker })
}
