//! `admit` by `BPF_PROG_TEST_RUN` on the program and the maps that a running agent has pinned.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, ensure};
use serde_json::json;
use tidegate_lab::{Lab, objects, process};

use crate::{
    Effort,
    report::Report,
    rounds::median,
    scene::{self, PUBLIC, Scene},
    worst,
};

/// Packets of one measurement: enough for the average to be stable, short enough to be repeated.
pub(crate) const REPEAT: u32 = 1_000_000;
/// Prefixes on the deny list of the large case.
const PREFIXES: u32 = 100_000;

const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Report> {
    let mut report = Report::new(
        "kernel",
        "`admit`, nanoseconds for each packet",
        format!(
            "BPF_PROG_TEST_RUN (bpftool prog run, repeat {REPEAT}) of the program that the agent has attached, with its maps, in the \
             gateway's namespace, ingress interface wan0; pinned to core 1; one packet repeated, so caches are warm; median of {} runs. \
             The verdict of each packet is checked.",
            effort.rounds
        ),
    );
    report.columns(&["packet", "verdict", "deny list of 2", &format!("deny list of {PREFIXES}")]);
    let cases = [
        ("IPv4 TCP for another address", packet([198, 51, 100, 10], [198, 51, 100, 1], 80), XDP_PASS),
        ("IPv4 TCP, admitted", packet([198, 51, 100, 10], octets(PUBLIC)?, 80), XDP_PASS),
        ("IPv4 TCP, source denied", packet([192, 0, 2, 66], octets(PUBLIC)?, 80), XDP_DROP),
        ("IPv4 TCP, no frontend", packet([198, 51, 100, 10], octets(PUBLIC)?, 22), XDP_DROP),
        ("IPv4 TCP, wrong interface", packet([198, 51, 100, 10], octets(scene::PRIVATE)?, 80), XDP_DROP),
        ("ARP", arp(), XDP_PASS),
    ];
    let mut results = Vec::new();
    for prefixes in [2, PREFIXES] {
        results.push(with_list(prefixes, &cases, effort)?);
    }
    for (index, (name, _, verdict)) in cases.iter().enumerate() {
        let verdict = if *verdict == XDP_DROP { "drop" } else { "pass" };
        let cell = |column: usize| format!("{:.0} ns", median(results[column][index].iter().copied()));
        report.push(vec![(*name).into(), verdict.into(), cell(0), cell(1)]);
    }
    let worst = worst::measure(&mut report, effort)?;
    report.raw(json!({"few": results[0], "many": results[1], "worst": worst}));
    Ok(report)
}

/// Nanoseconds of each case, several runs each.
fn with_list(prefixes: u32, cases: &[(&str, Vec<u8>, u32)], effort: Effort) -> anyhow::Result<Vec<Vec<f64>>> {
    let lab = Lab::create()?;
    let _scene = Scene::build(&lab)?;
    Scene::write_catch_all(&lab, "public")?;
    let list: Vec<String> = std::iter::once("192.0.2.0/24".to_owned())
        .chain(
            (0..prefixes - 1)
                .map(|index| format!("{}.{}.{}.0/24", 11 + (index >> 16), (index >> 8) & 255, index & 255)),
        )
        .collect();
    let base = fs::read_to_string(lab.config().join("base.yaml"))?;
    let denied = format!("shards: 1\n  sources: {{deny: [{}]}}\n", list.join(", "));
    lab.write("base.yaml", &base.replacen("shards: 1\n", &denied, 1))?;
    lab.write("extra.yaml", &objects::namespace("extra", ""))?;
    let _agent = scene::start(&lab)?;
    let program = find_admit(&lab)?;
    let interface = interface_index(&lab)?;
    cases
        .iter()
        .map(|(name, packet, verdict)| {
            (0..effort.rounds)
                .map(|_| run(&lab, &program, packet, interface, *verdict).with_context(|| (*name).to_owned()))
                .collect()
        })
        .collect()
}

/// One measurement, in nanoseconds for each packet.
fn run(lab: &Lab, program: &str, packet: &[u8], interface: u32, verdict: u32) -> anyhow::Result<f64> {
    let folder: PathBuf = lab.folder().join("run");
    let (data, context) = (folder.join("packet"), folder.join("context"));
    fs::write(&data, packet)?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let fields = [0, u32::try_from(packet.len())?, 0, interface, 0, 0];
    fs::write(&context, fields.iter().flat_map(|field| field.to_ne_bytes()).collect::<Vec<u8>>())?;
    let mut command = Command::new("taskset");
    command.args([
        "-c",
        crate::load::PROXY_CORE,
        "bpftool",
        "prog",
        "run",
        "id",
        program,
        "repeat",
        &REPEAT.to_string(),
    ]);
    command.arg("data_in").arg(&data).arg("ctx_in").arg(&context);
    let text = lab.gateway.call(|| process::run(&mut command))?;
    // Return value: 2, duration (average): 61ns
    let number = |after: &str| {
        let rest = text.split(after).nth(1)?;
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    };
    let returned = number("Return value:").with_context(|| text.clone())?;
    ensure!(returned == verdict, "returned {returned}, expected {verdict}");
    Ok(f64::from(number("duration (average):").with_context(|| text.clone())?))
}

/// Id of the XDP program on wan0.
pub(crate) fn find_admit(lab: &Lab) -> anyhow::Result<String> {
    let text = lab.gateway.call(|| process::run(Command::new("bpftool").args(["-j", "net", "show", "dev", "wan0"])))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let id = value[0]["xdp"][0]["id"].as_u64().with_context(|| format!("no XDP program on wan0: {text}"))?;
    Ok(id.to_string())
}

fn interface_index(lab: &Lab) -> std::io::Result<u32> {
    lab.gateway.call(|| nix::net::if_::if_nametoindex("wan0")).map_err(std::io::Error::from)
}

fn octets(address: &str) -> anyhow::Result<[u8; 4]> {
    Ok(address.parse::<std::net::Ipv4Addr>()?.octets())
}

/// A SYN: Ethernet, IPv4, TCP. Checksums are the stack's to look at, not `admit`'s.
pub(crate) fn packet(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    bytes.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(40_000u16.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(60, 0);
    bytes
}

pub(crate) fn arp() -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 2, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.resize(60, 0);
    bytes
}
