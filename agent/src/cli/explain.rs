//! `tidegate explain`.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    str::FromStr,
};

use clap::Args;

use super::{AskOptions, EXIT_CONTRADICTED, EXIT_NO, Output, Table, client};
use crate::{
    admin::protocol::{Ask, Payload, Question, RequestQuestion},
    explain::{Explanation, KernelAnswer},
};

/// Source port when none is given: any will do, it decides nothing.
const ANY_PORT: u16 = 40_000;

/// Options of `tidegate explain`.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainOptions {
    /// Source address of the packet, with a port if you like
    #[arg(long, value_name = "ADDR[:PORT]")]
    src: Place,
    /// Address and port that the packet is sent to (with --icmp the address alone)
    #[arg(long, value_name = "ADDR:PORT")]
    dst: Place,
    /// Interface that it arrives on; the domain's own when left out
    #[arg(long, value_name = "NAME")]
    iface: Option<String>,
    /// A UDP datagram in place of a TCP connection
    #[arg(long)]
    udp: bool,
    /// An ICMP message in place of a TCP connection: an echo request, or this type and code
    #[arg(long, value_name = "TYPE[/CODE]", num_args = 0..=1, default_missing_value = "echo", conflicts_with_all = ["udp", "host"])]
    icmp: Option<IcmpMessage>,
    /// Host of a request in the connection (SNI too): explains routing as well
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Path of the request, with a query if you like
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// Method of the request
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// Header field of the request; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<(String, String)>,
    #[command(flatten)]
    ask: AskOptions,
}

/// An address, with a port or without.
#[derive(Clone, Copy, Debug)]
struct Place {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let with_port: SocketAddr =
            text.parse().map_err(|_| "write an address such as 192.0.2.7 or [2001:db8::7]:40000".to_owned())?;
        Ok(Self { address: with_port.ip(), port: Some(with_port.port()) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IcmpMessage {
    Echo,
    Other { kind: u8, code: u8 },
}

impl FromStr for IcmpMessage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "echo" {
            return Ok(Self::Echo);
        }
        let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
        match (kind.parse(), code.parse()) {
            (Ok(kind), Ok(code)) => Ok(Self::Other { kind, code }),
            _ => Err("write echo, or a type and code such as 3/4".to_owned()),
        }
    }
}

impl ExplainOptions {
    fn payload(&self) -> Payload {
        match self.icmp {
            None if self.udp => Payload::Udp,
            None => Payload::Tcp,
            // Numbers of an echo request in ICMP and ICMPv6.
            Some(IcmpMessage::Echo) => {
                Payload::Icmp { kind: if self.dst.address.is_ipv4() { 8 } else { 128 }, code: 0 }
            }
            Some(IcmpMessage::Other { kind, code }) => Payload::Icmp { kind, code },
        }
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn run_explain(options: &ExplainOptions) -> anyhow::Result<ExitCode> {
    let has_request = options.host.is_some() || options.path != "/" || !options.header.is_empty();
    let payload = options.payload();
    let port = match (options.dst.port, payload) {
        (Some(port), _) => port,
        (None, Payload::Icmp { .. }) => 0,
        (None, _) => {
            let words = format!("--dst {}: name a port, or add --icmp\n", options.dst.address);
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, words).exit()
        }
    };
    let destination = SocketAddr::new(options.dst.address, port);
    let question = Question {
        source: options.src.address,
        source_port: options.src.port.unwrap_or(ANY_PORT),
        destination,
        payload,
        interface: options.iface.clone(),
        request: has_request.then(|| RequestQuestion {
            host: options.host.clone().unwrap_or_else(|| destination.ip().to_string()),
            path: options.path.clone(),
            method: options.method.clone(),
            headers: options.header.clone(),
        }),
    };
    let explanation: Explanation = client::ask(&options.ask.socket, &Ask::Explain(question))?;
    match options.ask.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Output::Table => print_explanation(&explanation),
    }
    let is_refused = explanation.is_denied || explanation.steps.iter().any(|step| step.is_denial);
    Ok(if explanation.is_contradicted() {
        ExitCode::from(EXIT_CONTRADICTED)
    } else if is_refused {
        ExitCode::from(EXIT_NO)
    } else {
        ExitCode::SUCCESS
    })
}

fn print_explanation(explanation: &Explanation) {
    let mut table = Table::new(["", "STEP", "OUTCOME", "OBJECT", "FIELD", "VALUE"]);
    for step in &explanation.steps {
        let mark = if step.is_deciding { ">" } else { "" }.to_owned();
        let outcome = if step.is_denial { format!("REFUSED: {}", step.outcome) } else { step.outcome.clone() };
        table.push([mark, step.step.clone(), outcome, step.object.clone(), step.field.clone(), step.value.clone()]);
    }
    print!("{table}");
    println!("\nverdict: {}", explanation.verdict);
    match &explanation.kernel {
        KernelAnswer::NotAsked(why) => println!("kernel:  not asked ({why})"),
        KernelAnswer::Verdicts(verdicts) => {
            for verdict in verdicts {
                let agrees = if verdict.agrees { "agrees" } else { "DISAGREES with the model" };
                println!("kernel:  {} on {} ({agrees})", verdict.reason, verdict.interface);
            }
        }
    }
    if let Some(request) = &explanation.request {
        match (&request.backend, request.status) {
            (Some(backend), _) => println!("request: to {backend}"),
            (None, Some(status)) => println!("request: answered with {status} by the proxy"),
            (None, None) => println!("request: not decided"),
        }
    }
}
