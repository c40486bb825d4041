//! The one place that pins what is not pinned by `Cargo.lock` or `rust-toolchain.toml`.
//!
//! A change here changes the names of the cache's folders, so an old tool is never taken for a new one.

/// Linker of BPF programs. It reads the bitcode of the LLVM that it was built with and of no newer one.
pub(crate) const BPF_LINKER: &str = "0.13.0";

/// LLVM major versions that [`BPF_LINKER`] has a feature for. The one used is that of the compiler found.
pub(crate) const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// LLVM major version of Debian's `rustc-web`, for the packages that go with it.
pub(crate) const DEBIAN_LLVM: u32 = 22;

/// Oldest rustc minor version that the BPF programs are built with: aya-ebpf and edition 2024 with a linker of LLVM 22.
pub(crate) const BPF_RUSTC_MINOR: u32 = 95;

/// Judge of licences, bans and sources of dependencies, where it is installed: it takes minutes to build.
pub(crate) const CARGO_DENY: &str = "0.20.2";

/// Gateway API release that `types` generates from, a Go module version.
pub(crate) const GATEWAY_API: &str = "v1.7.0";

/// The Go checksum database's hash (`h1`, over names and contents of files) of that module, in hexadecimal.
pub(crate) const GATEWAY_API_SUM: &str = "76e5679bb9ceea85df30c5167dc0e8069878ec2611fcc137346c5c70e56095a6";

/// Generator of Rust types from CRDs.
pub(crate) const KOPIUM: &str = "0.24.1";
