//! Opening the kernel tier: load, take over what is pinned, or start from nothing.
//!
//! The agent may die at any point. Maps are pinned as they are made, links as they are attached, programs once the links run
//! them; whatever of that is there the next agent finds and completes. With maps of this ABI version in place the links are
//! moved to changed programs at once; with new, empty maps only after the first [`Kernel::apply`], so that no packet is judged
//! by empty tables. Maps that were never filled are never taken over: the folder's name tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::PathBuf,
};

use aya::{EbpfLoader, VerifierLogLevel};
use tidegate_abi::{ABI_VERSION, SampleBudget, map::SampleClass, map::name};
use tidegate_model::{Admission, DomainId};

use crate::{
    KernelError,
    attach::AttachMode,
    connections::ConnectionTables,
    entries::Entries,
    maps::Maps,
    object,
    pins::{ObjectHash, Pins, open_pinned},
    programs::{ProgramName, Programs},
    rates::RateTables,
    sources::Sources,
    tables::Tables,
};

/// The object built with this crate, aligned as an ELF reader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TIDEGATE_BPF_OBJECT"));

/// One sample of each class a CPU in 20 ms, 50 a second: a person reads no more, and a flood costs no more.
const SAMPLE_INTERVAL_NS: u64 = 20_000_000;
/// Up to 100 samples at once, so that a short test shows every packet.
const SAMPLE_BURST_NS: u64 = 99 * SAMPLE_INTERVAL_NS;

/// What [`Kernel::open`] needs.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Where a BPF file system is mounted, e.g. `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Name of the instance: letters, digits, `-` and `_`; several live side by side.
    pub instance: String,
    /// The BPF object.
    pub object: &'static [u8],
    /// Version of the contract that this agent speaks: [`tidegate_abi::ABI_VERSION`], but in a test that stands for another agent.
    pub abi_version: u32,
}

impl KernelConfig {
    /// The object that was built with this crate.
    pub fn new(bpffs: impl Into<PathBuf>, instance: impl Into<String>) -> Self {
        Self { bpffs: bpffs.into(), instance: instance.into(), object: OBJECT, abi_version: ABI_VERSION }
    }
}

/// What [`Kernel::open`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Maps of an earlier agent go on being used.
    pub has_adopted_maps: bool,
    /// Domains that an earlier agent has applied.
    pub domains: Vec<DomainId>,
    /// Links that were moved to another program.
    pub updated: Vec<String>,
    /// Links that run on untouched.
    pub kept: Vec<String>,
    /// The object was loaded and verified; else the pinned programs are known to come of it.
    pub has_loaded: bool,
    /// Folders that others could open until now.
    pub closed: Vec<PathBuf>,
    /// `steer` does not know where connections came in (kernels before 5.17) and judges their sources only.
    pub is_steer_blind: bool,
}

/// The kernel tier of one instance.
pub struct Kernel {
    pub(crate) pins: Pins,
    /// What was loaded.
    pub(crate) object: ObjectHash,
    pub(crate) programs: Programs,
    pub(crate) tables: Tables,
    pub(crate) rates: RateTables,
    pub(crate) connections: ConnectionTables,
    pub(crate) sources: Sources,
    /// What the maps hold.
    pub(crate) applied: Entries,
    /// Where `admit` runs.
    pub(crate) attached: BTreeMap<u32, AttachMode>,
    /// Every link by the name of its pin, held open: a pin that somebody removes does not end it.
    pub(crate) links: BTreeMap<String, OwnedFd>,
    /// Every map by name, held open for the same reason.
    pub(crate) maps: Vec<(&'static str, OwnedFd)>,
    /// The cgroups that are guarded: a domain's by its id, and the one above agent and workers.
    pub(crate) guarded: BTreeMap<PathBuf, Option<DomainId>>,
    /// Admission rules in force as they were asked for; empty after a start.
    pub(crate) admissions: BTreeMap<u32, Admission>,
    /// Domains whose admission rules could not be applied last time.
    pub(crate) failed_policies: BTreeSet<u32>,
    /// (NIC, VLAN device on it) of the state last applied.
    pub(crate) vlan_devices: BTreeSet<(u32, u32)>,
    pub(crate) samples: Option<aya::maps::Map>,
    /// The maps are new, and nothing was applied to them yet: links of an earlier agent still run on old ones.
    pub(crate) is_uncommitted: bool,
}

impl Kernel {
    /// Loads the programs and takes over what an earlier agent of this instance left.
    ///
    /// # Errors
    /// When the object does not load, or pins cannot be made, read or replaced. What judged before goes on judging.
    pub fn open(config: &KernelConfig) -> Result<(Self, Opened), KernelError> {
        let built = object::find_version(config.object)
            .ok_or(KernelError::Version { object: None, agent: config.abi_version })?;
        if built != config.abi_version {
            return Err(KernelError::Version { object: Some(built), agent: config.abi_version });
        }
        let pins = Pins::new(&config.bpffs, &config.instance).of_version(built);
        let closed = pins.create()?;
        let has_adopted_maps = pins.has_maps();
        let object = ObjectHash::of(config.object);
        let has_loaded = !has_adopted_maps || !pins.has_object(object);
        let folder = if has_adopted_maps { pins.maps() } else { pins.begin_maps()? };
        let (mut maps, programs) = if !has_loaded {
            (Maps::of_pins(&folder)?, Programs::of_pins(&pins)?)
        } else {
            let mut loader = EbpfLoader::new();
            // What fails is asked again with room for a log, and a log of no level is EINVAL whatever the failure was. This level
            // has the verifier's words about a failure and nothing else.
            loader.verifier_log_level(VerifierLogLevel::STATS);
            for name in name::ALL {
                loader.map_pin_path(name, folder.join(name));
            }
            let mut ebpf = loader.load(config.object).map_err(|error| KernelError::Load(Box::new(error)))?;
            let programs = Programs::load(&mut ebpf, &pins)?;
            (Maps::of_object(&mut ebpf), programs)
        };
        let held = name::ALL.into_iter().map(|name| Ok((name, open_pinned(&folder.join(name))?)));
        let held = held.collect::<Result<_, KernelError>>()?;
        let mut tables = Tables::take(&mut maps)?;
        tables.set_cookie(programs.find(ProgramName::Cookie).fd())?;
        let rates = RateTables::take(&mut maps, &folder)?;
        let connections = ConnectionTables::take(&mut maps)?;
        let sources = Sources::take(&mut maps)?;
        let samples = maps.take_map(name::SAMPLES);
        let applied = tables.read_entries()?;
        let mut kernel = Self {
            pins,
            object,
            programs,
            tables,
            rates,
            connections,
            sources,
            applied,
            attached: BTreeMap::new(),
            links: BTreeMap::new(),
            maps: held,
            guarded: BTreeMap::new(),
            admissions: BTreeMap::new(),
            failed_policies: BTreeSet::new(),
            vlan_devices: BTreeSet::new(),
            samples,
            is_uncommitted: !has_adopted_maps,
        };
        for class in [SampleClass::Denial, SampleClass::Admission] {
            let budget = SampleBudget { interval_ns: SAMPLE_INTERVAL_NS, burst_ns: SAMPLE_BURST_NS };
            kernel.tables.set_sample_budget(class as u32, budget)?;
        }
        kernel.adopt_links()?;
        let is_steer_blind = kernel.programs.is_steer_blind;
        let mut opened = Opened { has_adopted_maps, has_loaded, is_steer_blind, closed, ..Opened::default() };
        if has_adopted_maps {
            (opened.updated, opened.kept) = kernel.update_links()?;
        }
        opened.domains = kernel.domains()?.into_iter().collect();
        Ok((kernel, opened))
    }

    /// Gives new maps their name, now that they are filled, and moves links to the programs that judge by them.
    pub(crate) fn commit_programs(&mut self) -> Result<(), KernelError> {
        if self.is_uncommitted {
            // The pinned programs use other maps than those that this makes the ones to take over.
            self.pins.unmark_object()?;
            // From here on the next agent takes these maps as filled, and moves what links are still to be moved.
            self.pins.commit_maps()?;
            self.update_links()?;
            self.is_uncommitted = false;
        }
        Ok(())
    }

    fn update_links(&mut self) -> Result<(Vec<String>, Vec<String>), KernelError> {
        if !self.pins.has_object(self.object) {
            self.pins.unmark_object()?;
        }
        let (mut updated, mut kept) = (Vec::new(), Vec::new());
        for link in self.pins.link_names()? {
            if self.update_link(&link)? { updated.push(link) } else { kept.push(link) }
        }
        self.programs.pin(&self.pins)?;
        self.pins.remove_other_programs()?;
        self.pins.remove_other_maps()?;
        self.pins.mark_object(self.object)?;
        Ok((updated, kept))
    }

    /// The id of a loaded program, as `bpftool` shows it.
    pub fn program_id(&self, name: &str) -> Option<u32> {
        self.programs.iter().find(|program| program.name.as_str() == name).map(|program| program.id)
    }

    pub(crate) fn program(&self, name: ProgramName) -> std::os::fd::BorrowedFd<'_> {
        self.programs.find(name).fd()
    }
}
