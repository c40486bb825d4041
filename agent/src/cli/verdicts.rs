//! `tidegate verdicts`.

use std::{io::Write, process::ExitCode};

use clap::Args;

use super::{AskOptions, Output, Table, client};
use crate::{
    admin::protocol::Ask,
    verdicts::{Summary, VerdictRow},
};

/// Options of `tidegate verdicts`.
#[derive(Args, Clone, Debug)]
pub(super) struct VerdictOptions {
    /// Show each sampled verdict as it comes, until interrupted
    #[arg(long, conflicts_with = "summary")]
    follow: bool,
    /// Show the counters of all verdicts (also without this option)
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    ask: AskOptions,
}

pub(super) fn run_verdicts(options: &VerdictOptions) -> anyhow::Result<ExitCode> {
    let is_json = options.ask.output == Output::Json;
    if options.follow {
        if !is_json {
            println!(
                "{}",
                show_columns(["TIME", "DOMAIN", "HOOK", "REASON", "PROTOCOL", "SOURCE", "DESTINATION", "DECIDED BY"])
            );
        }
        client::follow(&options.ask.socket, &Ask::FollowVerdicts, |row: VerdictRow| {
            let line = if is_json { serde_json::to_string(&row)? } else { show_row(&row) };
            // A closed pipe (`| head`) is the reader's way to say enough.
            Ok(writeln!(std::io::stdout(), "{line}").is_ok())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let summary: Summary = client::ask(&options.ask.socket, &Ask::SummarizeVerdicts)?;
    if is_json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{}", to_table(&summary));
    }
    Ok(ExitCode::SUCCESS)
}

fn to_table(summary: &Summary) -> Table {
    let mut table = Table::new(["DOMAIN", "HOOK", "REASON", "REFUSED", "PACKETS", "BYTES", "DECIDED BY"]);
    for row in &summary.rows {
        table.push([
            if row.domain.is_empty() { "-".to_owned() } else { row.domain.clone() },
            row.hook.clone(),
            row.reason.clone(),
            if row.is_denial { "yes" } else { "no" }.to_owned(),
            row.packets.to_string(),
            row.bytes.to_string(),
            format!("{} {}", row.object, row.field),
        ]);
    }
    table
}

fn show_row(row: &VerdictRow) -> String {
    if row.lost > 0 {
        return format!("({} verdicts lost here: this reader is too slow)", row.lost);
    }
    let address =
        |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let (source, destination) = (address(row.source), address(row.destination));
    let decided = format!("{} {}", row.object, row.field);
    let time = row.time.to_string();
    show_columns([&time, &row.domain, &row.hook, &row.reason, &row.protocol, &source, &destination, &decided])
}

/// Fixed widths: a stream cannot know its longest cell.
fn show_columns(cells: [&str; 8]) -> String {
    let [time, domain, hook, reason, protocol, source, destination, decided] = cells;
    format!("{time:10}  {domain:12}  {hook:5}  {reason:18}  {protocol:8}  {source:21}  {destination:21}  {decided}")
        .trim_end()
        .to_owned()
}
