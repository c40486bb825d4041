//! The files below a folder, and the folders that must be watched to learn of their changes.
//!
//! Names that start with `.` are passed over: in a mounted ConfigMap the visible names are links through `..data` into
//! `..2026_…`, so each file is seen once. Links are followed; a folder reached twice (or a loop) is read once. What a
//! link passes through is reported too, because a swap anywhere on its way changes the file. Nothing is parsed here.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Depth of folders that is followed: deeper is a mistake, not a configuration.
const MAX_DEPTH: usize = 32;

/// Files that are read. Far above 10,000 routes in a file each; a `/` given by mistake ends here.
const MAX_FILES: usize = 200_000;

/// Links that one path may pass through: Linux's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Whether the path leads through a link.
    pub is_link: bool,
}

impl Stamp {
    /// Stamp of what a path leads to.
    ///
    /// # Errors
    /// As of `stat(2)`.
    pub fn of(path: &Path, is_link: bool) -> io::Result<Self> {
        Ok(Self::new(&fs::metadata(path)?, is_link))
    }

    fn new(metadata: &fs::Metadata, is_link: bool) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            is_link,
        }
    }

    /// Seconds and nanoseconds since the epoch of the last change of contents or inode.
    pub fn changed(&self) -> (i64, i64) {
        self.changed.max(self.modified)
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Tree {
    /// Every YAML or JSON file by its visible path.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// Folders or links that could not be read, with the reason. What is below them is unknown, not gone.
    pub unreadable: Vec<(PathBuf, io::Error)>,
    /// Whether the walk ended early at the limit on files.
    pub is_cut: bool,
    /// Folders whose listing matters, by the path they were listed under.
    pub listed: Vec<PathBuf>,
    /// Names that links pass through, by the folder that holds them.
    pub passed: HashMap<PathBuf, HashSet<OsString>>,
}

/// Walks everything below `root`. `before_listing` is called with each folder before it is listed: a watch set there
/// misses nothing.
///
/// # Errors
/// Only when `root` itself cannot be listed.
pub fn walk(root: &Path, before_listing: &mut dyn FnMut(&Path)) -> io::Result<Tree> {
    let mut walk = Walk { tree: Tree::default(), seen: HashSet::new(), before_listing };
    walk.note_links(root);
    walk.list(root, 0)?;
    Ok(walk.tree)
}

/// Whether a file of this name is read.
pub fn is_read(name: &Path) -> bool {
    let is_hidden = name.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden
        && name.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

struct Walk<'a> {
    tree: Tree,
    seen: HashSet<(u64, u64)>,
    before_listing: &'a mut dyn FnMut(&Path),
}

impl Walk<'_> {
    fn list(&mut self, folder: &Path, depth: usize) -> io::Result<()> {
        let metadata = fs::metadata(folder)?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        (self.before_listing)(folder);
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        self.tree.listed.push(folder.to_owned());
        // Real folders before links to them, so that a folder keeps its own name when both are there.
        entries.sort_by_cached_key(|entry| {
            (entry.file_type().is_ok_and(|file_type| file_type.is_symlink()), entry.file_name())
        });
        for entry in entries {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if let Err(error) = self.visit(&path, depth) {
                // A file that went away since the listing is simply gone.
                if error.kind() != io::ErrorKind::NotFound {
                    self.tree.unreadable.push((path, error));
                }
            }
        }
        Ok(())
    }

    fn visit(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        let is_link = fs::symlink_metadata(path)?.is_symlink();
        if is_link {
            self.note_links(path);
        }
        let metadata = match fs::metadata(path) {
            // A link to nothing: reported, because somebody meant it to be there.
            Err(error) if is_link && error.kind() == io::ErrorKind::NotFound => {
                return Err(io::Error::other("the link leads to nothing"));
            }
            other => other?,
        };
        if metadata.is_dir() {
            if depth >= MAX_DEPTH {
                return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
            }
            return self.list(path, depth + 1);
        }
        if metadata.is_file() && is_read(path) {
            if self.tree.files.len() >= MAX_FILES {
                self.tree.is_cut = true;
            } else {
                self.tree.files.insert(path.to_owned(), Stamp::new(&metadata, is_link));
            }
        }
        Ok(())
    }

    /// Notes each link on the way of `path`, with the folder that holds it, and the file at the end.
    fn note_links(&mut self, path: &Path) {
        let Ok(path) = std::path::absolute(path) else { return };
        let mut done = PathBuf::from("/");
        let mut todo: Vec<OsString> = components(&path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&name);
            match fs::read_link(&next) {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    self.tree.passed.entry(done.clone()).or_default().insert(name);
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    todo.extend(components(&target));
                }
                _ => {
                    if todo.is_empty() {
                        self.tree.passed.entry(done.clone()).or_default().insert(name);
                    }
                    done = next;
                }
            }
        }
    }
}

/// Names of a path, last first.
fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let tree = walk(root, &mut |_| {}).unwrap();
        tree.files.keys().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_config_map_is_read_once_through_its_visible_links() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("..2026_11_23");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), "").unwrap();
        symlink("..2026_11_23", dir.path().join("..data")).unwrap();
        symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        assert_eq!(names(dir.path()), ["a.yaml"]);
        let tree = walk(dir.path(), &mut |_| {}).unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        assert!(tree.passed[&root].contains(&OsString::from("..data")), "{:?}", tree.passed);
        assert!(tree.passed[&root.join("..2026_11_23")].contains(&OsString::from("a.yaml")));
    }

    #[test]
    fn loops_end_and_linked_folders_are_followed_once() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("x.json"), "").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/b.yml"), "").unwrap();
        fs::write(dir.path().join("sub/ignored.txt"), "").unwrap();
        symlink("..", dir.path().join("sub/up")).unwrap();
        symlink("sub", dir.path().join("again")).unwrap();
        symlink(elsewhere.path(), dir.path().join("other")).unwrap();
        symlink("self.yaml", dir.path().join("self.yaml")).unwrap();
        assert_eq!(names(dir.path()), ["other/x.json", "sub/b.yml"]);
    }

    #[test]
    fn what_cannot_be_read_is_told_from_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        symlink("nowhere", dir.path().join("a.yaml")).unwrap();
        let tree = walk(dir.path(), &mut |_| {}).unwrap();
        assert_eq!(tree.unreadable.len(), 1);
        assert!(walk(&dir.path().join("missing"), &mut |_| {}).is_err());
    }
}
