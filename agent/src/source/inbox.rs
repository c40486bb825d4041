//! What the kernel has told about a folder and when it may be acted on.
//!
//! A file that is being written is left alone until its writer closes it; a file that went away is given a moment to come
//! back, because many tools replace a file by deleting it first. Pure: time comes in as an argument.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Wait after the last sign of a change, so that changes made together are one batch.
const QUIET: Duration = Duration::from_millis(1);

/// Longest wait for quiet.
const MAX_BATCHING: Duration = Duration::from_millis(10);

/// Wait for the writer of a file to close it, after its last write.
const WRITING: Duration = Duration::from_millis(250);

/// Wait for a file that went away to come back.
const GONE: Duration = Duration::from_millis(50);

/// Paths that are remembered one by one; more are answered with a walk of everything.
const MAX_PATHS: usize = 4096;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Created or written to; the writer has it open still.
    Writing,
    /// Closed by its writer, or moved here: complete.
    Complete,
    /// Deleted or moved away.
    Gone,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Files to read again.
    pub paths: BTreeSet<PathBuf>,
    /// Walk everything.
    pub is_walk: bool,
    /// When the first of it was seen.
    pub seen: Option<Instant>,
}

/// Signs that were not acted on yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    paths: HashMap<PathBuf, Waiting>,
    walk: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    seen: Instant,
    due: Instant,
    is_gone: bool,
}

impl Inbox {
    /// Takes a sign about a file.
    pub(super) fn push(&mut self, path: PathBuf, sign: Sign, now: Instant) {
        if self.paths.len() >= MAX_PATHS && !self.paths.contains_key(&path) {
            return self.push_walk(Sign::Complete, now);
        }
        let seen = self.paths.get(&path).map_or(now, |waiting| waiting.seen);
        self.paths.insert(path, Waiting { seen, due: due(sign, seen, now), is_gone: sign == Sign::Gone });
    }

    /// Asks for a walk.
    pub(super) fn push_walk(&mut self, sign: Sign, now: Instant) {
        let seen = self.walk.map_or(now, |waiting| waiting.seen);
        let wanted = due(sign, seen, now);
        // A walk reads what it finds changed, so it must not come earlier than the writers that asked for one are done,
        // unless something complete is waiting.
        let due = self.walk.map_or(wanted, |waiting| if sign == Sign::Writing { waiting.due } else { wanted });
        self.walk = Some(Waiting { seen, due, is_gone: false });
    }

    /// When something will be due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.paths.values().chain(&self.walk).map(|waiting| waiting.due).min()
    }

    /// Whether a file is to be left as it is for now: it is being written, or may come back.
    pub(super) fn is_unsettled(&self, path: &Path) -> bool {
        self.paths.contains_key(path)
    }

    /// Whether a file went away a moment ago.
    pub(super) fn is_gone(&self, path: &Path) -> bool {
        self.paths.get(path).is_some_and(|waiting| waiting.is_gone)
    }

    /// Takes out what is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Due {
        let mut taken = Due::default();
        let note = |seen: Instant, taken: &mut Due| taken.seen = Some(taken.seen.map_or(seen, |first| first.min(seen)));
        self.paths.retain(|path, waiting| {
            let is_due = waiting.due <= now;
            if is_due {
                note(waiting.seen, &mut taken);
                taken.paths.insert(path.clone());
            }
            !is_due
        });
        if let Some(walk) = self.walk.take_if(|walk| walk.due <= now) {
            note(walk.seen, &mut taken);
            taken.is_walk = true;
        }
        taken
    }
}

fn due(sign: Sign, seen: Instant, now: Instant) -> Instant {
    match sign {
        Sign::Complete => (now + QUIET).min(seen.max(now - MAX_BATCHING) + MAX_BATCHING),
        Sign::Writing => now + WRITING,
        Sign::Gone => now + GONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_its_writer_is_done_or_silent() {
        let (mut inbox, start, path) = (Inbox::default(), Instant::now(), PathBuf::from("a"));
        inbox.push(path.clone(), Sign::Writing, start);
        assert!(inbox.is_unsettled(&path));
        assert_eq!(inbox.take_due(start + QUIET), Due::default());
        inbox.push(path.clone(), Sign::Complete, start + QUIET);
        let due = inbox.take_due(start + 3 * QUIET);
        assert_eq!((due.paths.len(), due.seen), (1, Some(start)));
        inbox.push(path, Sign::Writing, start);
        assert_eq!(inbox.take_due(start + WRITING).paths.len(), 1);
        assert_eq!(inbox.next_due(), None);
    }

    #[test]
    fn a_file_that_comes_back_was_never_gone() {
        let (mut inbox, start, path) = (Inbox::default(), Instant::now(), PathBuf::from("a"));
        inbox.push(path.clone(), Sign::Gone, start);
        assert!(inbox.is_gone(&path));
        inbox.push(path.clone(), Sign::Writing, start + QUIET);
        assert!(!inbox.is_gone(&path));
        assert_eq!(inbox.take_due(start + GONE + QUIET), Due::default());
    }

    #[test]
    fn a_steady_stream_of_changes_cannot_postpone_a_batch() {
        let (mut inbox, start) = (Inbox::default(), Instant::now());
        let mut now = start;
        while now < start + 2 * MAX_BATCHING {
            inbox.push("a".into(), Sign::Complete, now);
            inbox.push_walk(Sign::Complete, now);
            now += QUIET / 2;
            if !inbox.take_due(now).paths.is_empty() {
                return;
            }
        }
        panic!("nothing was due after {MAX_BATCHING:?}");
    }

    #[test]
    fn too_many_paths_become_one_walk() {
        let (mut inbox, start) = (Inbox::default(), Instant::now());
        for index in 0..=MAX_PATHS {
            inbox.push(format!("{index}").into(), Sign::Complete, start);
        }
        assert!(inbox.take_due(start + QUIET).is_walk);
    }
}
