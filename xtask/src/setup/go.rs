//! The Go that builds the test cluster: the machine's own when it is the pinned version, else the pinned one as a module.
//!
//! Go publishes its tool chains as modules, so this needs no site beside the module proxy.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{modules, place, run, versions};

/// Folders of a tool chain whose files are programs. The module's archive does not say so. That with `go` itself is last: it
/// tells that the others are done.
const PROGRAMS: [&str; 2] = ["pkg/tool", "bin"];

/// The `go` command of the pinned version.
///
/// # Errors
/// It cannot be had.
pub(crate) fn go() -> Result<PathBuf> {
    if let Some(program) = place::find_program("go")
        && run::read(Command::new(&program).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))
            .is_ok_and(|version| version.trim() == versions::GO)
    {
        return Ok(program);
    }
    let (_, module) = versions::GO_TOOL_CHAINS
        .iter()
        .find(|(machine, _)| *machine == env::consts::ARCH)
        .with_context(|| format!("no Go is pinned for {}: install {} by hand", env::consts::ARCH, versions::GO))?;
    let folder = modules::fetch(module)?;
    let program = folder.join("bin/go");
    if fs::metadata(&program)?.permissions().mode() & 0o100 == 0 {
        for programs in PROGRAMS {
            make_executable(&folder.join(programs))?;
        }
    }
    Ok(program)
}

fn make_executable(folder: &Path) -> Result<()> {
    for file in place::files_below(folder)? {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", file.display()))?;
    }
    Ok(())
}
