//! Layouts, asserted when either side is compiled and listed for the check against the object's BTF.

use core::mem::{align_of, offset_of, size_of};

use crate::connections::{Connections, DURATION_BUCKETS, Instance, KNOWN_WAYS, KnownSet, Mark, RTT_BUCKETS, SourceKey};
use crate::map::{
    AddressOwner, Counter, DialledKey, FrontendKey, InterfaceKey, Policy, Rate, Sample, SampleBudget, SampleState,
};
use crate::sources::SourceLine;
use crate::{DomainRates, RateSet};

/// Layout of one type that crosses the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Name of the struct as BTF has it.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Name, offset and size in bytes of each field, in order.
    pub fields: &'static [(&'static str, usize, usize)],
}

macro_rules! layouts {
    ($($type:ident: $size:literal, align $align:literal { $($field:ident: $field_type:ty = $offset:literal),+ $(,)? })+) => {
        /// Every type that crosses the border.
        pub const LAYOUTS: &[Layout] = &[
            $(Layout {
                name: stringify!($type),
                size: $size,
                fields: &[$((stringify!($field), $offset, size_of::<$field_type>())),+],
            }),+
        ];

        $(const _: () = {
            assert!(size_of::<$type>() == $size, concat!(stringify!($type), " has another size"));
            assert!(align_of::<$type>() == $align, concat!(stringify!($type), " has another alignment"));
            let mut filled = 0;
            $(
                assert!(offset_of!($type, $field) == $offset, concat!(stringify!($field), " moved"));
                assert!(filled == $offset, concat!("padding before ", stringify!($field)));
                filled += size_of::<$field_type>();
            )+
            assert!(filled == $size, concat!(stringify!($type), " ends with padding"));
        };)+
    };
}

layouts! {
    AddressOwner: 8, align 4 { domain: u32 = 0, flags: u32 = 4 }
    FrontendKey: 20, align 2 { addr: [u8; 16] = 0, port: u16 = 16, transport: u8 = 18, pad: u8 = 19 }
    InterfaceKey: 12, align 4 { ifindex: u32 = 0, domain: u32 = 4, vlan: u16 = 8, inner_vlan: u16 = 10 }
    Policy: 72, align 8 {
        per_source: Rate = 0, total: Rate = 16, echo: Rate = 32, open_per_source: u32 = 48, open_total: u32 = 52,
        sources: u32 = 56, flags: u32 = 60, v4_bits: u8 = 64, v6_bits: u8 = 65, pad: [u8; 6] = 66,
    }
    Rate: 16, align 8 { interval_ns: u64 = 0, burst_ns: u64 = 8 }
    RateSet: 128, align 8 { sources: [u64; 7] = 0, full_at: [u64; 7] = 56, strangers: u64 = 112, known: u64 = 120 }
    DomainRates: 64, align 8 { total: u64 = 0, echo: u64 = 8, seed: [u64; 2] = 16, pad: [u64; 4] = 32 }
    SourceLine: 64, align 8 { words: [u64; 8] = 0 }
    DialledKey: 24, align 4 { addr: [u8; 16] = 0, domain: u32 = 16, port: u16 = 20, transport: u8 = 22, pad: u8 = 23 }
    Counter: 16, align 8 { packets: u64 = 0, bytes: u64 = 8 }
    Sample: 64, align 8 {
        ktime_ns: u64 = 0, saddr: [u8; 16] = 8, daddr: [u8; 16] = 24, domain: u32 = 40, ifindex: u32 = 44, len: u32 = 48,
        sport: u16 = 52, dport: u16 = 54, vlan: u16 = 56, protocol: u8 = 58, hook: u8 = 59, reason: u8 = 60,
        tcp_flags: u8 = 61, pad: u16 = 62,
    }
    SampleBudget: 16, align 8 { interval_ns: u64 = 0, burst_ns: u64 = 8 }
    SampleState: 24, align 8 { due_ns: u64 = 0, over_budget: u64 = 8, lost: u64 = 16 }
    Instance: 32, align 8 { seed: [u64; 2] = 0, netns: u64 = 16, epoch: u64 = 24 }
    SourceKey: 20, align 4 { addr: [u8; 16] = 0, domain: u32 = 16 }
    Mark: 40, align 8 { opened_ns: u64 = 0, epoch: u64 = 8, source: SourceKey = 16, flags: u32 = 36 }
    Connections: 320, align 8 {
        rtt: [u64; RTT_BUCKETS] = 0, duration: [u64; DURATION_BUCKETS] = 144, rtt_us: u64 = 264, duration_us: u64 = 272,
        opened: u64 = 280, retransmits: u64 = 288, bytes_received: u64 = 296, bytes_acked: u64 = 304, uncounted: u64 = 312,
    }
    KnownSet: 64, align 8 { ways: [u64; KNOWN_WAYS] = 0 }
}
