//! Options of the processes: what `tidegate run` is told on its command line and passes on to the agent unchanged.
//!
//! Every option has an environment variable of the same meaning. No behaviour lives here.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, ValueEnum};

/// Options of `tidegate run`, and of the agent that it starts.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Where objects come from: `directory=DIR` reads and watches every YAML file below DIR; `kube` watches the cluster that
    /// KUBECONFIG names or that this pod runs in, `kube=CONTEXT` the one of that context
    #[arg(long, env = "TIDEGATE_SOURCE", value_name = "SOURCE")]
    pub source: SourceOption,

    /// Name of this instance: keeps BPF pins, cgroups and routes of several instances on one host apart
    #[arg(long, env = "TIDEGATE_INSTANCE", value_name = "NAME", default_value = "default", value_parser = parse_instance)]
    pub instance: String,

    /// Name of this node; the host name when left out
    #[arg(long, env = "TIDEGATE_NODE", value_name = "NAME")]
    pub node: Option<String>,

    /// Address of this node, for domains with `addresses: {node: InternalIP}`; repeatable; its first IPv4 and IPv6 address when left out
    #[arg(long = "node-address", env = "TIDEGATE_NODE_ADDRESS", value_name = "IP", value_delimiter = ',')]
    pub node_addresses: Vec<IpAddr>,

    /// Address of the admin server (/metrics, /healthz, /readyz); it has no authentication: keep it on loopback
    #[arg(long, env = "TIDEGATE_ADMIN", value_name = "ADDR", default_value_t = DEFAULT_ADMIN)]
    pub admin: SocketAddr,

    /// Unix socket for `tidegate status`, `explain` and `verdicts`
    #[arg(long, env = "TIDEGATE_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Where bpffs is mounted; mounted there when it is not
    #[arg(long, env = "TIDEGATE_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Unix socket by which the next `tidegate run` of this instance takes over: it gets listening sockets, workers and kernel
    /// programs, so that no connection is lost. Both need the same path, in a folder that only root opens. Without it a second
    /// one of an instance refuses to start
    #[arg(long, env = "TIDEGATE_HANDOVER", value_name = "PATH")]
    pub handover: Option<PathBuf>,

    /// Whether packets are judged in the kernel
    #[arg(long, env = "TIDEGATE_KERNEL", value_enum, default_value_t = KernelOption::Auto)]
    pub kernel: KernelOption,

    /// User id of workers: domain N runs as this plus N
    #[arg(long, env = "TIDEGATE_WORKER_UID_BASE", value_name = "UID", default_value_t = 64_000)]
    pub worker_uid_base: u32,

    /// Whether workers write an access log (JSON lines on standard output)
    #[arg(long, env = "TIDEGATE_ACCESS_LOG", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,

    /// What is logged, e.g. `info` or `info,tidegate::supervise=debug`
    #[arg(long, env = "TIDEGATE_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Form of log lines on standard error
    #[arg(long, env = "TIDEGATE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// A further controller name whose GatewayClasses are served; may be given several times
    #[arg(long = "controller-name", env = "TIDEGATE_CONTROLLER_NAME", value_name = "NAME", value_delimiter = ',')]
    pub controller_names: Vec<String>,
}

/// Options of `tidegate worker`; init makes them.
#[derive(Args, Clone, Debug)]
pub struct WorkerOptions {
    /// Domain that the worker serves
    pub domain: String,
    /// Shards to run
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
    /// Cores to pin the shards to, in order
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<u16>,
    /// Runs as init's own user, because that one may not change ids
    #[arg(long = "unprivileged")]
    pub is_unprivileged: bool,
    /// What is logged
    #[arg(long, default_value = "info")]
    pub log: String,
    /// Form of log lines on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// `spec.controllerName` of the GatewayClasses that are always served.
pub const CONTROLLER_NAME: &str = "tidegate.dev/gateway-controller";

/// Admin address unless told otherwise.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9590);

/// CLI socket unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tidegate/tidegate.sock";

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOption {
    /// YAML files below a folder.
    Directory(PathBuf),
    /// A Kubernetes cluster, by a context of the kubeconfig; without one, by its own context or the pod's service account.
    Kube(Option<String>),
}

/// Why `--source` is not understood.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a source: write directory=DIR, kube or kube=CONTEXT")]
pub struct SourceError(String);

impl FromStr for SourceOption {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.split_once('=') {
            Some(("directory", folder)) if !folder.is_empty() => Ok(Self::Directory(folder.into())),
            Some(("kube", context)) if !context.is_empty() => Ok(Self::Kube(Some(context.to_owned()))),
            None if text == "kube" => Ok(Self::Kube(None)),
            _ => Err(SourceError(text.to_owned())),
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl LogFormat {
    /// As written on the command line.
    pub fn as_text(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Whether the kernel tier is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelOption {
    /// When everything it needs is there; else as `off`, with a warning that names what is missing
    Auto,
    /// Refuse to start without it
    Require,
    /// Serve on ordinary bound sockets: no admission, no steering, no guard
    Off,
}

impl RunOptions {
    /// Name of this node: the option, else the host name.
    pub fn node_name(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "localhost".into())
        })
    }

    /// Values of `GatewayClass.spec.controllerName` that are served.
    pub fn controllers(&self) -> Vec<String> {
        std::iter::once(CONTROLLER_NAME.to_owned()).chain(self.controller_names.clone()).collect()
    }

    /// The command line that gives the agent these options, less the program's name.
    pub fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let source = match &self.source {
            SourceOption::Directory(folder) => {
                let mut source = std::ffi::OsString::from("directory=");
                source.push(folder);
                source
            }
            SourceOption::Kube(None) => "kube".into(),
            SourceOption::Kube(Some(context)) => format!("kube={context}").into(),
        };
        let kernel = match self.kernel {
            KernelOption::Auto => "auto",
            KernelOption::Require => "require",
            KernelOption::Off => "off",
        };
        let mut arguments: Vec<std::ffi::OsString> = vec![
            "--source".into(),
            source,
            "--instance".into(),
            self.instance.clone().into(),
            "--admin".into(),
            self.admin.to_string().into(),
            "--socket".into(),
            self.socket.clone().into(),
            "--bpffs".into(),
            self.bpffs.clone().into(),
            "--kernel".into(),
            kernel.into(),
            "--worker-uid-base".into(),
            self.worker_uid_base.to_string().into(),
            "--access-log".into(),
            self.access_log.to_string().into(),
            "--log".into(),
            self.log.clone().into(),
            "--log-format".into(),
            self.log_format.as_text().into(),
        ];
        for address in &self.node_addresses {
            arguments.extend(["--node-address".into(), address.to_string().into()]);
        }
        for name in &self.controller_names {
            arguments.extend(["--controller-name".into(), name.into()]);
        }
        if let Some(path) = &self.handover {
            arguments.extend(["--handover".into(), path.clone().into()]);
        }
        if let Some(node) = &self.node {
            arguments.extend(["--node".into(), node.into()]);
        }
        arguments
    }
}

/// The name becomes a folder of bpffs and of the cgroup tree: a DNS label is safe in both.
pub fn parse_instance(text: &str) -> Result<String, String> {
    let is_label = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-');
    if is_label { Ok(text.to_owned()) } else { Err("write lower-case letters, digits and '-', at most 63".into()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: RunOptions,
    }

    #[test]
    fn the_agent_is_told_what_init_was_told() {
        let given = [
            "x",
            "--source",
            "directory=/a b",
            "--instance",
            "t-1",
            "--node",
            "n",
            "--node-address",
            "10.0.0.1,2001:db8::1",
            "--admin",
            "127.0.0.1:1",
            "--socket",
            "/s",
            "--bpffs",
            "/b",
            "--handover",
            "/h/door",
            "--kernel",
            "require",
            "--worker-uid-base",
            "7",
            "--access-log",
            "false",
            "--log",
            "debug",
            "--log-format",
            "json",
            "--controller-name",
            "a.example/one,b.example/two",
        ];
        let first = Cli::parse_from(given).options;
        let arguments = std::iter::once("x".into()).chain(first.to_arguments());
        let second = Cli::parse_from(arguments).options;
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }

    #[test]
    fn sources_are_read_as_they_are_written() {
        for text in ["directory=/a", "kube", "kube=prod"] {
            let options = Cli::parse_from(["x", "--source", text]).options;
            assert_eq!(options.to_arguments()[1], text);
        }
        for text in ["", "kube=", "directory=", "directory", "etcd"] {
            assert!(text.parse::<SourceOption>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn an_instance_cannot_leave_its_folder() {
        for name in ["", "..", "a/b", "-a", "A"] {
            assert!(parse_instance(name).is_err(), "{name} was taken");
        }
    }
}
