//! The trial object in the kernel: look-ups of sources alone, beside the maps that they are compared with. For the bench.
//!
//! Nothing is pinned or attached; everything goes with the value.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, lpm_trie::Key},
    programs::{Program, ProgramError},
};
use ipnet::{Ipv4Net, Ipv6Net};
use tidegate_model::SourceList;

use crate::{
    KernelError,
    sources::{Lists, TrialTable},
    sys,
    tables::map_error,
};

/// Keys that a program draws from.
pub const KEYS: u32 = 1 << 20;

/// The loaded object.
pub struct Trial {
    ebpf: Ebpf,
    programs: BTreeMap<String, OwnedFd>,
    table: Option<TrialTable>,
}

fn refused(source: std::io::Error) -> KernelError {
    KernelError::Run { program: "trial", source }
}

impl Trial {
    /// Loads the object from a file.
    ///
    /// # Errors
    /// When it cannot be read, or the kernel refuses it.
    pub fn load(object: &Path) -> Result<Self, KernelError> {
        let mut ebpf = Ebpf::load_file(object).map_err(|error| KernelError::Load(Box::new(error)))?;
        let mut programs = BTreeMap::new();
        for (name, program) in ebpf.programs_mut() {
            let error = |source: ProgramError| KernelError::Program { program: "trial", source: Box::new(source) };
            let Program::Xdp(program) = program else { continue };
            program.load().map_err(error)?;
            let fd = program.fd().map_err(error)?.as_fd().try_clone_to_owned().map_err(refused)?;
            programs.insert(name.to_owned(), fd);
        }
        Ok(Self { ebpf, programs, table: None })
    }

    /// What is asked for, again and again until there are [`KEYS`].
    ///
    /// # Errors
    /// When the kernel refuses a key.
    pub fn set_keys(&mut self, keys: &[IpAddr]) -> Result<(), KernelError> {
        let map = self.ebpf.map_mut("KEYS").ok_or(KernelError::Object { kind: "map", name: "KEYS" })?;
        let mut map: Array<_, [u64; 2]> = Array::try_from(map).map_err(map_error("KEYS"))?;
        for (index, key) in (0..KEYS).zip(keys.iter().cycle()) {
            let bits = match key {
                IpAddr::V4(key) => u128::from(u32::from(*key)),
                IpAddr::V6(key) => u128::from(*key),
            };
            map.set(index, [(bits >> 64) as u64, bits as u64], 0).map_err(map_error("KEYS"))?;
        }
        Ok(())
    }

    /// Builds a list into a table; returns its bytes.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn set_table(&mut self, list: &SourceList) -> Result<u64, KernelError> {
        let map = match self.ebpf.map_mut("SOURCES") {
            Some(Map::ArrayOfMaps(map)) => map,
            _ => return Err(KernelError::Object { kind: "map", name: "SOURCES" }),
        };
        let lists = Lists { deny: list.clone(), ..Lists::default() };
        let table = TrialTable::build(&lists, map.fd().as_fd()).map_err(|why| refused(std::io::Error::other(why)))?;
        let bytes = table.bytes();
        self.table = Some(table);
        Ok(bytes)
    }

    /// Fills the hash with IPv4 addresses.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn set_hash(&mut self, list: &[Ipv4Net]) -> Result<(), KernelError> {
        let map = self.ebpf.map_mut("HASH").ok_or(KernelError::Object { kind: "map", name: "HASH" })?;
        let mut map: HashMap<_, u32, u32> = HashMap::try_from(map).map_err(map_error("HASH"))?;
        list.iter().try_for_each(|prefix| map.insert(u32::from(prefix.addr()), 1, 0)).map_err(map_error("HASH"))
    }

    /// Fills the trie of IPv4 prefixes.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn set_trie_v4(&mut self, list: &[Ipv4Net]) -> Result<(), KernelError> {
        let map = self.ebpf.map_mut("TRIE_V4").ok_or(KernelError::Object { kind: "map", name: "TRIE_V4" })?;
        let mut map: LpmTrie<_, [u8; 4], u32> = LpmTrie::try_from(map).map_err(map_error("TRIE_V4"))?;
        list.iter()
            .try_for_each(|prefix| map.insert(&Key::new(prefix.prefix_len().into(), prefix.addr().octets()), 1, 0))
            .map_err(map_error("TRIE_V4"))
    }

    /// Fills the trie of IPv6 prefixes.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn set_trie_v6(&mut self, list: &[Ipv6Net]) -> Result<(), KernelError> {
        let map = self.ebpf.map_mut("TRIE_V6").ok_or(KernelError::Object { kind: "map", name: "TRIE_V6" })?;
        let mut map: LpmTrie<_, [u8; 16], u32> = LpmTrie::try_from(map).map_err(map_error("TRIE_V6"))?;
        list.iter()
            .try_for_each(|prefix| map.insert(&Key::new(prefix.prefix_len().into(), prefix.addr().octets()), 1, 0))
            .map_err(map_error("TRIE_V6"))
    }

    /// Mean time of one run of a program.
    ///
    /// # Errors
    /// When there is no such program, or the kernel does not run it.
    pub fn run(&self, program: &str, repeat: u32) -> Result<Duration, KernelError> {
        let fd = self.programs.get(program).ok_or(KernelError::Object { kind: "program", name: "trial" })?;
        // As `Kernel::run_admit` has it: the context says where the frame ends.
        let frame = [0u8; 64];
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        sys::test_run(fd.as_fd(), &frame, &mut context, &mut [], repeat).map(|result| result.duration).map_err(refused)
    }
}
