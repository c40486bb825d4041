//! The longest way of a packet that is let in: a million prefixes on each list, and every limit that a domain can have.
//!
//! One packet again and again finds everything in the processor's caches. So the same is asked with another source for each
//! packet, one run each, less what a packet that `admit` passes by its type takes in the same way: what a call alone costs
//! falls out, and look-ups miss the caches as they would between other packets.

use std::{net::Ipv4Addr, path::Path};

use anyhow::ensure;
use serde_json::{Value, json};
use tidegate_kernel::{Desired, DomainDesired, Interface, Kernel, KernelConfig, detach_all, mount_bpffs};
use tidegate_model::{Admission, DomainId, FrontendKey, RateLimit, SourceList, Transport, domain::Frontends};

use crate::{
    Effort,
    kernel::{REPEAT, XDP_PASS, arp, packet},
    report::Report,
    rounds::median,
    sources::{BPFFS, KINDS, Random, pin_to_core},
};

/// Prefixes on each list.
const PREFIXES: usize = 1_000_000;
/// Sources of the run with another one for each packet.
const SOURCES: usize = 100_000;
/// Limits that nothing reaches: the most that can be asked for.
const FREELY: RateLimit = RateLimit { rate: 1_000_000, burst: 1_000_000_000 };
const FRONTEND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PORT: u16 = 443;

/// Measures and adds what came out to the report.
pub(crate) fn measure(report: &mut Report, effort: Effort) -> anyhow::Result<Value> {
    mount_bpffs(Path::new(BPFFS))?;
    pin_to_core()?;
    let instance = format!("bench-worst-{}", std::process::id());
    let (mut kernel, _) = Kernel::open(&KernelConfig::new(BPFFS, &instance))?;
    let result = run(&mut kernel, report, effort);
    drop(kernel);
    detach_all(Path::new(BPFFS), &instance)?;
    result
}

fn run(kernel: &mut Kernel, report: &mut Report, effort: Effort) -> anyhow::Result<Value> {
    let nic = nix::net::if_::if_nametoindex("lo")?;
    let mut random = Random::new(0x3015);
    let sources: Vec<Ipv4Addr> = (0..SOURCES).map(|_| random.v4()).collect();
    // Sources stand on the allow list and not on the deny list.
    let allow = SourceList::from_iter(sources.iter().map(|source| ipnet::IpNet::from(std::net::IpAddr::from(*source))));
    let rest = random.list(&KINDS[1], PREFIXES - SOURCES);
    let allow = SourceList::from_iter(allow.iter().chain(rest.iter()));
    let deny = random.list(&KINDS[1], PREFIXES);
    let sources: Vec<Ipv4Addr> =
        sources.into_iter().filter(|source| deny.find_longest((*source).into()).is_none()).collect();
    let domain = DomainDesired {
        interfaces: vec![Interface::untagged(nic)],
        admission: Admission {
            deny,
            allow: Some(allow),
            per_source: Some(FREELY),
            total: Some(FREELY),
            open_per_source: Some(1_000_000),
            open_total: Some(1_000_000),
            ..Admission::default()
        },
        frontends: Frontends {
            exclusive: vec![FRONTEND.into()],
            keys: vec![FrontendKey { addr: FRONTEND.into(), port: PORT, transport: Transport::Tcp }],
        },
        ..DomainDesired::default()
    };
    let applied = kernel.apply(&Desired { domains: [(DomainId(1), domain)].into() })?;
    ensure!(applied.failures.is_empty(), "{:?}", applied.failures);
    let frames: Vec<Vec<u8>> = sources.iter().map(|source| packet(source.octets(), FRONTEND.octets(), PORT)).collect();
    let (mut same, mut others, mut passed) = (Vec::new(), Vec::new(), Vec::new());
    let nothing = arp();
    for _ in 0..effort.rounds {
        let run = kernel.run_admit(&frames[0], nic, REPEAT)?;
        ensure!(run.returned == XDP_PASS, "returned {}", run.returned);
        same.push(run.duration.as_nanos() as f64);
        let (mut total, mut base) = (Vec::with_capacity(frames.len()), Vec::with_capacity(frames.len()));
        for frame in &frames {
            let run = kernel.run_admit(frame, nic, 1)?;
            ensure!(run.returned == XDP_PASS, "returned {}", run.returned);
            total.push(run.duration.as_nanos() as f64);
            base.push(kernel.run_admit(&nothing, nic, 1)?.duration.as_nanos() as f64);
        }
        others.push(median(total));
        passed.push(median(base));
    }
    let net = median(others.iter().copied()) - median(passed.iter().copied());
    report.note(format!(
        "The longest way of a SYN that is let in (both lists with {PREFIXES} prefixes, rates and limits of open connections of source and \
         domain): {:.0} ns for one packet again and again; {net:.0} ns more than ARP takes when each packet has another source of {} and \
         is run alone, as the median packet. The aim is 250 ns.",
        median(same.iter().copied()),
        frames.len()
    ));
    Ok(json!({"same": same, "others": others, "arp": passed}))
}
