//! Reads the structs out of an object's BTF (Documentation/bpf/btf.rst of Linux), as far as comparing layouts needs.
//!
//! Input is a file that the linker wrote: broken input is an error, never a panic.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// A struct as the object has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Struct {
    /// In bytes.
    pub(super) size: usize,
    /// Name, offset and size in bytes of each field, in order.
    pub(super) fields: Vec<(String, usize, usize)>,
}

const MAGIC: u16 = 0xeb9f;
/// Bytes of a pointer of the BPF target.
const POINTER: usize = 8;
/// How deep types may be nested before they are taken for a loop.
const MAX_DEPTH: usize = 64;

/// All named structs of an object. Of several with one name, all.
///
/// # Errors
/// The file is no ELF object of 64 bits, little endian, with BTF.
pub(super) fn structs(object: &[u8]) -> Result<BTreeMap<String, Vec<Struct>>> {
    let btf = Btf::parse(section(object, ".BTF")?)?;
    let mut structs: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for kind in &btf.types {
        if let Type::Struct { name, size, members } = kind {
            let field = |(name, kind, offset): &(String, u32, usize)| Ok((name.clone(), *offset, btf.size(*kind, 0)?));
            let fields = members.iter().map(field).collect::<Result<_>>()?;
            structs.entry(name.clone()).or_default().push(Struct { size: *size, fields });
        }
    }
    Ok(structs)
}

/// The content of a section of an ELF object.
fn section<'a>(object: &'a [u8], wanted: &str) -> Result<&'a [u8]> {
    ensure!(object.starts_with(b"\x7fELF\x02\x01"), "not an ELF object of 64 bits, little endian");
    let header = |index: u64| -> Result<&[u8]> {
        part(object, number(object, 0x28, 8)? + index * number(object, 0x3a, 2)?, 0x40)
    };
    let content = |header: &[u8]| part(object, number(header, 0x18, 8)?, number(header, 0x20, 8)?);
    let names = content(header(number(object, 0x3e, 2)?)?)?;
    for index in 0..number(object, 0x3c, 2)? {
        let header = header(index)?;
        if text(names, number(header, 0, 4)?)? == wanted {
            return content(header);
        }
    }
    bail!("no section {wanted}")
}

/// What matters of a type here.
#[derive(Debug)]
enum Type {
    Sized(usize),
    Struct {
        name: String,
        size: usize,
        members: Vec<(String, u32, usize)>,
    },
    Array {
        element: u32,
        count: usize,
    },
    /// A typedef or qualifier.
    Alias(u32),
    /// Functions, variables, sections.
    Other,
}

struct Btf {
    /// The first stands for `void`: ids begin at 1.
    types: Vec<Type>,
}

impl Btf {
    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(number(bytes, 0, 2)? == u64::from(MAGIC), "the BTF has another magic number");
        let begin = number(bytes, 4, 4)?;
        let area = |at: usize| part(bytes, begin + number(bytes, at, 4)?, number(bytes, at + 4, 4)?);
        let (mut rest, strings) = (area(8)?, area(16)?);
        let mut types = vec![Type::Other];
        while !rest.is_empty() {
            let info = number(rest, 4, 4)?;
            let (count, kind, has_bitfields) = (info & 0xffff, info >> 24 & 0x1f, info >> 31 == 1);
            let size = number(rest, 8, 4)?;
            // What follows the 12 bytes that all kinds have.
            let more = match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                2 | 7..=12 | 16 | 18 => 0,
                _ => bail!("the BTF has a type of kind {kind}, which is not known here"),
            };
            let details = part(rest, 12, more)?;
            types.push(match kind {
                1 | 5 | 6 | 16 | 19 => Type::Sized(size.try_into()?),
                2 => Type::Sized(POINTER),
                3 => Type::Array {
                    element: number(details, 0, 4)?.try_into()?,
                    count: number(details, 8, 4)?.try_into()?,
                },
                4 => {
                    let member = |details: &[u8]| {
                        let offset = number(details, 8, 4)?;
                        let bits = if has_bitfields { offset & 0xff_ffff } else { offset };
                        let name = text(strings, number(details, 0, 4)?)?.to_owned();
                        Ok((name, number(details, 4, 4)?.try_into()?, usize::try_from(bits / 8)?))
                    };
                    let members = details.chunks(12).map(member).collect::<Result<_>>()?;
                    Type::Struct {
                        name: text(strings, number(rest, 0, 4)?)?.to_owned(),
                        size: size.try_into()?,
                        members,
                    }
                }
                8..=11 | 18 => Type::Alias(size.try_into()?),
                _ => Type::Other,
            });
            rest = rest.get(12 + details.len()..).unwrap_or_default();
        }
        Ok(Self { types })
    }

    fn size(&self, id: u32, depth: usize) -> Result<usize> {
        ensure!(depth < MAX_DEPTH, "the BTF has types without an end");
        match self.types.get(usize::try_from(id)?).with_context(|| format!("the BTF has no type {id}"))? {
            Type::Sized(size) | Type::Struct { size, .. } => Ok(*size),
            Type::Array { element, count } => {
                self.size(*element, depth + 1)?.checked_mul(*count).context("the BTF has an array without bounds")
            }
            Type::Alias(id) => self.size(*id, depth + 1),
            Type::Other => Ok(0),
        }
    }
}

fn part(bytes: &[u8], begin: u64, length: u64) -> Result<&[u8]> {
    let begin = usize::try_from(begin)?;
    let end = begin.checked_add(usize::try_from(length)?);
    end.and_then(|end| bytes.get(begin..end)).context("the object ends too early")
}

fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64> {
    let bytes = part(bytes, at.try_into()?, length.try_into()?)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn text(strings: &[u8], at: u64) -> Result<&str> {
    let rest = strings.get(usize::try_from(at)?..).context("a name lies outside of the names")?;
    let end = rest.iter().position(|byte| *byte == 0).context("a name has no end")?;
    Ok(std::str::from_utf8(&rest[..end])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with `struct Key { u8 addr[16]; u16 port; }` of 20 bytes.
    fn sample() -> Vec<u8> {
        let strings = b"\0u8\0Key\0addr\0port\0u16\0";
        let words: &[u32] = &[
            1,
            1 << 24,
            1,
            8, // 1: u8
            18,
            1 << 24,
            2,
            16, // 2: u16
            0,
            3 << 24,
            0,
            1,
            2,
            16, // 3: [u8; 16]
            4,
            4 << 24 | 2,
            20,
            8,
            3,
            0,
            13,
            2,
            128, // 4: Key
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            btf.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_struct_has_its_fields_with_sizes_of_arrays() {
        let btf = Btf::parse(&sample()).unwrap();
        let Type::Struct { name, size, members } = &btf.types[4] else { panic!("{:?}", btf.types[4]) };
        assert_eq!((&**name, *size), ("Key", 20));
        assert_eq!(members[1], ("port".to_owned(), 2, 16));
        assert_eq!(btf.size(3, 0).unwrap(), 16);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let whole = sample();
        // The last byte ends the last name, so any prefix lacks something that is read.
        for length in 0..whole.len() - 1 {
            assert!(Btf::parse(&whole[..length]).is_err(), "{length}");
        }
        assert!(structs(&whole).is_err());
    }
}
