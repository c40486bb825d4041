//! `tidegate bpf`: what instances have in the kernel, and its end. Works on the pins, with or without an agent.

use std::{
    os::{linux::net::SocketAddrExt, unix::net::SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use tidegate_kernel::{InstanceState, describe_xdp, detach_all, inspect};

use super::{EXIT_NO, Output, Table};
use crate::{admin::report::seconds, init::lock_name, options::parse_instance};

/// `tidegate bpf`.
#[derive(Args, Clone, Debug)]
pub(super) struct BpfOptions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Show what is attached where: links, programs, maps with their fill and memory, by instance
    Status(StatusOptions),
    /// End all judging of an instance and remove everything that it has in the kernel
    #[command(
        after_help = "Exit codes: 0 nothing is left; 3 an agent of the instance runs, and --force was not given; 1 failed."
    )]
    Detach(DetachOptions),
}

#[derive(Args, Clone, Debug)]
struct StatusOptions {
    /// Where bpffs is mounted
    #[arg(long, env = "TIDEGATE_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Only this instance
    #[arg(long, value_name = "NAME", value_parser = parse_instance)]
    instance: Option<String>,
    /// Tables for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Clone, Debug)]
struct DetachOptions {
    /// Where bpffs is mounted
    #[arg(long, env = "TIDEGATE_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The instance
    #[arg(long, env = "TIDEGATE_INSTANCE", value_name = "NAME", default_value = "default", value_parser = parse_instance)]
    instance: String,
    /// Do it although an agent of the instance runs in this network namespace: it puts everything back within seconds
    #[arg(long)]
    force: bool,
}

pub(super) fn run_bpf(options: &BpfOptions) -> anyhow::Result<ExitCode> {
    match &options.verb {
        Verb::Status(options) => run_status(options),
        Verb::Detach(options) => run_detach(options),
    }
}

/// One instance as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceReport {
    instance: String,
    folder: PathBuf,
    /// Whether an agent of it runs in this network namespace.
    is_running: bool,
    links: Vec<LinkReport>,
    programs: Vec<ProgramReport>,
    maps: Vec<MapReport>,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinkReport {
    pin: String,
    id: u32,
    program_id: u32,
    /// `None` when what it hung on is gone.
    target: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProgramReport {
    pin: String,
    id: u32,
    tag: String,
    loaded_seconds: u64,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MapReport {
    pin: String,
    id: u32,
    entries: Option<u64>,
    capacity: u32,
    memory_bytes: u64,
}

/// A NIC of this network namespace with an XDP program.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NicReport {
    name: String,
    ifindex: u32,
    program: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BpfReport {
    instances: Vec<InstanceReport>,
    nics: Vec<NicReport>,
}

fn run_status(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let states = inspect(&options.bpffs)
        .with_context(|| format!("cannot read the pins in {}: run as root", options.bpffs.display()))?;
    let is_meant = |state: &InstanceState| options.instance.as_ref().is_none_or(|name| *name == state.instance);
    let instances = states.into_iter().filter(is_meant).map(report).collect();
    let report = BpfReport { instances, nics: find_nics(&options.bpffs) };
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print_report(&report),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(state: InstanceState) -> InstanceReport {
    let links = state.links.into_iter().map(|link| LinkReport {
        pin: link.pin,
        id: link.id,
        program_id: link.program,
        target: link.target,
    });
    let programs: Vec<_> = state
        .programs
        .into_iter()
        .map(|program| ProgramReport {
            pin: program.pin,
            id: program.id,
            tag: program.tag,
            loaded_seconds: seconds(program.loaded),
            memory_bytes: program.memory,
        })
        .collect();
    let maps: Vec<_> = state
        .maps
        .into_iter()
        .map(|map| MapReport {
            pin: map.pin,
            id: map.id,
            entries: map.entries,
            capacity: map.capacity,
            memory_bytes: map.memory,
        })
        .collect();
    let memory = programs.iter().map(|program| program.memory_bytes).chain(maps.iter().map(|map| map.memory_bytes));
    InstanceReport {
        is_running: is_running(&state.instance),
        memory_bytes: memory.sum(),
        instance: state.instance,
        folder: state.folder,
        links: links.collect(),
        programs,
        maps,
    }
}

fn find_nics(bpffs: &std::path::Path) -> Vec<NicReport> {
    let nics = nix::net::if_::if_nameindex();
    let nics = nics.iter().flatten().filter_map(|nic| {
        let ifindex = nic.index();
        let program = describe_xdp(bpffs, ifindex).ok()??;
        Some(NicReport { name: nic.name().to_string_lossy().into_owned(), ifindex, program })
    });
    nics.collect()
}

fn print_report(report: &BpfReport) {
    if report.instances.is_empty() {
        println!("nothing of Tidegate is pinned");
    }
    for instance in &report.instances {
        let agent = if instance.is_running { "its agent runs" } else { "no agent of it runs here" };
        let kib = instance.memory_bytes.div_ceil(1024);
        println!("instance {}: {agent}; pins in {}; {kib} KiB", instance.instance, instance.folder.display());
        let mut links = Table::new(["LINK", "ID", "PROGRAM", "ATTACHED TO"]);
        for link in &instance.links {
            let target = link.target.clone().unwrap_or_else(|| "nothing: what it hung on is gone".to_owned());
            links.push([link.pin.clone(), link.id.to_string(), link.program_id.to_string(), target]);
        }
        let mut programs = Table::new(["PROGRAM", "ID", "TAG", "LOADED (UNIX TIME)", "BYTES"]);
        for program in &instance.programs {
            programs.push([
                program.pin.clone(),
                program.id.to_string(),
                program.tag.clone(),
                program.loaded_seconds.to_string(),
                program.memory_bytes.to_string(),
            ]);
        }
        let mut maps = Table::new(["MAP", "ID", "ENTRIES", "CAPACITY", "BYTES"]);
        for map in &instance.maps {
            maps.push([
                map.pin.clone(),
                map.id.to_string(),
                map.entries.map_or("-".to_owned(), |entries| entries.to_string()),
                map.capacity.to_string(),
                map.memory_bytes.to_string(),
            ]);
        }
        print!("\n{links}\n{programs}\n{maps}\n");
    }
    let mut nics = Table::new(["NIC", "XDP PROGRAM"]);
    for nic in &report.nics {
        nics.push([nic.name.clone(), nic.program.clone()]);
    }
    if !nics.is_empty() {
        print!("{nics}");
    }
}

fn run_detach(options: &DetachOptions) -> anyhow::Result<ExitCode> {
    if is_running(&options.instance) && !options.force {
        eprintln!(
            "instance {:?} runs: stop it (it detaches by itself when it is stopped in order), or give --force",
            options.instance
        );
        return Ok(ExitCode::from(EXIT_NO));
    }
    let was_there = find_instance(options)?;
    detach_all(&options.bpffs, &options.instance)
        .with_context(|| format!("cannot remove the pins in {}: run as root", options.bpffs.display()))?;
    if find_instance(options)?.is_some() && !options.force {
        bail!(
            "something of instance {:?} is there again: does an agent of it run in another namespace?",
            options.instance
        );
    }
    match was_there {
        Some(state) => println!(
            "instance {:?}: {} links, {} programs and {} maps removed",
            options.instance,
            state.links.len(),
            state.programs.len(),
            state.maps.len()
        ),
        None => println!("nothing of instance {:?} is pinned in {}", options.instance, options.bpffs.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn find_instance(options: &DetachOptions) -> anyhow::Result<Option<InstanceState>> {
    let states = inspect(&options.bpffs)
        .with_context(|| format!("cannot read the pins in {}: run as root", options.bpffs.display()))?;
    Ok(states.into_iter().find(|state| state.instance == options.instance))
}

/// Whether an init of the instance runs in this network namespace: it holds the lock that is asked for here for a moment.
fn is_running(instance: &str) -> bool {
    let lock = SocketAddr::from_abstract_name(lock_name(instance))
        .and_then(|name| std::os::unix::net::UnixListener::bind_addr(&name));
    matches!(lock, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse)
}
