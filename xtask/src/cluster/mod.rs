//! `cluster`: a real Kubernetes cluster of one node on this machine, without Docker, a registry or a virtual machine.
//!
//! etcd, the Kubernetes programs and containerd are compiled from Go modules ([`build`]) and run in namespaces and control
//! groups of their own ([`namespaces`], [`groups`]): the machine's network, mounts and settings stay as they are, and `down`
//! leaves nothing but the cache and the logs. One cluster a machine; it belongs to no checkout, so every checkout may use it.

mod build;
mod certificates;
mod control_plane;
mod crds;
mod deploy;
mod groups;
mod images;
mod namespaces;
mod node;
mod processes;
mod rights;
mod state;
mod status;

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use build::{Programs, programs, suite};
pub(crate) use crds::{Channel, Release};
pub(crate) use deploy::{deploy, remove, remove_namespaces, wait_for, with_agent};
pub(crate) use namespaces::Client;

use self::state::State;
use crate::{
    image, place, run,
    setup::{self, Need},
};

/// What `cluster` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Start the cluster, or what is missing of it; the first time builds its programs (about 10 minutes).
    Up(Up),
    /// End the cluster and everything in it.
    Down,
    /// Show programs, node, pods and memory; the exit code says whether all is well.
    Status,
    /// Run kubectl in the cluster.
    Kubectl(Words),
    /// Run any command in the cluster's namespaces: curl, ip, the agent.
    Exec(Exec),
    /// Build the agent and give its image to the node, or give it image files (OCI or docker save).
    Load(Load),
    /// Show how often the deployed agent has used each of its rights; the exit code says whether none is unused or missing.
    Rights,
    /// Forget the past of all objects, so that who watches from an older version is answered 410 (Gone).
    Compact,
    /// End some of the programs, to see what becomes of the others; `up` starts them again.
    Stop {
        /// Their names, as `status` shows them.
        #[arg(required = true)]
        programs: Vec<String>,
        /// Kill them: the API server takes a minute to end when it is asked to.
        #[arg(long)]
        kill: bool,
    },
}

/// How a cluster is to be.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Up {
    /// Channel of the Gateway API that is installed.
    #[arg(long, value_enum, default_value_t = Channel::Experimental)]
    pub(crate) crds: Channel,
    /// Release of the Gateway API that is installed.
    #[arg(long, value_enum, default_value = "1.6.3")]
    pub(crate) version: Release,
}

#[derive(clap::Args)]
struct Words {
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<OsString>,
}

#[derive(clap::Args)]
struct Exec {
    /// Run it where a client of the node is, behind a NIC of its own.
    #[arg(long, value_enum)]
    from: Option<Client>,
    #[command(flatten)]
    words: Words,
}

#[derive(clap::Args)]
struct Load {
    #[command(flatten)]
    own: image::Own,
    /// Files of other images; the agent's is made when none is named.
    files: Vec<PathBuf>,
}

/// Does one thing with the cluster.
///
/// # Errors
/// It cannot be done; the error says what to do.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure_root()?;
    match &args.verb {
        Verb::Up(args) => {
            up(*args, &programs(args.version)?)?;
            run::note("try: cargo xtask cluster kubectl get nodes");
            Ok(())
        }
        Verb::Down => down(),
        Verb::Status => {
            let (text, all_good) = running()?.describe();
            run::print(&text);
            ensure!(all_good, "not all is well with the cluster: `cargo xtask cluster up` starts what is missing");
            Ok(())
        }
        Verb::Kubectl(Words { words }) => {
            let state = running()?;
            Err(state.kubectl()?.args(words).exec().into())
        }
        Verb::Exec(Exec { from, words: Words { words } }) => {
            let (program, words) = words.split_first().context("the command line has a command")?;
            let (state, program) = (running()?, Path::new(program));
            let mut command = match from {
                Some(client) => state.inside_client(*client, program)?,
                None => state.inside(program)?,
            };
            Err(command.args(words).exec().into())
        }
        Verb::Load(args) => load(args),
        Verb::Rights => {
            let rights = running()?.rights()?;
            run::print(&rights.describe());
            rights.judge()
        }
        Verb::Compact => {
            let _lock = state::lock()?;
            running()?.compact()
        }
        Verb::Stop { programs, kill } => stop(programs, if *kill { "KILL" } else { "TERM" }),
    }
}

fn ensure_root() -> Result<()> {
    if run::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("the test cluster makes namespaces and control groups: run it as root");
    }
    Ok(())
}

/// Starts the cluster, or what is missing of it; returns whether none ran before.
///
/// # Errors
/// A cluster of other programs runs; packages cannot be installed; something does not start. What was begun stays, with its
/// logs, for `status` and `down`.
pub(crate) fn up(args: Up, programs: &Programs) -> Result<bool> {
    ensure_root()?;
    setup::ensure(&[Need::Network, Need::Download, Need::Cluster])?;
    let images = images::write(programs)?;
    let _lock = state::lock()?;
    let begun = Instant::now();
    let mut is_new = false;
    let state = match State::read()? {
        Some(state) if !state.is_held() => {
            run::note("a cluster has ended without `down`: removing what is left of it");
            state.remove_all()?;
            None
        }
        other => other,
    };
    let state = match state {
        Some(state) => {
            ensure!(
                state.fingerprint == programs.fingerprint(),
                "a cluster of other programs runs on this machine, started from {}: `cargo xtask cluster down` ends it",
                state.checkout.display()
            );
            state
        }
        None => {
            is_new = true;
            begin(programs)?
        }
    };
    run::judge("make certificates", || state.make_certificates())?;
    // The API server takes longest; what does not need it is done beside.
    state.start_etcd()?;
    state.start_containerd()?;
    state.start_api_server()?;
    state.wait_containerd()?;
    state.load_images(&images)?;
    state.start_controllers()?;
    state.start_node()?;
    state.install_crds(args.crds, args.version)?;
    state.wait_controllers()?;
    state.wait_node()?;
    run::note(&format!("the cluster is up (in {})", run::human(begun.elapsed())));
    Ok(is_new)
}

/// Makes the namespaces of a new cluster.
fn begin(programs: &Programs) -> Result<State> {
    let folder = place::cache()?.join("cluster");
    let (run_folder, logs) = (folder.join("run"), folder.join("logs"));
    for folder in [&run_folder, &logs] {
        place::remove_folder(folder)?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let hierarchies = groups::hierarchies()?;
    let mut state = State {
        run: run_folder,
        logs,
        groups: groups::of(&hierarchies),
        borrowed: groups::borrowed(&hierarchies),
        folders: namespaces::missing_folders(),
        holder: None,
        fingerprint: programs.fingerprint(),
        kube: programs.kube.clone(),
        containerd: programs.containerd.clone(),
        checkout: place::root(),
    };
    state.write()?;
    run::judge("make namespaces", || state.make_namespaces(&hierarchies))?;
    Ok(state)
}

/// Ends the cluster, also one that has crashed, and looks that nothing is left.
///
/// # Errors
/// Something is left; the error names it.
pub(crate) fn down() -> Result<()> {
    ensure_root()?;
    let _lock = state::lock()?;
    match State::read()? {
        Some(state) => run::judge("end the cluster", || state.remove_all()),
        None => {
            run::note("no cluster runs");
            Ok(())
        }
    }
}

/// The cluster that runs.
fn running() -> Result<State> {
    let state = State::read()?.filter(State::is_held);
    state.context("no cluster runs on this machine: `cargo xtask cluster up` starts one")
}

/// A command where a client of the running cluster's node is, with the administrator's `KUBECONFIG`.
///
/// # Errors
/// No cluster runs.
pub(crate) fn inside_client(client: Client, program: &Path) -> Result<Command> {
    running()?.inside_client(client, program)
}

/// What tests are told of the running cluster.
///
/// # Errors
/// None runs.
pub(crate) fn environment() -> Result<Vec<(&'static str, OsString)>> {
    let state = running()?;
    let holder = state.holder.context("the cluster has namespaces")?;
    Ok(vec![
        ("TIDEGATE_CLUSTER_INSIDE", state.script().into()),
        // The clients' namespaces as files, which the cluster alone has among its mounts.
        ("TIDEGATE_CLUSTER_CLIENTS", format!("/proc/{}/root/run/netns", holder.id).into()),
        ("TIDEGATE_ECHO_IMAGE", images::echo()?.into()),
        // Its own path may lead to nothing by now: building the tests can build this program again.
        ("TIDEGATE_XTASK", format!("/proc/{}/exe", std::process::id()).into()),
    ])
}

fn load(args: &Load) -> Result<()> {
    let state = running()?;
    if !args.files.is_empty() {
        return run::judge("load images", || {
            args.files.iter().try_for_each(|file| state.load(&std::path::absolute(file)?))
        });
    }
    state.load_agent(&args.own)
}

fn stop(names: &[String], signal: &str) -> Result<()> {
    let state = running()?;
    for name in names {
        ensure!(
            status::programs().contains(&name.as_str()),
            "{name} is none of the cluster's programs: {}",
            status::programs().join(", ")
        );
        let process = state.find(name).with_context(|| format!("{name} does not run"))?;
        run::judge(&format!("end {name}"), || process.end(signal))?;
    }
    Ok(())
}

impl State {
    /// Whether its namespaces are there.
    fn is_held(&self) -> bool {
        self.holder.is_some_and(processes::Process::is_alive)
    }

    fn kubectl(&self) -> Result<Command> {
        self.inside(&self.kube.join("kubectl"))
    }

    /// Ends and removes everything but the logs.
    fn remove_all(&self) -> Result<()> {
        groups::end(&self.groups, &self.borrowed)?;
        // The mounts were in namespaces that have ended; one that is seen from here would be emptied with the folder.
        let mounts = namespaces::mounts_below(&self.run)?;
        ensure!(mounts.is_empty(), "the cluster's mounts are still there: unmount {}", mounts.join(", "));
        place::remove_folder(&self.run)?;
        for folder in self.folders.iter().filter(|folder| folder.exists()) {
            fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let left = groups::left(&self.groups);
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        State::remove()
    }
}
