//! The objects of many files, kept by file: what a changed file means for the objects, and nothing else is touched.
//!
//! An object that was good stays in force in its last good version while its file cannot be read, or while the document
//! that may hold it is broken. An object in two files is taken from the first by path; the other is reported.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use tidegate_gateway_api::{Event, ObjectRef};

use super::{
    Problem, Severity, SourceStatus,
    objects::{Contents, Finding, Identity, Item, Notation, read_document},
    yaml::{self, Document, MAX_TEXT},
};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refuses.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Longer than [`MAX_TEXT`].
    #[error("is longer than {} MiB: split it", MAX_TEXT / 1024 / 1024)]
    TooLong,
    /// Not UTF-8.
    #[error("is not UTF-8 text (first wrong byte at {0})")]
    NotText(usize),
}

/// Objects by file.
#[derive(Default)]
pub struct Store {
    files: HashMap<Arc<Path>, FileState>,
    objects: HashMap<Identity, InForce>,
    claims: HashMap<Identity, BTreeSet<Arc<Path>>>,
    /// Objects that more than one file claims.
    contested: HashSet<Identity>,
    /// Files with something to report.
    troubled: BTreeSet<Arc<Path>>,
    hasher: RandomState,
}

#[derive(Default)]
struct FileState {
    documents: Vec<DocumentState>,
    /// Objects that the file no longer shows readably and that stay in force.
    held: HashSet<Identity>,
    /// Second mentions of an object in this file: (line, object).
    repeated: Vec<(u64, Identity)>,
    error: Option<String>,
}

struct DocumentState {
    line: u64,
    key: (usize, u64),
    contents: Contents,
}

struct InForce {
    file: Arc<Path>,
    reference: ObjectRef,
    fingerprint: u64,
    substance: u64,
    generation: i64,
}

impl Store {
    /// Reads a file again and returns what its change means.
    pub fn read(&mut self, path: &Path, events: &mut Vec<Event>) {
        let path: Arc<Path> = Arc::from(path);
        match read_text(&path) {
            Ok(text) => self.put_text(&path, &text, events),
            Err(error) => {
                self.files.entry(path.clone()).or_default().error = Some(error.to_string());
                self.troubled.insert(path);
            }
        }
    }

    /// Takes `text` as the new contents of a file and returns what that means.
    pub fn put_text(&mut self, path: &Arc<Path>, text: &str, events: &mut Vec<Event>) {
        let mut stale = self.replace(path, text, events);
        // Bounded: a file read afresh has all its objects at hand and is not named again.
        while let Some(path) = stale.pop() {
            if let Some(file) = self.files.get_mut(&path) {
                file.documents.iter_mut().for_each(|document| document.key = (0, 0));
            }
            match read_text(&path) {
                Ok(text) => stale.extend(self.replace(&path, &text, events).into_iter().filter(|other| *other != path)),
                Err(error) => {
                    self.files.entry(path.clone()).or_default().error = Some(error.to_string());
                    self.troubled.insert(path);
                }
            }
        }
    }

    /// Takes a file away with everything that only it held.
    pub fn forget(&mut self, path: &Path, events: &mut Vec<Event>) {
        let path: Arc<Path> = Arc::from(path);
        self.put_text(&path, "", events);
        self.files.remove(&path);
        self.troubled.remove(&path);
    }

    /// Whether a file is known.
    pub fn has_file(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// Paths of all files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// File and line of every object in force.
    pub fn places(&self) -> HashMap<ObjectRef, (&Path, u64)> {
        let mut places = HashMap::with_capacity(self.objects.len());
        for (path, file) in &self.files {
            for (line, item) in file.items().filter(|(_, item)| item.is_good) {
                if let Some(object) = self.objects.get(&item.identity).filter(|object| object.file == *path) {
                    places.entry(object.reference.clone()).or_insert((&**path, line));
                }
            }
        }
        places
    }

    /// State of everything.
    pub fn status(&self) -> SourceStatus {
        let mut problems = Vec::new();
        for path in &self.troubled {
            if let Some(file) = self.files.get(path) {
                file.report(path, &mut problems);
            }
        }
        for identity in &self.contested {
            let mut claims = self.claims.get(identity).into_iter().flatten();
            let Some(winner) = claims.next() else { continue };
            for loser in claims {
                problems.push(Problem {
                    file: loser.to_path_buf(),
                    line: self.line_of(loser, identity),
                    column: 1,
                    severity: Severity::Error,
                    object: Some(identity.to_string()),
                    message: format!(
                        "is also in {}:{}, which is taken because it comes first; remove one of them",
                        winner.display(),
                        self.line_of(winner, identity)
                    ),
                });
            }
        }
        problems.sort();
        SourceStatus { files: self.files.len(), objects: self.objects.len(), problems }
    }

    fn line_of(&self, path: &Arc<Path>, identity: &Identity) -> u64 {
        self.files
            .get(path)
            .and_then(|file| file.items().find(|(_, item)| item.identity == *identity).map(|(line, _)| line))
            .unwrap_or(0)
    }

    /// Replaces a file's documents; returns files that must be read afresh because an object is now to be taken from them.
    fn replace(&mut self, path: &Arc<Path>, text: &str, events: &mut Vec<Event>) -> Vec<Arc<Path>> {
        let old = self.files.remove(path).unwrap_or_default();
        let mut touched: BTreeSet<Identity> = old.items().map(|(_, item)| item.identity.clone()).collect();
        touched.extend(old.held.iter().cloned());
        let held_before = old.held;
        let good_before: HashSet<Identity> = old
            .documents
            .iter()
            .flat_map(|document| &document.contents.items)
            .filter(|item| item.is_good)
            .map(|item| item.identity.clone())
            .collect();

        let notation =
            if path.extension().is_some_and(|extension| extension == "json") { Notation::Json } else { Notation::Yaml };
        let mut file =
            FileState { documents: self.read_documents(text, notation, old.documents), ..FileState::default() };

        let mut good = HashMap::new();
        let mut bad = HashSet::new();
        let mut repeated = Vec::new();
        for (index, document) in file.documents.iter().enumerate() {
            for (place, item) in document.contents.items.iter().enumerate() {
                touched.insert(item.identity.clone());
                if !item.is_good {
                    bad.insert(item.identity.clone());
                } else if good.contains_key(&item.identity) {
                    repeated.push((document.line + item.position.line - 1, item.identity.clone()));
                } else {
                    good.insert(item.identity.clone(), (index, place));
                }
            }
        }
        file.repeated = repeated;
        let is_opaque = file.documents.iter().any(|document| document.contents.is_opaque);
        file.held = held_before
            .into_iter()
            .chain(good_before)
            .filter(|identity| !good.contains_key(identity) && (is_opaque || bad.contains(identity)))
            .collect();

        let mut stale = Vec::new();
        for identity in touched {
            let item = good.get(&identity).map(|&(index, place)| &mut file.documents[index].contents.items[place]);
            if item.is_some() || file.held.contains(&identity) {
                let claims = self.claims.entry(identity.clone()).or_default();
                claims.insert(path.clone());
                if claims.len() > 1 {
                    self.contested.insert(identity.clone());
                }
            } else {
                self.unclaim(&identity, path);
            }
            self.settle(&identity, path, item, events, &mut stale);
        }
        if file.has_problems() {
            self.troubled.insert(path.clone());
        } else {
            self.troubled.remove(path);
        }
        self.files.insert(path.clone(), file);
        stale
    }

    fn read_documents(&self, text: &str, notation: Notation, old: Vec<DocumentState>) -> Vec<DocumentState> {
        let documents = match notation {
            Notation::Yaml => yaml::split(text),
            Notation::Json if text.trim().is_empty() => Vec::new(),
            Notation::Json => vec![Document { line: 1, text }],
        };
        let mut known: HashMap<(usize, u64), Vec<Contents>> = HashMap::new();
        for document in old {
            known.entry(document.key).or_default().push(document.contents);
        }
        let generations = |identity: &Identity, substance: u64| match self.objects.get(identity) {
            Some(object) if object.substance == substance => object.generation,
            Some(object) => object.generation + 1,
            None => 1,
        };
        let read = |document: Document<'_>| {
            let key = (document.text.len(), self.hasher.hash_one(document.text));
            let contents = known
                .get_mut(&key)
                .and_then(Vec::pop)
                .unwrap_or_else(|| read_document(document.text, notation, &self.hasher, &generations));
            DocumentState { line: document.line, key, contents }
        };
        documents.into_iter().map(read).collect()
    }

    fn unclaim(&mut self, identity: &Identity, path: &Arc<Path>) {
        if let Some(claims) = self.claims.get_mut(identity) {
            claims.remove(path);
            if claims.len() < 2 {
                self.contested.remove(identity);
            }
            if claims.is_empty() {
                self.claims.remove(identity);
            }
        }
    }

    /// Puts the version of the first file that claims an object in force; `item` is the one of `path`.
    fn settle(
        &mut self,
        identity: &Identity,
        path: &Arc<Path>,
        item: Option<&mut Item>,
        events: &mut Vec<Event>,
        stale: &mut Vec<Arc<Path>>,
    ) {
        let Some(winner) = self.claims.get(identity).and_then(|claims| claims.first()) else {
            if let Some(object) = self.objects.remove(identity) {
                events.push(Event::Delete(object.reference));
            }
            return;
        };
        let in_force = self.objects.get(identity);
        if winner != path {
            if in_force.is_none_or(|object| object.file != *winner) && !stale.contains(winner) {
                stale.push(winner.clone());
            }
            return;
        }
        let Some(item) = item else { return };
        if in_force.is_some_and(|object| object.file == *path && object.fingerprint == item.fingerprint) {
            item.object = None;
            return;
        }
        let Some(object) = item.object.take() else {
            stale.push(path.clone());
            return;
        };
        let generation = match in_force {
            Some(before) if before.substance == item.substance => before.generation,
            Some(before) => before.generation + 1,
            None => 1,
        };
        self.objects.insert(
            identity.clone(),
            InForce {
                file: path.clone(),
                reference: object.reference(),
                fingerprint: item.fingerprint,
                substance: item.substance,
                generation,
            },
        );
        events.push(Event::Put(*object));
    }
}

impl FileState {
    fn items(&self) -> impl Iterator<Item = (u64, &Item)> {
        self.documents.iter().flat_map(|document| {
            document.contents.items.iter().map(|item| (document.line + item.position.line - 1, item))
        })
    }

    fn has_problems(&self) -> bool {
        self.error.is_some()
            || !self.repeated.is_empty()
            || self.documents.iter().any(|document| !document.contents.findings.is_empty())
    }

    fn report(&self, path: &Path, problems: &mut Vec<Problem>) {
        let problem = |line, column, severity, object: Option<&Identity>, message: String| Problem {
            file: path.to_owned(),
            line,
            column,
            severity,
            object: object.map(ToString::to_string),
            message,
        };
        if let Some(error) = &self.error {
            problems.push(problem(0, 0, Severity::Error, None, error.clone()));
        }
        for document in &self.documents {
            for Finding { position, severity, object, message } in &document.contents.findings {
                let line = document.line + position.line - 1;
                let is_held = object.as_ref().is_some_and(|object| self.held.contains(object));
                let kept = if is_held { "; its last good version stays in force" } else { "" };
                problems.push(problem(line, position.column, *severity, object.as_ref(), format!("{message}{kept}")));
            }
        }
        for (line, identity) in &self.repeated {
            let message = "is in this file more than once; the first is taken, remove the others".to_owned();
            problems.push(problem(*line, 1, Severity::Error, Some(identity), message));
        }
    }
}

fn read_text(path: &Path) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    // One more byte than allowed tells "too long" from "just as long"; a file that grows meanwhile is cut there as well.
    File::open(path)?.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_TEXT {
        return Err(ReadError::TooLong);
    }
    String::from_utf8(bytes).map_err(|error| ReadError::NotText(error.utf8_error().valid_up_to()))
}
