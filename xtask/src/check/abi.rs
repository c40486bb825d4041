//! Compares the layouts that `tidegate-abi` asserts for this machine's compiler with those that the BPF compiler made.

use std::fs;

use anyhow::{Context, Result, bail};
use tidegate_abi::layout::LAYOUTS;

use super::btf;
use crate::place;

/// Every type of the contract is in the object's BTF, with the same size and fields.
///
/// # Errors
/// Names the types that differ or are missing.
pub(super) fn compare() -> Result<()> {
    let object = place::bpf_object();
    let bytes =
        fs::read(&object).with_context(|| format!("cannot read {}: run `cargo xtask ebpf`", object.display()))?;
    let structs = btf::structs(&bytes).with_context(|| format!("cannot read {}", object.display()))?;
    let mut wrong = Vec::new();
    for layout in LAYOUTS {
        let fields = layout.fields.iter().map(|&(name, offset, size)| (name.to_owned(), offset, size)).collect();
        let expected = btf::Struct { size: layout.size, fields };
        let Some(found) = structs.get(layout.name) else {
            wrong.push(format!("{} is not in the object's BTF: name it in ebpf/programs' layout anchor", layout.name));
            continue;
        };
        for found in found.iter().filter(|found| **found != expected) {
            wrong.push(format!("{}: the contract has {expected:?}, the object {found:?}", layout.name));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}
