//! `tidegate status`.

use std::process::ExitCode;

use clap::Args;

use super::{AskOptions, EXIT_NO, Output, Table, client};
use crate::admin::{
    protocol::Ask,
    report::{ConditionReport, GatewayReport, StatusReport},
};

/// `tidegate status`.
#[derive(Args, Clone, Debug)]
pub(super) struct StatusOptions {
    #[command(flatten)]
    ask: AskOptions,
    /// Ask only whether the agent answers: says nothing, and ready or not is the same (a container's startup probe)
    #[arg(long)]
    alive: bool,
}

pub(super) fn run_status(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let report: StatusReport = client::ask(&options.ask.socket, &Ask::Status)?;
    if options.alive {
        return Ok(ExitCode::SUCCESS);
    }
    match options.ask.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print_report(&report),
    }
    Ok(if report.readiness.is_ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

fn print_report(report: &StatusReport) {
    let ready = if report.readiness.is_ready { "ready" } else { "NOT READY" };
    let kernel = if report.kernel.is_on { "on" } else { "off" };
    println!(
        "node {}, instance {}, version {}, up {} s, kernel tier {kernel}: {ready}",
        report.node, report.instance, report.version, report.uptime_seconds
    );
    print_list("waiting for", &report.readiness.waiting);
    print_list("not enforced on this host", &report.kernel.degraded);
    print_list("kernel tier", &report.kernel.problems);

    print_table("Domains", domains(report));
    for domain in &report.domains {
        print_list(&format!("{}: not enforced", domain.name), &domain.unenforced);
        print_list(&format!("{}: not applied", domain.name), &domain.failures);
    }
    print_table("Gateways", gateways("GATEWAY", &report.gateways));
    print_table("ListenerSets", gateways("LISTENERSET", &report.listener_sets));
    print_table("Routes", routes(report));
    print_table("Objects with something to say", objects(report));
    println!(
        "\nSource: {} files, {} objects, {} problems",
        report.source.files,
        report.source.objects,
        report.source.problems.len()
    );
    for problem in &report.source.problems {
        println!("  {problem}");
    }
    for name in report.names.iter().filter(|name| name.error.is_some()) {
        let kept: Vec<String> = name.addresses.iter().map(ToString::to_string).collect();
        let error = name.error.as_deref().unwrap_or_default();
        println!("  error: {} cannot be resolved ({error}); in use: [{}]", name.name, kept.join(", "));
    }
}

fn domains(report: &StatusReport) -> Table {
    let mut table =
        Table::new(["NAME", "NICS", "ADDRESSES", "FRONTENDS", "WANTED", "KERNEL", "WORKER", "PID", "UID", "RESTARTS"]);
    for domain in &report.domains {
        let nics = domain.interfaces.iter().map(|nic| format!("{} ({})", nic.name, nic.attach));
        table.push([
            domain.name.clone(),
            nics.collect::<Vec<_>>().join(", "),
            domain.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            domain.frontends.to_string(),
            domain.wanted.to_string(),
            domain.kernel.to_string(),
            domain.worker.to_string(),
            domain.worker_pid.map_or("-".to_owned(), |pid| pid.to_string()),
            domain.worker_uid.map_or("-".to_owned(), |uid| uid.to_string()),
            domain.restarts.to_string(),
        ]);
    }
    table
}

fn gateways(title: &'static str, reports: &[GatewayReport]) -> Table {
    let mut table = Table::new([title, "DOMAIN", "LISTENER", "ADDRESSES", "ROUTES", "CONDITIONS"]);
    for gateway in reports {
        let addresses = gateway.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let domain = gateway.domain.clone().unwrap_or_else(|| "-".to_owned());
        table.push([gateway.name.clone(), domain, String::new(), addresses, String::new(), show(&gateway.conditions)]);
        for listener in &gateway.listeners {
            let routes = listener.attached_routes.to_string();
            table.push([
                String::new(),
                String::new(),
                listener.name.clone(),
                String::new(),
                routes,
                show(&listener.conditions),
            ]);
        }
    }
    table
}

fn routes(report: &StatusReport) -> Table {
    let mut table = Table::new(["ROUTE", "PARENT", "CONDITIONS"]);
    for route in &report.routes {
        for parent in &route.parents {
            table.push([format!("{}/{}", route.kind, route.name), parent.parent.clone(), show(&parent.conditions)]);
        }
    }
    table
}

fn objects(report: &StatusReport) -> Table {
    let mut table = Table::new(["OBJECT", "CONDITIONS"]);
    for object in &report.objects {
        table.push([format!("{}/{}", object.kind, object.name), show(&object.conditions)]);
    }
    table
}

/// Good conditions by name, others with the reason.
fn show(conditions: &[ConditionReport]) -> String {
    let shown = conditions.iter().filter(|condition| !condition.is_good || condition.status).map(|condition| {
        if condition.is_good && condition.status {
            condition.type_.clone()
        } else {
            format!("{}={} ({}: {})", condition.type_, condition.status, condition.reason, condition.message)
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn print_table(title: &str, table: Table) {
    if !table.is_empty() {
        print!("\n{title}\n{table}");
    }
}

fn print_list(title: &str, lines: &[String]) {
    for line in lines {
        println!("  {title}: {line}");
    }
}
