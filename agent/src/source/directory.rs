//! The directory source: every YAML and JSON file below a folder, watched.
//!
//! inotify tells at once what changed; a walk of all names and times every `WALK_EVERY` finds what it did not tell (a
//! network file system, a lost event). A folder that goes away leaves everything in force: losing the configuration is
//! not an order to stop serving. File contents are read on a blocking thread, never on the agent's own.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tidegate_gateway_api::Event;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Batch, Problem, Severity, Store,
    inbox::{Due, Inbox, Sign},
    tree::{self, Stamp, Tree},
};
use crate::sys;

/// Period of the walk that finds what inotify did not tell. 10,000 files cost about 20 ms.
const WALK_EVERY: Duration = Duration::from_secs(30);

/// Period of the walk while the folder is away, or while it cannot be watched (`fs.inotify.max_user_watches`).
const WALK_EVERY_UNWATCHED: Duration = Duration::from_secs(1);

/// A file changed this shortly before it was read may change again within one tick of the file system's clock without a
/// new time stamp (4 ms at HZ=250; 10 ms at HZ=100).
const CLOCK_TICK: Duration = Duration::from_millis(20);

/// Why a folder cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is not there, or no folder, or not readable.
    #[error("source folder {}: {error}; create it or correct --source", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// No inotify instance.
    #[error("cannot watch the source folder: {0}; raise fs.inotify.max_user_instances")]
    Inotify(io::Error),
}

/// Watches `folder` and sends what changes; first everything that is there, even when that is nothing. Returns when
/// nobody receives any more. Dropping the future ends the watch.
///
/// # Errors
/// Only at the start, see [`DirectoryError`].
pub async fn watch(folder: PathBuf, out: mpsc::Sender<Batch>) -> Result<(), DirectoryError> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(|error| DirectoryError::Inotify(error.into()))?;
    let inotify = Arc::new(inotify);
    // A duplicate is waited on, so that reader and watcher each own what they use.
    let descriptor = inotify.as_fd().try_clone_to_owned().map_err(DirectoryError::Inotify)?;
    let events = sys::watch(descriptor).map_err(DirectoryError::Inotify)?;
    let mut reader = Reader::new(folder.clone(), inotify.clone());
    let mut inbox = Inbox::default();

    let started = Instant::now();
    let first = Due { is_walk: true, seen: Some(started), ..Due::default() };
    let (batch, found);
    (reader, inbox, batch, found) = run_blocking(reader, inbox, first).await;
    if let Err(error) = found {
        return Err(DirectoryError::Folder { folder, error });
    }
    if out.send(batch.unwrap_or_else(|| reader.to_batch(Vec::new(), started))).await.is_err() {
        return Ok(());
    }
    let mut next_walk = Instant::now() + reader.walk_period();
    loop {
        let due = inbox.next_due().map_or(next_walk, |due| due.min(next_walk));
        tokio::select! {
            () = out.closed() => return Ok(()),
            ready = events.readable() => {
                // An error of the wait itself leaves the periodic walk.
                let Ok(mut ready) = ready else { continue };
                match ready.try_io(|_| inotify.read_events().map_err(io::Error::from)) {
                    Ok(Ok(signs)) => reader.take_signs(signs, &mut inbox),
                    Ok(Err(_)) => inbox.push_walk(Sign::Complete, Instant::now()),
                    Err(_would_block) => {}
                }
                continue;
            }
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let now = Instant::now();
        let mut due = inbox.take_due(now);
        due.is_walk |= now >= next_walk;
        if !due.is_walk && due.paths.is_empty() {
            continue;
        }
        let is_walk = due.is_walk;
        let batch;
        (reader, inbox, batch, _) = run_blocking(reader, inbox, due).await;
        if is_walk {
            next_walk = Instant::now() + reader.walk_period();
        }
        if let Some(batch) = batch
            && out.send(batch).await.is_err()
        {
            return Ok(());
        }
    }
}

async fn run_blocking(mut reader: Reader, inbox: Inbox, due: Due) -> (Reader, Inbox, Option<Batch>, io::Result<()>) {
    spawn_blocking(move || {
        let (batch, found) = reader.read(due, &inbox);
        (reader, inbox, batch, found)
    })
    .await
    .expect("reading files does not panic, and the runtime ends its blocking tasks last")
}

struct Reader {
    root: PathBuf,
    inotify: Arc<Inotify>,
    watches: HashMap<WatchDescriptor, Watched>,
    store: Store,
    stamps: HashMap<PathBuf, Stamp>,
    /// Files whose stamp says nothing, because they were read within [`CLOCK_TICK`] of their change.
    unsettled: HashSet<PathBuf>,
    /// What is wrong with the folder as a whole.
    troubles: Vec<Problem>,
    is_watched: bool,
}

/// What a watched folder is watched for.
#[derive(Default)]
struct Watched {
    /// Path it was listed under; `None` when only links pass through it.
    listed: Option<PathBuf>,
    /// Names in it that links pass through.
    passed: HashSet<OsString>,
}

impl Reader {
    fn new(root: PathBuf, inotify: Arc<Inotify>) -> Self {
        Self {
            root,
            inotify,
            watches: HashMap::new(),
            store: Store::default(),
            stamps: HashMap::new(),
            unsettled: HashSet::new(),
            troubles: Vec::new(),
            is_watched: true,
        }
    }

    fn walk_period(&self) -> Duration {
        if self.is_watched { WALK_EVERY } else { WALK_EVERY_UNWATCHED }
    }

    fn take_signs(&self, signs: Vec<InotifyEvent>, inbox: &mut Inbox) {
        let now = Instant::now();
        for sign in signs {
            if sign.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                inbox.push_walk(Sign::Complete, now);
                continue;
            }
            let Some(watched) = self.watches.get(&sign.wd) else { continue };
            let Some(name) = sign.name else {
                // The folder itself was moved, deleted or unmounted.
                if !sign.mask.contains(AddWatchFlags::IN_IGNORED) {
                    inbox.push_walk(Sign::Complete, now);
                }
                continue;
            };
            let change = if sign.mask.intersects(AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE) {
                Sign::Gone
            } else if sign
                .mask
                .intersects(AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB)
            {
                Sign::Complete
            } else {
                Sign::Writing
            };
            if watched.passed.contains(&name) {
                inbox.push_walk(if change == Sign::Gone { Sign::Complete } else { change }, now);
            }
            let Some(folder) = &watched.listed else { continue };
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = folder.join(&name);
            let is_folder = sign.mask.contains(AddWatchFlags::IN_ISDIR);
            let is_link = || std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
            let was_link = self.stamps.get(&path).is_some_and(|stamp| stamp.is_link);
            let may_be_link = sign.mask.contains(AddWatchFlags::IN_CREATE) || change == Sign::Complete;
            if is_folder || was_link || (may_be_link && is_link()) {
                inbox.push_walk(Sign::Complete, now);
            } else if tree::is_read(&path) {
                inbox.push(path, change, now);
            }
        }
    }

    /// Does what is due. Returns a batch when something changed, and whether the folder could be walked.
    fn read(&mut self, due: Due, inbox: &Inbox) -> (Option<Batch>, io::Result<()>) {
        let before = self.troubles.clone();
        let mut events = Vec::new();
        let has_paths = !due.paths.is_empty();
        let mut gone = Vec::new();
        for path in due.paths {
            match std::fs::symlink_metadata(&path).and_then(|metadata| Stamp::of(&path, metadata.is_symlink())) {
                Ok(stamp) if path.is_file() => self.read_file(path, stamp, &mut events),
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.root.exists() => gone.push(path),
                _ => {}
            }
        }
        let mut has_changed = has_paths;
        let mut found = Ok(());
        if due.is_walk {
            match self.walk() {
                Ok(tree) => {
                    has_changed |= self.read_changed(&tree, inbox, &mut events);
                    gone.extend(self.find_gone(&tree, inbox));
                }
                Err(error) => {
                    let message = format!("the source folder cannot be read ({error}); its last state stays in force");
                    self.troubles = vec![self.trouble(self.root.clone(), message)];
                    self.is_watched = false;
                    found = Err(error);
                }
            }
        }
        // Last, so that an object that moved to another file is never without a file.
        for path in gone {
            has_changed = true;
            self.stamps.remove(&path);
            self.store.forget(&path, &mut events);
        }
        let seen = due.seen.unwrap_or_else(Instant::now);
        let is_news = has_changed || !events.is_empty() || before != self.troubles;
        (is_news.then(|| self.to_batch(events, seen)), found)
    }

    fn to_batch(&self, events: Vec<Event>, changed: Instant) -> Batch {
        let mut status = self.store.status();
        status.problems.extend(self.troubles.iter().cloned());
        Batch { events, changed, status, facts: None, addresses: Vec::new() }
    }

    fn read_file(&mut self, path: PathBuf, stamp: Stamp, events: &mut Vec<Event>) {
        self.store.read(&path, events);
        let (seconds, nanos) = stamp.changed();
        let changed = Duration::new(seconds.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0));
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).unwrap_or_default();
        if age < CLOCK_TICK {
            self.unsettled.insert(path.clone());
        } else {
            self.unsettled.remove(&path);
        }
        self.stamps.insert(path, stamp);
    }

    fn read_changed(&mut self, tree: &Tree, inbox: &Inbox, events: &mut Vec<Event>) -> bool {
        let mut has_changed = false;
        for (path, stamp) in &tree.files {
            let is_same = self.stamps.get(path) == Some(stamp) && !self.unsettled.contains(path);
            if !is_same && !inbox.is_unsettled(path) {
                has_changed = true;
                self.read_file(path.clone(), *stamp, events);
            }
        }
        has_changed
    }

    fn find_gone(&self, tree: &Tree, inbox: &Inbox) -> Vec<PathBuf> {
        let is_unknown = |path: &Path| tree.is_cut || tree.unreadable.iter().any(|(above, _)| path.starts_with(above));
        self.store
            .files()
            .filter(|path| !tree.files.contains_key(&***path) && !is_unknown(path) && !inbox.is_gone(path))
            .map(|path| path.to_path_buf())
            .collect()
    }

    /// Walks the folder and watches what it consists of.
    fn walk(&mut self) -> io::Result<Tree> {
        let mut watches: HashMap<WatchDescriptor, Watched> = HashMap::new();
        let mut refused = None;
        let inotify = self.inotify.clone();
        let mut add = |folder: &Path| match inotify.add_watch(folder, watch_flags()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                refused.get_or_insert((folder.to_owned(), error));
                None
            }
        };
        let tree = tree::walk(&self.root, &mut |folder| {
            if let Some(watch) = add(folder) {
                watches.entry(watch).or_default().listed = Some(folder.to_owned());
            }
        })?;
        for (folder, names) in &tree.passed {
            if let Some(watch) = add(folder) {
                watches.entry(watch).or_default().passed.extend(names.iter().cloned());
            }
        }
        for old in self.watches.keys().filter(|watch| !watches.contains_key(watch)) {
            // Fails when the folder is gone, and the kernel has dropped the watch by itself.
            let _ = self.inotify.rm_watch(*old);
        }
        self.watches = watches;
        self.is_watched = refused.is_none();
        self.troubles = self.find_troubles(&tree, refused);
        Ok(tree)
    }

    fn find_troubles(&self, tree: &Tree, refused: Option<(PathBuf, Errno)>) -> Vec<Problem> {
        let mut troubles = Vec::new();
        for (path, error) in &tree.unreadable {
            troubles.push(self.trouble(path.clone(), format!("cannot be read: {error}")));
        }
        if tree.is_cut {
            troubles.push(self.trouble(self.root.clone(), "holds too many files; the rest is not read".to_owned()));
        }
        if let Some((folder, error)) = refused {
            let period = WALK_EVERY_UNWATCHED.as_secs();
            let message = format!(
                "cannot be watched ({error}), so changes are looked for every {period} s; raise fs.inotify.max_user_watches"
            );
            troubles.push(Problem { severity: Severity::Warning, ..self.trouble(folder, message) });
        }
        troubles
    }

    fn trouble(&self, file: PathBuf, message: String) -> Problem {
        Problem { file, line: 0, column: 0, severity: Severity::Error, object: None, message }
    }
}

fn watch_flags() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}
