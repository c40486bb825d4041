//! Licences of dependencies: by `deny.toml`'s own list with cargo's metadata always, by cargo-deny where it is installed.
//!
//! cargo-deny takes three minutes to build on two cores; the list of licences is what must never be missed.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::crates;
use crate::{place, run, setup, versions::CARGO_DENY};

/// Workspaces whose results are given to others; a licence of what only tests binds nobody.
const SHIPPED: [&str; 2] = ["", "ebpf/programs"];

/// Every dependency may be used under a licence that `deny.toml` allows.
///
/// # Errors
/// Names those that may not, with their licence.
pub(super) fn allowed() -> Result<()> {
    let rules = fs::read_to_string(place::root().join("deny.toml")).context("there is no deny.toml")?;
    let allowed = allow_list(&rules)?;
    let mut wrong = BTreeSet::new();
    for workspace in SHIPPED {
        judge(&crates::metadata(workspace)?, &allowed, &mut wrong);
    }
    if !wrong.is_empty() {
        bail!("not allowed by deny.toml:\n{}", Vec::from_iter(wrong).join("\n"));
    }
    Ok(())
}

fn judge(metadata: &Value, allowed: &BTreeSet<String>, wrong: &mut BTreeSet<String>) {
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name =
            format!("{} {}", package["name"].as_str().unwrap_or("?"), package["version"].as_str().unwrap_or("?"));
        match package["license"].as_str() {
            Some(licence) if is_allowed(licence, allowed) => {}
            Some(licence) => drop(wrong.insert(format!("{name}: {licence}"))),
            None => drop(wrong.insert(format!("{name}: names no licence"))),
        }
    }
}

/// Licences, bans and sources as cargo-deny sees them, and advisories where their database is already on this machine.
///
/// # Errors
/// It found something, or was demanded and cannot be built.
pub(super) fn cargo_deny(is_demanded: bool) -> Result<()> {
    let Some(program) = setup::cargo_deny(is_demanded)? else {
        run::note(&format!(
            "cargo-deny is not installed: bans, sources and advisories were not checked (`cargo xtask check --deny` \
             builds {CARGO_DENY})"
        ));
        return Ok(());
    };
    let check = |title: &str, args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--workspace", "--locked", "check"]).args(args).current_dir(place::root());
        run::step(title, &mut command)
    };
    check("judge dependencies", &["licenses", "bans", "sources"])?;
    if has_advisories() {
        check("judge advisories", &["--disable-fetch", "advisories"])?;
    } else {
        run::note("advisories were not checked: their database is not here (`cargo deny fetch` brings it from GitHub)");
    }
    Ok(())
}

/// Whether cargo-deny has a database of advisories; it keeps each in a folder of its own.
fn has_advisories() -> bool {
    let home = std::env::var_os("CARGO_HOME")
        .map(Into::into)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    home.is_some_and(|home: std::path::PathBuf| {
        fs::read_dir(home.join("advisory-dbs"))
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("crates").is_dir()))
    })
}

/// The strings of `allow = […]` in the section `[licenses]`.
fn allow_list(rules: &str) -> Result<BTreeSet<String>> {
    let section = rules.split("\n[licenses]").nth(1).context("deny.toml has no [licenses]")?;
    let list = section.split("allow = [").nth(1).and_then(|rest| rest.split(']').next());
    let list = list.context("deny.toml allows no licences")?;
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default());
    Ok(lines.flat_map(|line| line.split(',')).map(|word| word.trim().trim_matches('"').to_owned()).collect())
}

/// Whether an SPDX expression can be fulfilled with some licences. `/` is an old way to write OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = any_of(&words, &mut at, allowed);
    result && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut result = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all_of(words, at, allowed);
    }
    result
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut result = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at, allowed);
    }
    result
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let result = any_of(words, at, allowed);
        *at += 1;
        return result;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&licence) || allowed.contains(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_as_spdx_means_them() {
        let allowed = allow_list("\n[licenses]\nallow = [\n  \"MIT\", # why\n  \"Apache-2.0\",\n]\n").unwrap();
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR GPL-3.0) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR X",
        ] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 AND (MIT OR Apache-2.0)", "", "MIT GPL-3.0"] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
    }
}
