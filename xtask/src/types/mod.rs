//! `types`: generates the Gateway API types of `tidegate-gateway-api` from the CRDs of the pinned release.
//!
//! The CRDs come as a Go module, because Go's module proxy and checksum database make them the same everywhere and for
//! ever. The header of the result carries a hash of what it was made with and of what was made; `check` compares both.

mod names;
mod rewrite;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{
    place, run,
    setup::{self, Need},
    versions::{GATEWAY_API, GATEWAY_API_SUM, KOPIUM},
};

/// The Go module with the CRDs.
const MODULE: &str = "sigs.k8s.io/gateway-api";
/// A Go module proxy, where `GOPROXY` names none.
const PROXY: &str = "https://proxy.golang.org";
/// The channel is a superset of the standard one.
const CRDS: &str = "config/crd/experimental";
/// The API version of every kind.
const VERSION: &str = "v1";
/// Where the result goes.
const GENERATED: &str = "agent/crates/gateway-api/src/generated";

/// Plural name of each kind and its module. What several share gets the docs of the first.
const KINDS: [(&str, &str); 10] = [
    ("gatewayclasses", "gateway_class"),
    ("gateways", "gateway"),
    ("listenersets", "listener_set"),
    ("httproutes", "http_route"),
    ("grpcroutes", "grpc_route"),
    ("tlsroutes", "tls_route"),
    ("tcproutes", "tcp_route"),
    ("udproutes", "udp_route"),
    ("backendtlspolicies", "backend_tls_policy"),
    ("referencegrants", "reference_grant"),
];

/// What kopium is told beside the file. No prelude: it would carry a lint exception without a reason.
const KOPIUM_ARGS: [&str; 9] = [
    "--api-version",
    VERSION,
    "--docs",
    "--hide-prelude",
    "--smart-derive-elision",
    "-D",
    "PartialEq",
    "-D",
    "Default",
];

/// Digits of hashes in the header: they tell versions apart, they guard nothing.
const HASH_DIGITS: usize = 16;

/// What `types` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Generates the types anew.
///
/// # Errors
/// The CRDs or kopium cannot be had, or the CRDs do not fit the table of names.
pub(crate) fn run(_: &Args) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Download])?;
    let kopium = setup::kopium()?;
    let crds = fetch_module()?.join(CRDS);
    let mut outputs = Vec::new();
    run::judge(&format!("generate {} kinds", KINDS.len()), || {
        for (plural, module) in KINDS {
            let file = crds.join(format!("gateway.networking.k8s.io_{plural}.yaml"));
            outputs.push((module, run::read(Command::new(&kopium).arg("-f").arg(&file).args(KOPIUM_ARGS))?));
        }
        Ok(())
    })?;
    let modules = rewrite::modules(&outputs, &names::table())?;
    let folder = place::root().join(GENERATED);
    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    fs::create_dir_all(&folder)?;
    let mut files = Vec::new();
    for (module, source) in &modules {
        let file = folder.join(format!("{module}.rs"));
        fs::write(&file, source).with_context(|| format!("cannot write {}", file.display()))?;
        files.push(file);
    }
    let config = place::root().join("rustfmt.toml");
    run::read(Command::new("rustfmt").args(["--edition", "2024", "--config-path"]).arg(config).args(&files))?;
    fs::write(folder.join("mod.rs"), index(&folder)?)?;
    run::note(&format!("{} modules in {GENERATED}", modules.len()));
    verify()
}

/// Checks that the committed types are those that [`run()`] would write, without running it.
///
/// # Errors
/// They were made with something else, or edited.
pub(crate) fn verify() -> Result<()> {
    let folder = place::root().join(GENERATED);
    let found = fs::read_to_string(folder.join("mod.rs")).with_context(|| format!("{GENERATED} has no mod.rs"))?;
    ensure!(
        found == index(&folder)?,
        "{GENERATED} is not what `cargo xtask types` writes with Gateway API {GATEWAY_API} and kopium {KOPIUM}: run it"
    );
    Ok(())
}

/// `mod.rs`, which carries the hashes.
fn index(folder: &Path) -> Result<String> {
    let mut modules: Vec<_> = KINDS.iter().map(|(_, module)| *module).chain([rewrite::COMMON]).collect();
    modules.sort_unstable();
    let mut made = Sha256::new();
    for module in &modules {
        let file = folder.join(format!("{module}.rs"));
        made.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let mut with = Sha256::new();
    with.update(format!("{GATEWAY_API} {GATEWAY_API_SUM} {KOPIUM} {KINDS:?} {KOPIUM_ARGS:?}"));
    with.update(include_str!("names.rs"));
    with.update(include_str!("rewrite.rs"));
    let (with, made) = (format!("{:x}", with.finalize()), format!("{:x}", made.finalize()));
    let (with, made) = (&with[..HASH_DIGITS], &made[..HASH_DIGITS]);
    let declarations: String = modules.iter().map(|module| format!("pub mod {module};\n")).collect();
    Ok(format!(
        "//! The kinds of Gateway API {GATEWAY_API}: one module a kind, and what several kinds share in [`common`].\n\
         //!\n\
         //! Of the experimental channel, a superset of the standard one. Generated by `cargo xtask types`: do not edit.\n\
         //! Made with kopium {KOPIUM}; inputs {with}, outputs {made}.\n\n\
         #![allow(missing_docs, reason = \"the CRDs describe fields, not the values of enums\")]\n\
         #![allow(rustdoc::all, clippy::all, reason = \"the text is the CRDs' own\")]\n\n\
         {declarations}",
    ))
}

/// Brings the module into the cache; returns its folder. Its content is what [`GATEWAY_API_SUM`] says, or an error.
fn fetch_module() -> Result<PathBuf> {
    let downloads = place::cache()?.join("downloads");
    let folder = downloads.join(format!("gateway-api-{GATEWAY_API}"));
    let prefix = format!("{MODULE}@{GATEWAY_API}");
    if !folder.exists() {
        let zip = folder.with_extension("zip");
        let partial = folder.with_extension("partial");
        fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
        let proxy = env::var("GOPROXY").unwrap_or_default();
        let proxy = proxy.split([',', '|']).find(|proxy| proxy.starts_with("http")).unwrap_or(PROXY);
        let url = format!("{}/{MODULE}/@v/{GATEWAY_API}.zip", proxy.trim_end_matches('/'));
        let mut curl = Command::new("curl");
        run::step("download the Gateway API CRDs", curl.args(["-fsSL", "--retry", "3", "-o"]).arg(&zip).arg(url))?;
        run::read(Command::new("unzip").args(["-qo"]).arg(&zip).arg("-d").arg(&partial))?;
        fs::rename(&partial, &folder)?;
        fs::remove_file(&zip)?;
    }
    let sum = module_sum(&folder)?;
    if sum != GATEWAY_API_SUM {
        bail!("{} has the hash {sum}, not {GATEWAY_API_SUM}: remove it and try again", folder.display());
    }
    Ok(folder.join(prefix))
}

/// Go's `h1` hash of a module's files, in hexadecimal: the hash of a list of names with their hashes, sorted by name.
fn module_sum(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    list_files(folder, &mut files)?;
    let mut names: Vec<_> =
        files.iter().filter_map(|file| Some((file.strip_prefix(folder).ok()?.to_str()?, file))).collect();
    names.sort_unstable();
    let mut list = Sha256::new();
    for (name, file) in names {
        list.update(format!("{:x}  {name}\n", Sha256::digest(fs::read(file)?)));
    }
    Ok(format!("{:x}", list.finalize()))
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
