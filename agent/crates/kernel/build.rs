//! Finds the BPF object that is built into the crate. Never builds it: that takes another compiler (`cargo xtask ebpf`).

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=TIDEGATE_BPF_OBJECT");
    let given = env::var_os("TIDEGATE_BPF_OBJECT").map(PathBuf::from);
    // OUT_DIR is <target>/[<triple>/]<profile>/build/<package>/out.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = [4, 5].into_iter().filter_map(|up| Some(out.ancestors().nth(up)?.join("bpf/tidegate.o")));
    let candidates: Vec<PathBuf> = given.into_iter().chain(built).collect();
    for candidate in &candidates {
        println!("cargo::rerun-if-changed={}", candidate.display());
    }
    match candidates.iter().find(|path| path.is_file()) {
        Some(object) => println!("cargo::rustc-env=TIDEGATE_BPF_OBJECT={}", object.display()),
        None => println!(
            "cargo::error=the BPF object is not built: run `cargo xtask ebpf` (looked for {})",
            candidates[0].display()
        ),
    }
}
