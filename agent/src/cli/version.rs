//! `version`: which program this is.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Output;

/// Release, as the package says.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this program was built from, with `-dirty` after it when the checkout had changes beside; `None` when
/// it was built without `cargo xtask build`.
pub const COMMIT: Option<&str> = option_env!("TIDEGATE_COMMIT");

/// What `version` takes from the command line.
#[derive(Args, Debug)]
pub struct VersionOptions {
    /// A line for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Prints version and commit.
pub(super) fn run_version(options: &VersionOptions) -> ExitCode {
    match options.output {
        Output::Json => println!("{}", json!({"version": VERSION, "commit": COMMIT})),
        Output::Table => match COMMIT {
            Some(commit) => println!("tidegate {VERSION} (commit {commit})"),
            None => println!("tidegate {VERSION}"),
        },
    }
    ExitCode::SUCCESS
}
