//! Where things are pinned: `<bpffs>/tidegate/<instance>/{maps-v<abi>,programs,links}`, folders 0700.
//!
//! Maps of each ABI version have a folder of their own, so programs and maps of two versions never mix. Names have no dot:
//! bpffs refuses it. Links are named by numbers, since interfaces are renamed while their index stays.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use tidegate_abi::ABI_VERSION;

use crate::{KernelError, sys};

/// Only root and the agent's user may open pins.
const MODE: u32 = 0o700;

/// The folders of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The folders of an instance; nothing is made yet.
    pub(crate) fn new(bpffs: &Path, instance: &str) -> Self {
        Self { root: bpffs.join("tidegate").join(instance) }
    }

    /// Makes the folders that are missing.
    pub(crate) fn create(&self) -> Result<(), KernelError> {
        for folder in [self.maps(), self.programs(), self.links()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(MODE)
                .create(&folder)
                .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(MODE)))
                .map_err(pin_error(&folder))?;
        }
        Ok(())
    }

    /// Folder of the maps of this ABI version.
    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{ABI_VERSION}"))
    }

    /// Folder of the programs that the links run.
    pub(crate) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Folder of the links.
    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Pin of a link.
    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the pinned links.
    pub(crate) fn link_names(&self) -> Result<Vec<String>, KernelError> {
        let folder = self.links();
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(pin_error(&folder))? {
            names.push(entry.map_err(pin_error(&folder))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Removes the maps of other ABI versions: nothing refers to them once every link runs programs of this one.
    pub(crate) fn remove_other_maps(&self) -> Result<(), KernelError> {
        let current = self.maps();
        for entry in fs::read_dir(&self.root).map_err(pin_error(&self.root))? {
            let path = entry.map_err(pin_error(&self.root))?.path();
            let is_maps = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("maps-v"));
            if is_maps && path != current {
                remove_tree(&path).map_err(pin_error(&path))?;
            }
        }
        Ok(())
    }
}

/// Turns an error about a path into a [`KernelError`].
pub(crate) fn pin_error(path: &Path) -> impl Fn(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Pin { path: path.clone(), source }
}

/// Removes a pin; one that is gone already is no error.
pub(crate) fn remove_pin(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(pin_error(path)),
    }
}

/// Ends a link and removes its pin; one that is gone already is no error.
pub(crate) fn remove_link(path: &Path) -> Result<(), KernelError> {
    end_link(path);
    remove_pin(path)
}

/// What cannot be ended here hangs on nothing any more, or ends with its pin.
fn end_link(path: &Path) {
    if let Ok(link) = sys::open_pin(path) {
        let _ = sys::detach_link(link.as_fd());
    }
}

/// Removes every pin of an instance: its programs are detached and nothing is judged any more.
///
/// # Errors
/// When a pin or folder cannot be removed. An instance that does not exist is no error.
pub fn detach_all(bpffs: &Path, instance: &str) -> io::Result<()> {
    let root = Pins::new(bpffs, instance).root;
    if let Ok(links) = fs::read_dir(root.join("links")) {
        for link in links {
            end_link(&link?.path());
        }
    }
    // Links first: a program must not outlive its maps' pins, or a new agent would fill maps that nobody reads.
    for folder in [root.join("links"), root.clone()] {
        match remove_tree(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    // The parent goes with its last instance; while others live it is not empty and stays.
    if let Some(parent) = root.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_tree(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(folder)
}
