//! What a dynamically linked program needs beside itself: its loader and its libraries, as the machine's own loader finds them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::archive::File;
use crate::run;

/// Loader and libraries of a program of this project, each at the path where the loader looks for it.
///
/// # Errors
/// One of them is missing on this machine.
pub(super) fn of(program: &Path) -> Result<Vec<File>> {
    let listed = run::read(Command::new("ldd").arg(program).env("LC_ALL", "C"))?;
    let mut files = Vec::new();
    for path in paths(&listed)? {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push(File { path: path.display().to_string(), mode: 0o755, content });
    }
    Ok(files)
}

/// The files in a list of ldd's: `name => path (address)`, and `path (address)` for the loader. The vDSO is no file.
fn paths(listed: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in listed.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "statically linked") {
        let (name, found) = line.split_once(" => ").unwrap_or((line, line));
        let path = found.split(" (").next().unwrap_or_default().trim();
        if path.starts_with('/') {
            paths.push(path.into());
        } else if !name.starts_with("linux-vdso") {
            bail!("the program needs {name}, which this machine does not have ({line})");
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\tlinux-vdso.so.1 (0x00007f8512912000)
\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f85128e1000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f850f21e000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f8512914000)
";

    #[test]
    fn libraries_and_loader_are_taken_and_the_vdso_is_not() {
        let wanted =
            ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths(LISTED).unwrap(), wanted.map(PathBuf::from));
    }

    #[test]
    fn a_static_program_needs_nothing() {
        assert!(paths("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = paths("\tlibgone.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libgone.so.1"), "{error}");
    }
}
