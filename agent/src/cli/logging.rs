//! Logs of the process itself: to standard error, so that standard output is free for what was asked for.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::options::LogFormat;

/// What is left out unless asked for: the Kubernetes client logs each failed request as an error, and what follows from one
/// is said by who made it.
const QUIET: &str = "kube_client=off";

/// Sends log lines that pass `filter` (`info`, `info,tidegate::supervise=debug`) to standard error.
///
/// # Errors
/// When the filter is not understood.
pub fn init_logging(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .with_context(|| format!("--log {filter:?} is not understood; write e.g. info"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
    Ok(())
}
