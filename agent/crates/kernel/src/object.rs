//! What a BPF object says of itself: the version of the contract that it was built with, in a section of its own.
//!
//! Reads as much of an ELF file as finding a section takes; whatever is not as it should be is an object without a version.

use tidegate_abi::VERSION_SECTION;

/// Offsets and sizes of 64-bit little-endian ELF (System V ABI, "Object Files").
mod elf {
    /// Where in the file the offset of the table of sections stands.
    pub(super) const SECTIONS: usize = 0x28;
    /// Where the number of sections stands.
    pub(super) const COUNT: usize = 0x3c;
    /// Where the number of the section with their names stands.
    pub(super) const NAMES: usize = 0x3e;
    /// Bytes of an entry of the table.
    pub(super) const ENTRY: usize = 0x40;
    /// In an entry: where the section lies in the file.
    pub(super) const OFFSET: usize = 0x18;
}

/// The version of the contract that an object was built with; `None` when it says none.
pub(crate) fn find_version(object: &[u8]) -> Option<u32> {
    let table = usize::try_from(u64::from_le_bytes(bytes(object, elf::SECTIONS)?)).ok()?;
    let number = |at| Some(usize::from(u16::from_le_bytes(bytes(object, at)?)));
    let entry = |index: usize| table.checked_add(index * elf::ENTRY);
    let offset =
        |entry: usize| usize::try_from(u64::from_le_bytes(bytes(object, entry.checked_add(elf::OFFSET)?)?)).ok();
    let names = offset(entry(number(elf::NAMES)?)?)?;
    for index in 0..number(elf::COUNT)? {
        let section = entry(index)?;
        let name = names.checked_add(u32::from_le_bytes(bytes(object, section)?) as usize)?;
        let text = object.get(name..)?.strip_prefix(VERSION_SECTION.as_bytes());
        if text.is_some_and(|rest| rest.first() == Some(&0)) {
            return Some(u32::from_le_bytes(bytes(object, offset(section)?)?));
        }
    }
    None
}

fn bytes<const COUNT: usize>(object: &[u8], at: usize) -> Option<[u8; COUNT]> {
    object.get(at..at.checked_add(COUNT)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelConfig;

    #[test]
    fn the_object_of_this_crate_says_the_version_of_its_contract() {
        let object = KernelConfig::new("/nowhere", "none").object;
        assert_eq!(find_version(object), Some(tidegate_abi::ABI_VERSION));
    }

    #[test]
    fn cut_and_broken_objects_have_no_version_or_the_same() {
        let object = KernelConfig::new("/nowhere", "none").object;
        for end in (0..object.len()).step_by(997) {
            assert_ne!(find_version(&object[..end]), Some(0), "cut at {end}");
        }
        let mut broken = object.to_vec();
        for at in 0..elf::ENTRY {
            for value in [0, 0x7f, 0xff] {
                let kept = std::mem::replace(&mut broken[at], value);
                // Whatever it says: it comes back.
                let _ = find_version(&broken);
                broken[at] = kept;
            }
        }
    }
}
