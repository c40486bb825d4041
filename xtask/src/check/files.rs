//! Rules about the text of tracked files.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{place, run};

/// Lines that no source file exceeds, what is generated included.
const MAX_LINES: usize = 800;
/// Lines before an `#[allow]` in which its reason may stand, for attributes that rustfmt breaks.
const ATTRIBUTE_LINES: usize = 6;

/// Files of git with one of some endings, tracked or new.
fn tracked(endings: &[&str]) -> Result<Vec<PathBuf>> {
    let root = place::root();
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let names = run::read(Command::new("git").args(list).current_dir(&root))?;
    let names = names.split('\0').filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
    Ok(names.map(|name| root.join(name)).filter(|file| file.is_file()).collect())
}

/// No file of Rust is longer than [`MAX_LINES`].
///
/// # Errors
/// Names those that are.
pub(super) fn sizes() -> Result<()> {
    let mut long = Vec::new();
    for file in tracked(&[".rs"])? {
        let lines = read(&file)?.lines().count();
        if lines > MAX_LINES {
            long.push(format!("{}: {lines} lines", file.display()));
        }
    }
    if !long.is_empty() {
        bail!("longer than {MAX_LINES} lines:\n{}", long.join("\n"));
    }
    Ok(())
}

/// No `allow` or `expect` of a lint lacks its reason, also in workspaces that clippy does not see from here.
///
/// # Errors
/// Names the places.
pub(super) fn exceptions() -> Result<()> {
    let mut bare = Vec::new();
    for file in tracked(&[".rs"])? {
        let text = read(&file)?;
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let line = line.trim_start();
            let is_exception =
                ["#[allow(", "#![allow(", "#[expect(", "#![expect("].iter().any(|form| line.starts_with(form));
            let attribute = &lines[at..(at + ATTRIBUTE_LINES).min(lines.len())];
            let end = attribute.iter().position(|line| line.trim_end().ends_with(")]"));
            let attribute = &attribute[..end.map_or(attribute.len(), |end| end + 1)];
            if is_exception && !attribute.iter().any(|line| line.contains("reason = ")) {
                bare.push(format!("{}:{}", file.display(), at + 1));
            }
        }
    }
    if !bare.is_empty() {
        bail!("lint exceptions without `reason = \"…\"`:\n{}", bare.join("\n"));
    }
    Ok(())
}

/// Every shell script parses.
///
/// # Errors
/// Says what the shell says.
pub(super) fn shell() -> Result<()> {
    let mut scripts = tracked(&[".sh"])?;
    scripts.extend(tracked(&[".ci/run"])?);
    for script in scripts {
        run::read(Command::new("bash").arg("-n").arg(&script))?;
    }
    Ok(())
}

fn read(file: &std::path::Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
