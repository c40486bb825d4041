//! The maps with their types, and reading back what an earlier agent has applied.
//!
//! The grace rule lives here: a value that decides between domains may not change under a running program, and the kernel
//! reuses the memory of a removed element at once (bpf_mem_alloc, kernel 6.1). So between freeing such an element and the
//! next write to a map of that kind, a grace period is waited for. Presence-only maps need none.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues, SockMap};
use tidegate_abi::{
    Address, AddressOwner, Counter, DialledKey, FrontendKey, InterfaceKey, Plain, Policy, SampleBudget, SampleState,
    map::name,
};

use crate::{
    KernelError,
    entries::Entries,
    maps::Maps,
    sys::{self, Wire, wait_grace_period},
};

type Hash<K, V> = HashMap<MapData, Wire<K>, Wire<V>>;

/// The value of presence-only maps.
const PRESENT: Wire<u32> = Wire(1);

/// All maps but the ring buffer, which its reader owns, and the tables of sources.
pub(crate) struct Tables {
    addresses: Hash<Address, AddressOwner>,
    frontends: Hash<FrontendKey, u32>,
    interfaces: Hash<InterfaceKey, u32>,
    admitting: Hash<u32, u32>,
    domains: Hash<u32, Policy>,
    workers: Hash<u64, u32>,
    dialled: Hash<DialledKey, u32>,
    counters: PerCpuArray<MapData, Wire<Counter>>,
    sample_budgets: Array<MapData, Wire<SampleBudget>>,
    sample_states: PerCpuArray<MapData, Wire<SampleState>>,
    sockets: SockMap<MapData>,
    cookie: MapData,
    /// A value-bearing element was freed since the last grace period.
    has_freed: bool,
    /// Waits for the grace period of what was freed before.
    grace: Option<thread::JoinHandle<()>>,
}

/// Turns aya's error about a map into a [`KernelError`].
pub(crate) fn map_error(map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { map, source: Box::new(source) }
}

/// Sets an element to zero on every CPU.
pub(crate) fn clear_per_cpu<T: Plain + Default>(
    map: &mut PerCpuArray<MapData, Wire<T>>,
    index: u32,
    name: &'static str,
) -> Result<(), KernelError> {
    let cpus = map.get(&index, 0).map_err(map_error(name))?.len();
    let zeroes = PerCpuValues::try_from(vec![Wire(T::default()); cpus])
        .map_err(|error| map_error(name)(MapError::IoError(error)))?;
    map.set(index, zeroes, 0).map_err(map_error(name))
}

/// What to tell a person about a write that failed.
pub(crate) fn explain_write(map: &'static str, capacity: u32, error: &MapError) -> String {
    let errno = match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    match errno {
        Some(libc::E2BIG | libc::ENOSPC) => format!("BPF map {map} is full ({capacity} entries): use fewer of them"),
        _ => format!("BPF map {map}: {error}"),
    }
}

fn remove_if_present<K: Plain, V: Plain>(map: &mut Hash<K, V>, key: K) -> Result<(), MapError> {
    match map.remove(&Wire(key)) {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn read_all<K: Plain, V: Plain, C: FromIterator<(K, V)>>(
    map: &Hash<K, V>,
    name: &'static str,
) -> Result<C, KernelError> {
    map.iter().map(|item| item.map(|(key, value)| (key.0, value.0))).collect::<Result<C, _>>().map_err(map_error(name))
}

impl Tables {
    /// Takes the maps.
    pub(crate) fn take(maps: &mut Maps) -> Result<Self, KernelError> {
        Ok(Self {
            addresses: maps.take(name::ADDRESSES)?,
            frontends: maps.take(name::FRONTENDS)?,
            interfaces: maps.take(name::INTERFACES)?,
            admitting: maps.take(name::ADMITTING)?,
            domains: maps.take(name::DOMAINS)?,
            workers: maps.take(name::WORKERS)?,
            dialled: maps.take(name::DIALLED)?,
            counters: maps.take(name::COUNTERS)?,
            sample_budgets: maps.take(name::SAMPLE_BUDGETS)?,
            sample_states: maps.take(name::SAMPLE_STATES)?,
            sockets: maps.take(name::SOCKETS)?,
            cookie: maps.take_programs(name::COOKIE)?,
            // What an earlier agent freed last is not known.
            has_freed: true,
            grace: None,
        })
    }

    /// Waits for the grace period if one is due: from here on memory freed earlier is no running program's.
    pub(crate) fn settle(&mut self) {
        if self.has_freed {
            wait_grace_period();
            self.has_freed = false;
            // A grace period that begins later ends later.
            self.grace = None;
        } else if let Some(grace) = self.grace.take() {
            // A thread that could not wait has not waited.
            if grace.join().is_err() {
                wait_grace_period();
            }
        }
    }

    /// Lets the grace period that is due pass while nobody waits for it: the next change finds it over.
    pub(crate) fn begin_settling(&mut self) {
        if self.has_freed
            && let Ok(grace) = thread::Builder::new().name("grace-period".to_owned()).spawn(wait_grace_period)
        {
            self.grace = Some(grace);
            self.has_freed = false;
        }
    }

    /// Adds or, with `is_change`, replaces an owner; so for policies below.
    pub(crate) fn put_address(&mut self, addr: Address, owner: AddressOwner, is_change: bool) -> Result<(), MapError> {
        self.settle();
        self.has_freed = is_change;
        self.addresses.insert(Wire(addr), Wire(owner), 0)
    }

    pub(crate) fn remove_address(&mut self, addr: Address) -> Result<(), MapError> {
        self.has_freed = true;
        remove_if_present(&mut self.addresses, addr)
    }

    /// Adds a frontend; the key is new or of the same domain (a change of domain is a removal first).
    pub(crate) fn put_frontend(&mut self, key: FrontendKey, domain: u32) -> Result<(), MapError> {
        self.settle();
        self.frontends.insert(Wire(key), Wire(domain), 0)
    }

    pub(crate) fn remove_frontend(&mut self, key: FrontendKey) -> Result<(), MapError> {
        self.has_freed = true;
        remove_if_present(&mut self.frontends, key)
    }

    pub(crate) fn put_interface(&mut self, key: InterfaceKey) -> Result<(), MapError> {
        self.interfaces.insert(Wire(key), PRESENT, 0)
    }

    pub(crate) fn remove_interface(&mut self, key: InterfaceKey) -> Result<(), MapError> {
        remove_if_present(&mut self.interfaces, key)
    }

    pub(crate) fn put_admitting(&mut self, ifindex: u32) -> Result<(), MapError> {
        self.admitting.insert(Wire(ifindex), PRESENT, 0)
    }

    pub(crate) fn remove_admitting(&mut self, ifindex: u32) -> Result<(), MapError> {
        remove_if_present(&mut self.admitting, ifindex)
    }

    pub(crate) fn put_policy(&mut self, domain: u32, policy: Policy, is_change: bool) -> Result<(), MapError> {
        self.settle();
        self.has_freed = is_change;
        self.domains.insert(Wire(domain), Wire(policy), 0)
    }

    pub(crate) fn remove_policy(&mut self, domain: u32) -> Result<(), MapError> {
        self.has_freed = true;
        remove_if_present(&mut self.domains, domain)
    }

    pub(crate) fn put_worker(&mut self, cgroup: u64, domain: u32) -> Result<(), MapError> {
        self.settle();
        self.has_freed = true;
        self.workers.insert(Wire(cgroup), Wire(domain), 0)
    }

    pub(crate) fn remove_worker(&mut self, cgroup: u64) -> Result<(), MapError> {
        self.has_freed = true;
        remove_if_present(&mut self.workers, cgroup)
    }

    pub(crate) fn workers(&self) -> Result<BTreeMap<u64, u32>, KernelError> {
        read_all(&self.workers, name::WORKERS)
    }

    pub(crate) fn put_dialled(&mut self, key: DialledKey) -> Result<(), MapError> {
        self.dialled.insert(Wire(key), PRESENT, 0)
    }

    pub(crate) fn remove_dialled(&mut self, key: DialledKey) -> Result<(), MapError> {
        remove_if_present(&mut self.dialled, key)
    }

    pub(crate) fn counter(&self, index: u32) -> Result<Counter, KernelError> {
        let values = self.counters.get(&index, 0).map_err(map_error(name::COUNTERS))?;
        Ok(values.iter().fold(Counter::default(), |sum, value| Counter {
            packets: sum.packets + value.0.packets,
            bytes: sum.bytes + value.0.bytes,
        }))
    }

    /// Sets a counter to zero. Counts that come in at the same moment may be lost.
    pub(crate) fn clear_counter(&mut self, index: u32) -> Result<(), KernelError> {
        clear_per_cpu(&mut self.counters, index, name::COUNTERS)
    }

    pub(crate) fn set_sample_budget(&mut self, class: u32, budget: SampleBudget) -> Result<(), KernelError> {
        self.sample_budgets.set(class, Wire(budget), 0).map_err(map_error(name::SAMPLE_BUDGETS))
    }

    /// State of one class, one for each CPU.
    pub(crate) fn sample_states(&self, class: u32) -> Result<Vec<SampleState>, KernelError> {
        let values = self.sample_states.get(&class, 0).map_err(map_error(name::SAMPLE_STATES))?;
        Ok(values.iter().map(|value| value.0).collect())
    }

    pub(crate) fn sockets(&mut self) -> &mut SockMap<MapData> {
        &mut self.sockets
    }

    /// Gives `admit` the program that answers SYNs. The array holds it as long as it is pinned.
    pub(crate) fn set_cookie(&mut self, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        let error = |source| KernelError::Map { map: name::COOKIE, source: Box::new(MapError::IoError(source)) };
        sys::set_program(self.cookie.fd().as_fd(), program).map_err(error)
    }

    /// Reads what is applied.
    pub(crate) fn read_entries(&self) -> Result<Entries, KernelError> {
        let interfaces: BTreeMap<InterfaceKey, u32> = read_all(&self.interfaces, name::INTERFACES)?;
        let admitting: BTreeMap<u32, u32> = read_all(&self.admitting, name::ADMITTING)?;
        let dialled: BTreeMap<DialledKey, u32> = read_all(&self.dialled, name::DIALLED)?;
        Ok(Entries {
            addresses: read_all(&self.addresses, name::ADDRESSES)?,
            frontends: read_all(&self.frontends, name::FRONTENDS)?,
            interfaces: interfaces.into_keys().collect(),
            admitting: admitting.into_keys().collect(),
            policies: read_all(&self.domains, name::DOMAINS)?,
            dialled: dialled.into_keys().collect(),
        })
    }
}
