//! The command line: what there is to say and where it goes. Each command lives in its own module; `run`, `agent` and
//! `worker` are processes and live in `init`, `app` and the proxy's crate.

mod bpf;
mod client;
mod explain;
mod logging;
mod status;
mod table;
mod verdicts;
mod version;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    app, check, init,
    options::{DEFAULT_SOCKET, RunOptions, WorkerOptions},
};

pub use logging::init_logging;
pub use table::Table;
pub use version::{COMMIT, VERSION, VersionOptions};

/// Gateway API data plane for dedicated gateway nodes: packets judged in the kernel, requests proxied, domains kept apart.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 as asked; 1 failed; 2 wrong usage; 3 the answer is no (status: not ready; explain: refused); \
                          4 kernel and model disagree (explain); 78 cannot start as configured (run).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run on this node until told to stop
    #[command(
        after_help = "SIGTERM drains the workers and ends. Objects are read from --source; nothing else is written than the \
                            BPF pins of this instance and the socket."
    )]
    Run(RunOptions),
    /// Judge files without running anything: conditions of every object, errors with file and line
    #[command(
        after_help = "Exit codes: 0 everything is valid; 1 something is not (with --strict also unknown kinds and fields); 2 wrong usage."
    )]
    Check(check::CheckOptions),
    /// Show domains, Gateways, Routes and what is not applied
    #[command(after_help = "Exit codes: 0 ready; 3 something wanted is not applied; 1 no answer.")]
    Status(status::StatusOptions),
    /// Explain what happens to a packet, and to the request in it, and which object and field decide
    #[command(
        after_help = "Exit codes: 0 served; 3 refused by kernel or proxy; 4 the loaded program says something else than the model; 1 no answer."
    )]
    Explain(explain::ExplainOptions),
    /// Show the verdicts of the kernel tier: a summary, or each sampled one as it comes
    Verdicts(verdicts::VerdictOptions),
    /// Show or remove what instances have in the kernel, with or without an agent
    Bpf(bpf::BpfOptions),
    /// Print version and commit
    Version(version::VersionOptions),
    /// The agent process; started by init
    #[command(hide = true)]
    Agent(RunOptions),
    /// A worker process; started by init
    #[command(hide = true)]
    Worker(WorkerOptions),
}

/// How a command reaches the agent and shows its answer.
#[derive(Args, Clone, Debug)]
pub struct AskOptions {
    /// Socket of the agent (its --socket)
    #[arg(long, env = "TIDEGATE_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Tables for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The answer of a question that can be answered with "no".
pub const EXIT_NO: u8 = 3;

/// Model and kernel disagree.
pub const EXIT_CONTRADICTED: u8 = 4;

/// Does what the command line says.
///
/// # Errors
/// Whatever stops the command, for `main` to print.
pub fn run_command_line() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Run(options) => {
            init_logging(&options.log, options.log_format)?;
            init::run_init(options)
        }
        Command::Agent(options) => {
            init_logging(&options.log, options.log_format)?;
            app::run_agent(options)
        }
        Command::Worker(options) => app::run_worker(options),
        Command::Check(options) => check::run_check(&options),
        Command::Status(options) => status::run_status(&options),
        Command::Explain(options) => explain::run_explain(&options),
        Command::Verdicts(options) => verdicts::run_verdicts(&options),
        Command::Bpf(options) => bpf::run_bpf(&options),
        Command::Version(options) => Ok(version::run_version(&options)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_of_run_has_an_environment_variable_and_words() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for argument in run.get_arguments().filter(|argument| argument.get_id() != "help") {
            let name = argument.get_id();
            assert!(argument.get_help().is_some(), "{name} has no help");
            let variable = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert!(variable.starts_with("TIDEGATE_"), "{name} has no environment variable");
        }
    }
}
