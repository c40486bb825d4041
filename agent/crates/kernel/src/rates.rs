//! Rates of new connections: the tables of buckets that domains have, what is left in a bucket, and how full the tables are.
//!
//! A domain with a rate for each source has a table of its own, so that no domain's flood takes place from another's
//! sources. The table is there before the policy that needs it and goes after the last one that did. What buckets hold is
//! the programs' alone: a change of rates writes none of them. Each table is pinned beside the maps: the kernel opens a map of
//! maps' own maps by id, and that only for CAP_SYS_ADMIN, which no agent has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray};
use nix::time::{ClockId, clock_gettime};
use tidegate_abi::{
    DomainRates, Policy, Rate, RateSet,
    address::from_ip,
    map::{MAX_DOMAINS, name},
    rates::{MAX_RATE_BUCKETS, RATE_SETS, hash_source, mask_source, rate_set},
};
use tidegate_model::DomainId;

use crate::{
    Kernel, KernelError,
    maps::Maps,
    pins::{INNER, open_pinned, pin_error, remove_pin},
    sys::{self, Wire, delete_element, random_seed, wait_grace_period},
    tables::{clear_per_cpu, map_error},
};

/// Sets that are looked at to tell how full a table is: sources fall into sets at random, so any 256 of 16,384 tell the fill
/// to some percent, in less than a millisecond.
const SAMPLED_SETS: u32 = 256;

/// How full the table of a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateFill {
    /// Domain.
    pub domain: DomainId,
    /// Buckets that are not full of tokens, so that no other source can have them; estimated from a sample of the table.
    pub busy: u64,
    /// All buckets.
    pub capacity: u64,
    /// Connections whose source found no place and which a shared bucket has judged, since the domain is there.
    pub overflows: u64,
}

/// What buckets hold for a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateState {
    /// Connections that the source may open at once; `None` without a limit.
    pub source: Option<u64>,
    /// Whether the source has no bucket of its own now, as every place of its set is in use.
    pub is_shared: bool,
    /// Connections that sources never seen may open at once in the whole domain; `None` without a limit.
    pub total: Option<u64>,
    /// The same for sources that have completed a handshake.
    pub total_known: Option<u64>,
    /// Echo messages that the domain takes at once; `None` without a limit, 0 when it takes none at all.
    pub echo: Option<u64>,
}

/// The maps.
pub(crate) struct RateTables {
    tables: ArrayOfMaps<MapData, Array<MapData, Wire<RateSet>>>,
    /// The same map: aya removes no elements of this kind.
    tables_fd: OwnedFd,
    domains: Array<MapData, Wire<DomainRates>>,
    overflows: PerCpuArray<MapData, Wire<u64>>,
    /// Tables that are there.
    present: BTreeMap<u32, RateTable>,
}

/// The table of a domain.
struct RateTable {
    sets: Array<MapData, Wire<RateSet>>,
    /// The same map, to pin it again.
    fd: OwnedFd,
}

impl RateTable {
    /// Opens a table by its pin.
    fn open(pin: &Path) -> Result<Self, KernelError> {
        let data = MapData::from_pin(pin).map_err(map_error(name::RATE_TABLES))?;
        let sets = Map::from_map_data(data).and_then(Array::try_from).map_err(map_error(name::RATE_TABLES))?;
        Ok(Self { sets, fd: open_pinned(pin)? })
    }

    /// Makes an empty table and pins it, in place of what an agent may have left there that died before it was done.
    fn create(pin: &Path) -> Result<Self, KernelError> {
        let sets = Array::<MapData, Wire<RateSet>>::create(RATE_SETS, 0).map_err(map_error(name::RATE_TABLES))?;
        remove_pin(pin)?;
        sets.pin(pin).map_err(|error| pin_error(pin)(std::io::Error::other(error)))?;
        Self::open(pin)
    }
}

/// Name of the pin of a domain's table.
fn pin_name(domain: u32) -> String {
    format!("{}{INNER}{domain}", name::RATE_TABLES)
}

impl RateTables {
    /// Takes the maps, and the tables that are pinned in their folder. A table that is in force and cannot be opened, since its
    /// pin is gone, is replaced by an empty one. A domain that has no hash key yet gets one.
    pub(crate) fn take(maps: &mut Maps, folder: &Path) -> Result<Self, KernelError> {
        let missing = KernelError::Object { kind: "map", name: name::RATE_TABLES };
        let map = maps.take_map(name::RATE_TABLES).ok_or(missing)?;
        let tables_fd = match &map {
            Map::ArrayOfMaps(data) => data.fd().as_fd().try_clone_to_owned(),
            _ => return Err(KernelError::Object { kind: "map", name: name::RATE_TABLES }),
        };
        let tables_fd = tables_fd.map_err(|error| map_error(name::RATE_TABLES)(MapError::IoError(error)))?;
        let mut tables = Self {
            tables: map.try_into().map_err(map_error(name::RATE_TABLES))?,
            tables_fd,
            domains: maps.take(name::RATE_DOMAINS)?,
            overflows: maps.take(name::RATE_OVERFLOWS)?,
            present: BTreeMap::new(),
        };
        for domain in 0..MAX_DOMAINS {
            if let Some(id) = sys::inner_map(tables.tables_fd.as_fd(), &domain.to_ne_bytes()) {
                let pinned = RateTable::open(&folder.join(pin_name(domain))).ok();
                let is_it = |table: &RateTable| sys::map_facts(table.fd.as_fd()).is_ok_and(|facts| facts.id == id);
                match pinned.filter(is_it) {
                    Some(table) => drop(tables.present.insert(domain, table)),
                    None => tables.put(domain, folder)?,
                }
            }
            if tables.rates(domain)?.seed == [0; 2] {
                tables.reset(domain)?;
            }
        }
        Ok(tables)
    }

    /// The tables with the names of their pins.
    pub(crate) fn pins(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.present.iter().map(|(domain, table)| (pin_name(*domain), table.fd.as_fd()))
    }

    fn rates(&self, domain: u32) -> Result<DomainRates, KernelError> {
        Ok(self.domains.get(&domain, 0).map_err(map_error(name::RATE_DOMAINS))?.0)
    }

    /// Makes the domain's table unless it is there.
    pub(crate) fn put(&mut self, domain: u32, folder: &Path) -> Result<(), KernelError> {
        if self.present.contains_key(&domain) {
            return Ok(());
        }
        let table = RateTable::create(&folder.join(pin_name(domain)))?;
        self.tables.set(domain, &table.sets, 0).map_err(map_error(name::RATE_TABLES))?;
        self.present.insert(domain, table);
        Ok(())
    }

    /// Removes the tables of all domains but these. No policy in force names them.
    pub(crate) fn retain(&mut self, wanted: &BTreeSet<u32>, folder: &Path) -> Result<(), KernelError> {
        let unused: Vec<u32> = self.present.keys().copied().filter(|domain| !wanted.contains(domain)).collect();
        if unused.is_empty() {
            return Ok(());
        }
        // The programs that read the policies before these are through with them before a table goes, and with the tables
        // before their memory does: kernels before 6.8 free an inner map with its last descriptor, whoever still reads it.
        wait_grace_period();
        let mut removed = Vec::new();
        for domain in unused {
            delete_element(self.tables_fd.as_fd(), &domain.to_ne_bytes())
                .map_err(|error| map_error(name::RATE_TABLES)(MapError::IoError(error)))?;
            removed.extend(self.present.remove(&domain));
            remove_pin(&folder.join(pin_name(domain)))?;
        }
        wait_grace_period();
        Ok(())
    }

    /// Fills the domain's own bucket and gives its hash a new key, for a domain that judges nothing.
    fn reset(&mut self, domain: u32) -> Result<(), KernelError> {
        let seed = random_seed().map_err(|error| map_error(name::RATE_DOMAINS)(MapError::IoError(error)))?;
        let rates = DomainRates { seed, ..DomainRates::default() };
        self.domains.set(domain, Wire(rates), 0).map_err(map_error(name::RATE_DOMAINS))?;
        clear_per_cpu(&mut self.overflows, domain, name::RATE_OVERFLOWS)
    }

    /// What is left of a domain that is gone: a later one of the same number starts clean.
    pub(crate) fn forget(&mut self, domain: u32, folder: &Path) -> Result<(), KernelError> {
        let others = self.present.keys().copied().filter(|&other| other != domain).collect();
        self.retain(&others, folder)?;
        self.reset(domain)
    }

    fn fill(&self, domain: u32, now: u64) -> Result<RateFill, KernelError> {
        let mut busy = 0;
        if let Some(table) = self.present.get(&domain) {
            for set in 0..SAMPLED_SETS {
                let set = table.sets.get(&set, 0).map_err(map_error(name::RATE_TABLES))?.0;
                busy += set.full_at.iter().filter(|&&full_at| full_at > now).count() as u64;
            }
        }
        let counts = self.overflows.get(&domain, 0).map_err(map_error(name::RATE_OVERFLOWS))?;
        Ok(RateFill {
            domain: DomainId(domain),
            busy: busy * u64::from(RATE_SETS / SAMPLED_SETS),
            capacity: MAX_RATE_BUCKETS.into(),
            overflows: counts.iter().map(|count| count.0).sum(),
        })
    }

    fn state(&self, domain: u32, policy: &Policy, source: IpAddr, now: u64) -> Result<RateState, KernelError> {
        let rates = self.rates(domain)?;
        let left = |rate: &Rate, full_at: u64, reserved_ns: u64| rate.left(full_at, now, reserved_ns);
        let total = policy.total.is_limited().then_some(&policy.total);
        let mut state = RateState {
            source: None,
            is_shared: false,
            total: total.map(|rate| left(rate, rates.total, rate.reserve_ns())),
            total_known: total.map(|rate| left(rate, rates.total, 0)),
            echo: match policy.flags & Policy::NO_ECHO {
                0 => policy.echo.is_limited().then(|| left(&policy.echo, rates.echo, 0)),
                _ => Some(0),
            },
        };
        let (true, Some(table)) = (policy.per_source.is_limited(), self.present.get(&domain)) else { return Ok(state) };
        let source = mask_source(&from_ip(source.to_canonical()), policy.v4_bits, policy.v6_bits);
        let hash = hash_source(&rates.seed, &source);
        let set = table.sets.get(&rate_set(hash), 0).map_err(map_error(name::RATE_TABLES))?.0;
        let full_at = match set.sources.iter().position(|&owner| owner == hash) {
            Some(way) => set.full_at[way],
            None if set.full_at.iter().any(|&full_at| full_at <= now) => 0,
            None => {
                state.is_shared = true;
                set.strangers
            }
        };
        state.source = Some(left(&policy.per_source, full_at, 0));
        Ok(state)
    }
}

/// The programs' clock, `bpf_ktime_get_ns`.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| (now.tv_sec() as u64) * 1_000_000_000 + now.tv_nsec() as u64)
}

impl Kernel {
    /// How full the tables of buckets are, one for each domain that limits each source.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn rate_fill(&self) -> Result<Vec<RateFill>, KernelError> {
        let now = now();
        let limited = self.applied.policies.iter().filter(|(_, policy)| policy.per_source.is_limited());
        limited.map(|(&domain, _)| self.rates.fill(domain, now)).collect()
    }

    /// What the buckets of a domain hold now for a source. Takes nothing from them.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn rate_state(&self, domain: DomainId, source: IpAddr) -> Result<RateState, KernelError> {
        let policy = self.applied.policies.get(&domain.0).copied().unwrap_or_default();
        self.rates.state(domain.0, &policy, source, now())
    }

    /// Makes the table of a domain that limits each source.
    pub(crate) fn put_rates(&mut self, domain: u32) -> Result<(), KernelError> {
        self.rates.put(domain, &self.pins.current_maps(self.is_uncommitted)?)
    }

    /// Removes the tables of domains that limit no source any more.
    pub(crate) fn remove_unused_rates(&mut self) -> Result<(), KernelError> {
        let policies = self.applied.policies.iter();
        let wanted = policies.filter(|(_, policy)| policy.per_source.is_limited()).map(|(domain, _)| *domain).collect();
        self.rates.retain(&wanted, &self.pins.current_maps(self.is_uncommitted)?)
    }
}
