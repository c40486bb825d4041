//! The one place that pins what is not pinned by `Cargo.lock` or `rust-toolchain.toml`.
//!
//! The programs of the test cluster are pinned by the `go.mod` files in `tests/cluster`.
//!
//! A change here changes the names of the cache's folders, so an old tool is never taken for a new one.

use crate::modules::Module;

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

/// The CRDs that `types` generates from.
pub(crate) const GATEWAY_API_MODULE: Module =
    Module { path: "sigs.k8s.io/gateway-api", version: GATEWAY_API, sum: GATEWAY_API_SUM };

/// The CRDs of the release that the official conformance suite in `tests/cluster/conformance` belongs to.
pub(crate) const CONFORMANCE_CRDS: Module = Module {
    path: "sigs.k8s.io/gateway-api",
    version: "v1.6.3",
    sum: "94aa496b96c696b682fd07800af0a9b072dd98eeb2d2229fcd597a8336851187",
};

/// The Go that the suite of [`GATEWAY_API`] asks for; [`GO`] brings it.
pub(crate) const SUITE_GO: &str = "go1.27.0";

/// The Go that builds the test cluster, as `go env GOVERSION` says it. Where the machine has another or none, it comes as a
/// module.
pub(crate) const GO: &str = "go1.26.8";

/// [`GO`] for a machine of x86-64 and of 64-bit ARM.
pub(crate) const GO_TOOL_CHAINS: [(&str, Module); 2] = [
    (
        "x86_64",
        Module {
            path: "golang.org/toolchain",
            version: "v0.0.1-go1.26.8.linux-amd64",
            sum: "64e9867b53a77d110330875bd508b81bd252b833c12c613164c4389e2b354573",
        },
    ),
    (
        "aarch64",
        Module {
            path: "golang.org/toolchain",
            version: "v0.0.1-go1.26.8.linux-arm64",
            sum: "b182ff3ba32a4baf0c2f4923b10dfa5a8608a49aa4c3ad13c62cd651850a40c7",
        },
    ),
];
