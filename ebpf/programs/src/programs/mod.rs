//! What the programs share: the license that the kernel asks for, the panic handler that the linker asks for, and the
//! contract's types named for BTF.

mod admit;
mod cookie;
mod explain;
mod guard;
mod maps;
mod observe;
mod rates;
mod steer;
mod verdict;

use tidegate_abi::{
    ABI_VERSION, AddressOwner, Connections, Counter, DialledKey, DomainRates, FrontendKey, Instance, InterfaceKey,
    KnownSet, Mark, Policy, Rate, RateSet, Sample, SampleBudget, SampleState, SourceKey, SourceLine, VERSION_SECTION,
};

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Which version of the contract these programs were built with: user space refuses any but its own.
#[unsafe(link_section = "tidegate_abi")]
#[unsafe(no_mangle)]
static CONTRACT: [u8; 4] = ABI_VERSION.to_le_bytes();

const _: () = assert!(matches!(VERSION_SECTION.as_bytes(), b"tidegate_abi"));

/// Nothing here panics: code that could would not pass the linker, as BPF has no unwinding. The handler is a formality.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Holds every struct of the contract, so that its layout stands in the object's BTF and can be compared with user space's.
#[repr(C)]
pub struct AbiLayouts {
    address_owner: AddressOwner,
    frontend: FrontendKey,
    interface: InterfaceKey,
    policy: Policy,
    rate: Rate,
    rate_set: RateSet,
    domain_rates: DomainRates,
    source_line: SourceLine,
    dialled: DialledKey,
    counter: Counter,
    sample: Sample,
    budget: SampleBudget,
    state: SampleState,
    instance: Instance,
    source: SourceKey,
    mark: Mark,
    connections: Connections,
    known: KnownSet,
}

/// Never called and never loaded: it keeps [`AbiLayouts`] in the object.
#[unsafe(no_mangle)]
pub extern "C" fn abi_layouts(layouts: &AbiLayouts) -> u32 {
    layouts.policy.sources
}
