//! Where things are pinned: `<bpffs>/tidegate/<instance>/{maps-v<abi>,programs,links,object-<hash>}`, folders 0700.
//!
//! Maps of each ABI version have a folder of their own, so programs and maps of two versions never mix. A folder gets its name
//! when its maps hold what was wanted: until then it is called `maps-v<abi>-new`, and whoever finds it so begins again. Names
//! have no dot: bpffs refuses it. Links are named by numbers, since interfaces are renamed while their index stays.

use std::{
    fs,
    hash::{DefaultHasher, Hasher},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use tidegate_abi::{ABI_VERSION, map::name};

use crate::{KernelError, programs::ProgramName, sys};

/// Stands in the name of a pin between the map of maps and the place in it that the pinned map has. Maps themselves have no
/// such sign in their names.
pub(crate) const INNER: char = '-';

/// Only root and the agent's user may open pins.
const MODE: u32 = 0o700;

/// Tells one BPF object from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObjectHash(u64);

impl ObjectHash {
    /// Hash of an object's bytes. Another hash function in a later release costs one loading more, nothing else.
    pub(crate) fn of(object: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(object);
        Self(hasher.finish())
    }
}

/// The folders of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    bpffs: PathBuf,
    root: PathBuf,
    /// ABI version of the maps.
    version: u32,
}

impl Pins {
    /// The folders of an instance; nothing is made yet.
    pub(crate) fn new(bpffs: &Path, instance: &str) -> Self {
        Self { bpffs: bpffs.to_owned(), root: bpffs.join("tidegate").join(instance), version: ABI_VERSION }
    }

    /// The same with maps of a version.
    pub(crate) fn of_version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// Makes the folders that are missing, and closes those that others may open; returns the closed ones.
    ///
    /// Whoever can open a pinned map can change what is admitted. So a folder, or anything in it, that belongs to somebody else
    /// is not used at all: what it holds may be anything.
    pub(crate) fn create(&self) -> Result<Vec<PathBuf>, KernelError> {
        let mut closed = Vec::new();
        // Beside this instance there may be those of other users.
        if let Some(parent) = self.root.parent() {
            closed.extend(make_private(parent)?);
        }
        for folder in [self.root.clone(), self.programs(), self.links()] {
            closed.extend(make_private(&folder)?);
            check_owner(&folder)?;
        }
        if self.maps().exists() {
            closed.extend(make_private(&self.maps())?);
            check_owner(&self.maps())?;
        }
        Ok(closed)
    }

    /// Folder of the maps of this ABI version, once they hold what was wanted.
    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{}", self.version))
    }

    /// Folder of the maps of this ABI version until then.
    pub(crate) fn new_maps(&self) -> PathBuf {
        self.root.join(format!("maps-v{}-new", self.version))
    }

    /// Where the BPF file system is.
    pub(crate) fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Folder of the maps in use, made if somebody has removed it.
    pub(crate) fn current_maps(&self, is_new: bool) -> Result<PathBuf, KernelError> {
        let folder = if is_new { self.new_maps() } else { self.maps() };
        make_private(&folder)?;
        Ok(folder)
    }

    /// Whether maps of this ABI version are there that hold what an earlier agent wanted.
    pub(crate) fn has_maps(&self) -> bool {
        name::ALL.iter().all(|name| self.maps().join(name).exists())
    }

    /// Makes an empty folder for new maps. What an agent has left there that died before its maps were filled goes. Maps of
    /// this version of which some are missing step aside: programs that run judge by them until the new ones are filled.
    pub(crate) fn begin_maps(&self) -> Result<PathBuf, KernelError> {
        let folder = self.new_maps();
        remove_folder(&folder)?;
        let current = self.maps();
        if current.exists() {
            let old = self.root.join(format!("maps-v{}-old", self.version));
            remove_folder(&old)?;
            fs::rename(&current, &old).map_err(pin_error(&current))?;
        }
        make_private(&folder)?;
        Ok(folder)
    }

    /// Gives new maps their name: they hold what was wanted. Done already when a step behind it is tried again.
    pub(crate) fn commit_maps(&self) -> Result<(), KernelError> {
        let folder = self.new_maps();
        match fs::rename(&folder, self.maps()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.has_maps() => Ok(()),
            result => result.map_err(pin_error(&folder)),
        }
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

    /// Whether every program is pinned, comes of this object and uses the maps that are taken over. The kernel that has verified them is the same: pins do not
    /// outlive it.
    pub(crate) fn has_object(&self, object: ObjectHash) -> bool {
        self.mark(object).exists()
            && ProgramName::ALL.iter().all(|program| self.programs().join(program.as_str()).exists())
    }

    /// Notes that the pinned programs are about to be others.
    pub(crate) fn unmark_object(&self) -> Result<(), KernelError> {
        for entry in fs::read_dir(&self.root).map_err(pin_error(&self.root))? {
            let path = entry.map_err(pin_error(&self.root))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("object-")) {
                remove_folder(&path)?;
            }
        }
        Ok(())
    }

    /// Notes which object the pinned programs come of.
    pub(crate) fn mark_object(&self, object: ObjectHash) -> Result<(), KernelError> {
        make_private(&self.mark(object)).map(drop)
    }

    /// An empty folder: a BPF file system has no files with text in them.
    fn mark(&self, object: ObjectHash) -> PathBuf {
        self.root.join(format!("object-{:016x}", object.0))
    }

    /// Removes the programs that this version does not have.
    pub(crate) fn remove_other_programs(&self) -> Result<(), KernelError> {
        let folder = self.programs();
        for entry in fs::read_dir(&folder).map_err(pin_error(&folder))? {
            let path = entry.map_err(pin_error(&folder))?.path();
            if !ProgramName::ALL.iter().any(|program| path.file_name() == Some(program.as_str().as_ref())) {
                remove_pin(&path)?;
            }
        }
        Ok(())
    }

    /// Removes all other maps: nothing refers to them once every link runs programs of this version.
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

/// Makes a folder that only this user may open, or makes sure that it is one; returns it when others could open it before.
fn make_private(folder: &Path) -> Result<Option<PathBuf>, KernelError> {
    let error = pin_error(folder);
    match fs::DirBuilder::new().mode(MODE).create(folder) {
        Err(found) if found.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.map_err(&error)?,
    }
    let own = geteuid().as_raw();
    // Not followed: a link would lead to what somebody else controls.
    let metadata = fs::symlink_metadata(folder).map_err(&error)?;
    if !metadata.is_dir() {
        return Err(KernelError::Foreign { path: folder.to_owned(), what: "is no folder".to_owned() });
    }
    if metadata.uid() != own {
        return Err(KernelError::Foreign {
            path: folder.to_owned(),
            what: format!("belongs to user {}", metadata.uid()),
        });
    }
    // A umask may have taken bits, and an earlier hand may have given some.
    let is_open = metadata.mode() & 0o7777 & !MODE != 0;
    if metadata.mode() & 0o7777 != MODE {
        fs::set_permissions(folder, fs::Permissions::from_mode(MODE)).map_err(&error)?;
    }
    Ok(is_open.then(|| folder.to_owned()))
}

/// Makes sure that nobody else has put anything into a folder.
fn check_owner(folder: &Path) -> Result<(), KernelError> {
    let error = pin_error(folder);
    let own = geteuid().as_raw();
    for entry in fs::read_dir(folder).map_err(&error)? {
        let entry = entry.map_err(&error)?;
        let uid = entry.metadata().map_err(&error)?.uid();
        if uid != own {
            return Err(KernelError::Foreign { path: entry.path(), what: format!("belongs to user {uid}") });
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<(), KernelError> {
    match remove_tree(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(pin_error(folder)),
    }
}

/// Turns an error about a path into a [`KernelError`].
pub(crate) fn pin_error(path: &Path) -> impl Fn(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Pin { path: path.clone(), source }
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> Result<OwnedFd, KernelError> {
    sys::open_pin(path).map_err(pin_error(path))
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
