//! The pure half of the BPF programs: what a packet is ([`packet`]), whether its source is on a list ([`sources`]),
//! what becomes of it ([`decide`]), how many may come ([`rates`]), how a SYN is answered without a connection ([`cookie`]), and what a worker may do with sockets ([`contain`]).
//!
//! Compiled for both targets; bytes and tables come in through traits such as [`packet::Bytes`] and [`decide::Tables`], so the
//! same code runs in the kernel, in tests and under the fuzzer. No pointer, no map, no aya here; nothing panics, whatever the
//! bytes. Functions are inlined because a BPF program has one stack frame of 512 bytes for all of it.
#![cfg_attr(not(test), no_std)]

pub mod contain;
pub mod cookie;
pub mod decide;
pub mod known;
mod martian;
pub mod open;
pub mod packet;
pub mod rates;
pub mod sources;
