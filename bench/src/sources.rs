//! Source lists: what a look-up takes by kind and length of list, beside the maps that others use, and what a change takes.

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sched::{CpuSet, sched_setaffinity};
use serde_json::json;
use tidegate_kernel::{Desired, DomainDesired, Kernel, KernelConfig, detach_all, mount_bpffs, trial};
use tidegate_model::{Admission, DomainId, SourceList};

use crate::{Effort, report::Report, rounds::median};

/// Runs of one measurement.
const REPEAT: u32 = 500_000;
const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
/// The core that programs run on.
const CORE: usize = 1;
/// Prefixes that a change replaces.
const CHANGED: usize = 1_000;
/// Changes of each kind.
const CHANGES: usize = 25;
/// Between changes: longer than a grace period, which passes in a thread of its own.
const PAUSE: Duration = Duration::from_millis(300);
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// A kind of list.
pub(crate) struct Kind {
    name: &'static str,
    /// Programs of the trial object: no look-up, table, anchors.
    programs: [Option<&'static str>; 4],
    prefix: fn(&mut Random) -> IpNet,
    /// Nanoseconds that the project aims at, by size.
    aims: [u32; 3],
}

pub(crate) const KINDS: [Kind; 3] = [
    Kind {
        name: "exact IPv4",
        programs: [Some("nothing"), Some("table_v4"), Some("trie_v4"), Some("hash_v4")],
        prefix: |random| Ipv4Net::new_assert(random.v4(), 32).into(),
        aims: [45, 70, 90],
    },
    Kind {
        name: "IPv4 prefixes",
        programs: [Some("nothing"), Some("table_v4"), Some("trie_v4"), None],
        prefix: Random::v4_prefix,
        aims: [60, 65, 70],
    },
    Kind {
        name: "IPv6 prefixes",
        programs: [Some("nothing"), Some("table_v6"), Some("trie_v6"), None],
        prefix: Random::v6_prefix,
        aims: [80, 110, 140],
    },
];

/// xorshift64*: the same lists in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Anywhere in 1.0.0.0 to 223.255.255.255.
    pub(crate) fn v4(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(0x0100_0000 + (self.next() % 0xdf00_0000) as u32)
    }

    /// Lengths about as in lists of abuse and of countries: half /24, a quarter shorter, a quarter longer.
    fn v4_prefix(&mut self) -> IpNet {
        let len = match self.next() % 16 {
            0..8 => 24,
            8 => 16,
            9 | 10 => 20,
            11 => 22,
            12 => 23,
            13 => 28,
            _ => 32,
        };
        Ipv4Net::new_assert(self.v4(), len).trunc().into()
    }

    /// In 2000::/4, seven lengths: mostly /48 and /64.
    fn v6_prefix(&mut self) -> IpNet {
        let len = match self.next() % 16 {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 44,
            4..9 => 48,
            9 | 10 => 56,
            _ => 64,
        };
        Ipv6Net::new_assert(self.v6(), len).trunc().into()
    }

    fn v6(&mut self) -> Ipv6Addr {
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        // A few thousand networks of the size that registries give, as addresses in use have.
        Ipv6Addr::from(0x2 << 124 | bits & (0xfff << 112) | bits & (u128::MAX >> 32))
    }

    /// An address in a prefix.
    fn within(&mut self, prefix: &IpNet) -> IpAddr {
        match prefix {
            IpNet::V4(prefix) => {
                Ipv4Addr::from(u32::from(prefix.addr()) | self.next() as u32 & u32::from(prefix.hostmask())).into()
            }
            IpNet::V6(prefix) => {
                let bits = u128::from(self.next()) << 64 | u128::from(self.next());
                Ipv6Addr::from(u128::from(prefix.addr()) | bits & u128::from(prefix.hostmask())).into()
            }
        }
    }

    pub(crate) fn list(&mut self, kind: &Kind, count: usize) -> SourceList {
        let mut list = SourceList::from_iter((0..count).map(|_| (kind.prefix)(self)));
        // Random prefixes come twice now and then.
        while list.len() < count {
            let missing = count - list.len();
            list.extend((0..missing).map(|_| (kind.prefix)(self)).collect::<Vec<_>>());
        }
        list
    }
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Report> {
    let mut report = Report::new(
        "sources",
        "Source lists: nanoseconds of a look-up, and milliseconds of a change",
        format!(
            "BPF_PROG_TEST_RUN (repeat {REPEAT}) of programs that draw a random key of {} in each run, half of which lie in a random \
             prefix of the list and half anywhere, pinned to core {CORE}. Net of the same program without a look-up; programs of one row \
             take turns, forwards and backwards, {} times; medians. Independent runs overlap in the processor, so a single miss of the \
             caches costs less here than on a wire. IPv4: addresses from all unicast space; prefixes half /24, the rest /16 to /32. \
             IPv6: seven lengths from /32 to /64, mostly /48 and /64. Lists are deny lists. Anchors: BPF_MAP_TYPE_HASH and \
             BPF_MAP_TYPE_LPM_TRIE with the same list, not preallocated.",
            trial::KEYS,
            effort.rounds
        ),
    );
    report.columns(&["list", "prefixes", "table", "aim", "LPM trie", "trie / table", "hash", "table memory"]);
    pin_to_core()?;
    let object = PathBuf::from(env::var_os("TIDEGATE_TRIAL_OBJECT").context("run it by `cargo xtask bench`")?);
    let mut raw = Vec::new();
    for kind in &KINDS {
        for (size, aim) in SIZES.into_iter().zip(kind.aims) {
            let (times, bytes) = look_up(&object, kind, size, effort)?;
            let base = median(times["nothing"].iter().copied());
            let net = |program: Option<&str>| Some(median(times[program?].iter().copied()) - base);
            let [_, table, trie, hash] = kind.programs.map(net);
            let table = table.context("every kind has a table")?;
            let show = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.0} ns"));
            report.push(vec![
                kind.name.to_owned(),
                size.to_string(),
                show(Some(table)),
                format!("{aim} ns"),
                show(trie),
                trie.map_or("–".to_owned(), |trie| format!("{:.1}", trie / table)),
                show(hash),
                format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64),
            ]);
            raw.push(json!({"kind": kind.name, "prefixes": size, "nanoseconds": times, "bytes": bytes}));
        }
    }
    for kind in &KINDS {
        let times = change(kind)?;
        report.note(format!(
            "{CHANGED} changed prefixes in a live million of kind \"{}\", from the call to the policy in force: median {:.1} ms, longest {:.1} ms of {CHANGES}.",
            kind.name,
            median(times.iter().copied()),
            times.iter().copied().fold(0.0, f64::max)
        ));
        raw.push(json!({"kind": kind.name, "change_ms": times}));
    }
    report.raw(json!(raw));
    Ok(report)
}

/// Keeps this thread, and so the programs that it runs, on one core.
pub(crate) fn pin_to_core() -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(CORE)?;
    Ok(sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?)
}

type Times = BTreeMap<&'static str, Vec<f64>>;

/// Nanoseconds of each program, and the table's bytes.
fn look_up(object: &std::path::Path, kind: &Kind, size: usize, effort: Effort) -> anyhow::Result<(Times, u64)> {
    let mut random = Random(0x5eed + size as u64);
    let list = random.list(kind, size);
    let prefixes: Vec<IpNet> = list.iter().collect();
    let keys: Vec<IpAddr> = (0..trial::KEYS)
        .map(|index| match (index % 2, &prefixes[0]) {
            (0, _) => {
                let at = random.next() as usize % prefixes.len();
                random.within(&prefixes[at])
            }
            (_, IpNet::V4(_)) => random.v4().into(),
            (_, IpNet::V6(_)) => random.v6().into(),
        })
        .collect();
    let mut trial = trial::Trial::load(object)?;
    trial.set_keys(&keys)?;
    let bytes = trial.set_table(&list)?;
    let programs: Vec<&'static str> = kind.programs.into_iter().flatten().collect();
    if programs.contains(&"hash_v4") {
        trial.set_hash(list.v4())?;
    }
    trial.set_trie_v4(list.v4())?;
    trial.set_trie_v6(list.v6())?;
    let mut times = Times::new();
    for _ in 0..effort.rounds {
        for &program in programs.iter().chain(programs.iter().rev()) {
            let taken = trial.run(program, REPEAT)?;
            times.entry(program).or_default().push(taken.as_nanos() as f64);
        }
    }
    Ok((times, bytes))
}

/// Milliseconds of changes of a long list.
fn change(kind: &Kind) -> anyhow::Result<Vec<f64>> {
    mount_bpffs(BPFFS.as_ref())?;
    let instance = format!("bench-{}", std::process::id());
    let (mut kernel, _) = Kernel::open(&KernelConfig::new(BPFFS, &instance))?;
    let mut random = Random(0xc4a9);
    let mut prefixes: Vec<IpNet> = random.list(kind, 1_000_000).iter().collect();
    let mut times = Vec::new();
    let mut apply = |prefixes: &[IpNet]| -> anyhow::Result<f64> {
        let admission = Admission { deny: SourceList::from(prefixes.to_vec()), ..Admission::default() };
        let domain = DomainDesired { admission, ..DomainDesired::default() };
        let desired = Desired { domains: [(DomainId(1), domain)].into() };
        thread::sleep(PAUSE);
        let begun = Instant::now();
        let applied = kernel.apply(&desired)?;
        let taken = begun.elapsed();
        ensure!(applied.failures.is_empty(), "{:?}", applied.failures);
        Ok(taken.as_secs_f64() * 1e3)
    };
    // The first fills one table, the second the other.
    apply(&prefixes)?;
    for index in 0..=CHANGES {
        for _ in 0..CHANGED / 2 {
            let at = random.next() as usize % prefixes.len();
            // One goes and one comes: two that differ.
            prefixes[at] = (kind.prefix)(&mut random);
        }
        let taken = apply(&prefixes)?;
        if index > 0 {
            times.push(taken);
        }
    }
    drop(kernel);
    detach_all(BPFFS.as_ref(), &instance)?;
    Ok(times)
}
