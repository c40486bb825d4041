//! `tidegate verdicts`.

use std::{io::Write, net::SocketAddr, process::ExitCode};

use clap::Args;
use ipnet::IpNet;
use tidegate_kernel::Reason;

use super::{AskOptions, Output, Table, client};
use crate::{
    admin::protocol::Ask,
    verdicts::{Filter, Summary, VerdictRow},
};

/// Options of `tidegate verdicts`.
#[derive(Args, Clone, Debug)]
pub(super) struct VerdictOptions {
    /// Show each sampled verdict as it comes, until interrupted
    #[arg(long, conflicts_with_all = ["summary", "interval", "count"])]
    follow: bool,
    /// Show the counters of all verdicts and the sources seen most (also without this option)
    #[arg(long)]
    summary: bool,
    /// A summary of every so many seconds, with rates, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    interval: Option<u32>,
    /// End after so many intervals
    #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only verdicts of this domain
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Only verdicts with this reason
    #[arg(long, value_name = "NAME", value_parser = parse_reason)]
    reason: Option<String>,
    /// Only sources with this address or in this prefix
    #[arg(long, value_name = "ADDR|PREFIX", value_parser = parse_prefix)]
    src: Option<IpNet>,
    #[command(flatten)]
    ask: AskOptions,
}

fn parse_reason(text: &str) -> Result<String, String> {
    if Reason::ALL.iter().any(|reason| reason.name() == text) {
        return Ok(text.to_owned());
    }
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    Err(format!("the reasons are {}", names.join(", ")))
}

fn parse_prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let net: IpNet = text.parse().map_err(|_| "write it like 192.0.2.7 or 2001:db8::/32".to_owned())?;
    Ok(net.trunc())
}

pub(super) fn run_verdicts(options: &VerdictOptions) -> anyhow::Result<ExitCode> {
    let filter = Filter { domain: options.domain.clone(), reason: options.reason.clone(), source: options.src };
    let is_json = options.ask.output == Output::Json;
    let socket = &options.ask.socket;
    if options.follow {
        if !is_json {
            println!("{}", show_columns(COLUMNS));
        }
        client::follow(socket, &Ask::FollowVerdicts(filter), |row: VerdictRow| {
            say(&if is_json { serde_json::to_string(&row)? } else { show_row(&row) })
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(interval) = options.interval else {
        let summary: Summary = client::ask(socket, &Ask::SummarizeVerdicts { filter, interval: None })?;
        let text = if is_json { serde_json::to_string_pretty(&summary)? } else { show_summary(&summary) };
        say(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut shown = 0;
    client::follow(socket, &Ask::SummarizeVerdicts { filter, interval: Some(interval) }, |summary: Summary| {
        shown += 1;
        // A line each: programs read them as they come.
        let is_read = say(&if is_json { serde_json::to_string(&summary)? } else { show_summary(&summary) })?;
        Ok(is_read && options.count.is_none_or(|count| shown < count))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a line; false when nobody reads any more: a closed pipe (`| head`) is the reader's way to say enough.
fn say(line: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    Ok(writeln!(out, "{line}").and_then(|()| out.flush()).is_ok())
}

fn show_summary(summary: &Summary) -> String {
    let name = |domain: &str| if domain.is_empty() { "-".to_owned() } else { domain.to_owned() };
    let rate = |rate: Option<f64>| rate.map(|rate| format!("{rate:.1}")).unwrap_or_default();
    let mut verdicts =
        Table::new(["DOMAIN", "HOOK", "REASON", "REFUSED", "PACKETS", "BYTES", "PER SECOND", "DECIDED BY"]);
    for row in &summary.rows {
        verdicts.push([
            name(&row.domain),
            row.hook.clone(),
            row.reason.clone(),
            if row.is_denial { "yes" } else { "no" }.to_owned(),
            row.packets.to_string(),
            row.bytes.to_string(),
            rate(row.packets_per_second),
            format!("{} {}", row.object, row.field).trim().to_owned(),
        ]);
    }
    let mut sources = Table::new(["DOMAIN", "REASON", "SOURCE", "SAMPLES", "SHARE", "PER SECOND"]);
    for row in &summary.sources {
        let error = if row.error > 0 { format!(" (-{})", row.error) } else { String::new() };
        sources.push([
            name(&row.domain),
            row.reason.clone(),
            show_prefix(&row.source),
            format!("{}{error}", row.samples),
            format!("{:.0} %", row.share * 100.0),
            rate(row.packets_per_second),
        ]);
    }
    let samples = &summary.samples;
    let heading = summary.seconds.map(|seconds| format!("{seconds:.1} s\n")).unwrap_or_default();
    format!(
        "{heading}{verdicts}\nSources seen most, by samples (read {}, beyond the budget {}, lost {})\n{sources}",
        samples.seen, samples.over_budget, samples.lost
    )
}

/// One address without its length.
fn show_prefix(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.to_string() }
}

const COLUMNS: [&str; 10] =
    ["TIME (UTC)", "DOMAIN", "HOOK", "REASON", "PROTOCOL", "SOURCE", "DESTINATION", "INTERFACE", "BYTES", "DECIDED BY"];

fn show_row(row: &VerdictRow) -> String {
    if row.lost > 0 {
        return format!("({} verdicts lost here: this reader is too slow)", row.lost);
    }
    let address = |address: Option<SocketAddr>| match address {
        Some(address) if row.icmp.is_some() => address.ip().to_string(),
        Some(address) => address.to_string(),
        None => String::new(),
    };
    let (source, destination) = (address(row.source), address(row.destination));
    let protocol = match row.icmp {
        Some((kind, code)) => format!("ICMP {kind}/{code}"),
        None => format!("{} {}", row.protocol, row.tcp_flags),
    };
    let vlan = if row.vlan == 0 { String::new() } else { format!(" vlan {}", row.vlan) };
    let bytes = if row.length == 0 { String::new() } else { row.length.to_string() };
    show_columns([
        &show_time(row.time),
        &row.domain,
        &row.hook,
        &row.reason,
        &protocol,
        &source,
        &destination,
        &format!("{}{vlan}", row.interface),
        &bytes,
        &format!("{} {}", row.object, row.field),
    ])
}

/// Time of day, to the millisecond.
fn show_time(seconds: f64) -> String {
    let millis = (seconds * 1000.0) as u64;
    let (second, minute, hour) = (millis / 1000 % 60, millis / 60_000 % 60, millis / 3_600_000 % 24);
    format!("{hour:02}:{minute:02}:{second:02}.{:03}", millis % 1000)
}

/// Fixed widths: a stream cannot know its longest cell.
fn show_columns(cells: [&str; 10]) -> String {
    let [time, domain, hook, reason, protocol, source, destination, interface, bytes, decided] = cells;
    format!(
        "{time:12}  {domain:12}  {hook:5}  {reason:18}  {protocol:10}  {source:21}  {destination:21}  {interface:9}  {bytes:>5}  {decided}"
    )
    .trim_end()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_before_it_is_asked() {
        assert_eq!(parse_prefix("192.0.2.7/24").unwrap().to_string(), "192.0.2.0/24");
        assert_eq!(parse_prefix("::ffff:192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert!(parse_prefix("public").is_err());
        assert!(parse_reason("source_denied").is_ok());
        assert!(parse_reason("nonsense").unwrap_err().contains("rate_source"));
    }

    #[test]
    fn a_row_shows_what_is_needed_to_find_the_flow() {
        let row = VerdictRow {
            time: 1_795_452_000.5 + 61.0,
            domain: "public".into(),
            hook: "admit".into(),
            reason: "source_denied".into(),
            source: Some("192.0.2.7:40000".parse().unwrap()),
            destination: Some("203.0.113.1:443".parse().unwrap()),
            protocol: "TCP".into(),
            tcp_flags: "S".into(),
            interface: "wan0".into(),
            vlan: 100,
            length: 60,
            ..VerdictRow::default()
        };
        let line = show_row(&row);
        for part in ["192.0.2.7:40000", "203.0.113.1:443", "TCP S", "wan0 vlan 100", "60", ":01.500"] {
            assert!(line.contains(part), "{part} is missing: {line}");
        }
        let ping = VerdictRow { icmp: Some((8, 0)), source: Some("192.0.2.7:0".parse().unwrap()), ..row };
        assert!(show_row(&ping).contains("ICMP 8/0") && !show_row(&ping).contains(":0 "), "{}", show_row(&ping));
    }
}
