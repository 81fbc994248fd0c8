//! What all files say together: which object counts, what changed, what is wrong.
//!
//! Pure: contents of files go in, changes and problems come out. The tree remembers names and hashes, never the
//! objects, which belong to whoever was told about them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::document::Format;
use crate::object::{Key, Object};
use crate::parse::{self, Flaw, Found, Known};
use crate::problem::{Problem, Severity};

/// Most objects in force: several times what the largest cluster holds, and a bound on what a runaway generator of
/// manifests can make us keep.
pub(crate) const MAX_OBJECTS: usize = 500_000;

/// Most problems listed at once.
const MAX_PROBLEMS: usize = 1_000;

/// One difference between before and after.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The object is there, or is different.
    Applied(Object),
    /// The object is gone.
    Deleted(Key),
}

/// What is known about a file.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// It says this.
    Bytes(&'a [u8]),
    /// It is not there any more.
    Gone,
    /// It is there and cannot be read.
    Unreadable(String),
}

/// What came of an update.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Applied objects in the order of their kinds, then deletions in the opposite order.
    pub(crate) changes: Vec<Change>,
    /// All problems there are, if they are others than before.
    pub(crate) problems: Option<Vec<Problem>>,
    /// Unchanged files whose objects are needed after all, because another file gave way to them.
    pub(crate) again: Vec<Arc<str>>,
}

/// The state of all files.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<Arc<str>, File>,
    /// Who says that an object exists, by name of file.
    claims: HashMap<Key, Vec<Claim>>,
    /// The version of each object that was handed out.
    given: HashMap<Key, Given>,
    troubled: BTreeSet<Arc<str>>,
    contested: BTreeSet<Key>,
    problems: Vec<Problem>,
}

#[derive(Debug, Default)]
struct File {
    keys: Vec<Key>,
    flaws: Vec<Flaw>,
    unknown: BTreeMap<String, (u32, usize)>,
}

#[derive(Debug, Clone)]
struct Claim {
    file: Arc<str>,
    line: u32,
    hash: u64,
    /// The file is broken where this object stood: its last good version stays, and there is no text to read it from.
    kept: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    file: Arc<str>,
    hash: u64,
}

impl Tree {
    /// Takes in what changed among the files. Names of files are unique within `changes`.
    pub(crate) fn update(&mut self, changes: Vec<(Arc<str>, Content<'_>)>) -> Outcome {
        let mut touched = HashSet::new();
        let mut objects = HashMap::new();
        for (name, content) in changes {
            let old = self.files.remove(&name).unwrap_or_default();
            self.troubled.remove(&name);
            let old_claims = self.withdraw(&name, &old.keys);
            touched.extend(old.keys);
            let contents = match content {
                Content::Gone => continue,
                Content::Unreadable(message) => parse::Contents {
                    flaws: vec![Flaw { line: None, key: None, message }],
                    nameless: true,
                    ..parse::Contents::default()
                },
                Content::Bytes(bytes) => parse::read(format_of(&name), bytes, &self.known(&name, &old_claims)),
            };
            let mut file = File { keys: Vec::new(), flaws: contents.flaws, unknown: contents.unknown };
            self.claim_found(&name, &mut file, contents.found, &mut objects);
            self.keep_broken(&name, &mut file, old_claims, contents.nameless);
            touched.extend(file.keys.iter().cloned());
            if !file.flaws.is_empty() || !file.unknown.is_empty() {
                self.troubled.insert(Arc::clone(&name));
            }
            self.files.insert(name, file);
        }
        let mut outcome = Outcome::default();
        for key in touched {
            self.settle(key, &mut objects, &mut outcome);
        }
        order(&mut outcome.changes);
        outcome.again.sort_unstable();
        outcome.again.dedup();
        let problems = self.list_problems();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            outcome.problems = Some(problems);
        }
        outcome
    }

    /// How many objects are in force.
    pub(crate) fn len(&self) -> usize {
        self.given.len()
    }

    /// Takes back all claims of a file and returns them.
    fn withdraw(&mut self, file: &Arc<str>, keys: &[Key]) -> HashMap<Key, Claim> {
        let mut withdrawn = HashMap::new();
        for key in keys {
            let Some(claims) = self.claims.get_mut(key) else { continue };
            if let Some(at) = claims.iter().position(|c| c.file == *file) {
                withdrawn.insert(key.clone(), claims.remove(at));
            }
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
        withdrawn
    }

    /// What need not be read again: this very version of it was handed out.
    fn known(&self, file: &Arc<str>, claims: &HashMap<Key, Claim>) -> Known {
        let given = |(key, claim): &(&Key, &Claim)| {
            self.given.get(*key).is_some_and(|g| g.file == *file && g.hash == claim.hash) && !claim.kept
        };
        claims
            .iter()
            .filter(given)
            .filter(|(key, _)| !key.kind.placed())
            .map(|(key, claim)| (claim.hash, key.clone()))
            .collect()
    }

    fn claim_found(
        &mut self,
        name: &Arc<str>,
        file: &mut File,
        found: Vec<Found>,
        objects: &mut HashMap<(Key, Arc<str>), Object>,
    ) {
        let mut left_out = 0_usize;
        for Found { key, line, hash, mut object } in found {
            // Of an object that says where it is written, another place is another version.
            let hash = if key.kind.placed() { placed(hash, name, line) } else { hash };
            if let Some(object) = &mut object {
                object.place(name, line);
            }
            let full = self.claims.len() >= MAX_OBJECTS;
            let claims = match self.claims.get_mut(&key) {
                Some(claims) => claims,
                None if full => {
                    left_out += 1;
                    continue;
                }
                None => self.claims.entry(key.clone()).or_default(),
            };
            match claims.binary_search_by(|c| c.file.cmp(name)) {
                Ok(at) => {
                    let message = format!("is ignored: line {} already describes this object", claims[at].line);
                    file.flaws.push(Flaw { line: Some(line), key: Some(key), message });
                }
                Err(at) => {
                    claims.insert(at, Claim { file: Arc::clone(name), line, hash, kept: false });
                    file.keys.push(key.clone());
                    objects.extend(object.map(|object| ((key, Arc::clone(name)), object)));
                }
            }
        }
        if left_out > 0 {
            let message = format!("{left_out} objects are left out: there are {MAX_OBJECTS} already");
            file.flaws.push(Flaw { line: None, key: None, message });
        }
    }

    /// Keeps the last good version of what is broken, so that a typo removes nothing.
    fn keep_broken(&mut self, name: &Arc<str>, file: &mut File, old: HashMap<Key, Claim>, nameless: bool) {
        let named: HashSet<Key> = file.flaws.iter().filter_map(|f| f.key.clone()).collect();
        for (key, claim) in old {
            let given = Given { file: Arc::clone(name), hash: claim.hash };
            if !(nameless || named.contains(&key)) || self.given.get(&key) != Some(&given) {
                continue;
            }
            let claims = self.claims.entry(key.clone()).or_default();
            if let Err(at) = claims.binary_search_by(|c| c.file.cmp(name)) {
                claims.insert(at, Claim { kept: true, ..claim });
                file.keys.push(key);
            }
        }
    }

    /// Compares what should be in force for a name with what was handed out.
    fn settle(&mut self, key: Key, objects: &mut HashMap<(Key, Arc<str>), Object>, outcome: &mut Outcome) {
        let claims = self.claims.get(&key).map_or(&[][..], Vec::as_slice);
        if claims.len() > 1 {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(&key);
        }
        let given = self.given.get(&key);
        let usable = |c: &&Claim| !c.kept || given.is_some_and(|g| g.file == c.file && g.hash == c.hash);
        let Some(winner) = claims.iter().find(usable) else {
            if self.given.remove(&key).is_some() {
                outcome.changes.push(Change::Deleted(key));
            }
            return;
        };
        let wanted = Given { file: Arc::clone(&winner.file), hash: winner.hash };
        if given.is_some_and(|g| g.hash == wanted.hash) {
            self.given.insert(key, wanted);
            return;
        }
        match objects.remove(&(key.clone(), Arc::clone(&wanted.file))) {
            Some(object) => {
                self.given.insert(key, wanted);
                outcome.changes.push(Change::Applied(object));
            }
            None => outcome.again.push(wanted.file),
        }
    }

    fn list_problems(&self) -> Vec<Problem> {
        let mut problems = BTreeSet::new();
        let mut unknown: BTreeMap<&str, (Arc<str>, u32, usize)> = BTreeMap::new();
        for name in &self.troubled {
            let Some(file) = self.files.get(name) else { continue };
            for flaw in &file.flaws {
                let problem = Problem::new(Severity::Error, name, flaw.line, &flaw.message);
                problems.insert(match &flaw.key {
                    Some(key) => problem.about(key.clone()),
                    None => problem,
                });
            }
            for (kind, (line, count)) in &file.unknown {
                unknown.entry(kind).or_insert_with(|| (Arc::clone(name), *line, 0)).2 += count;
            }
        }
        for key in &self.contested {
            let claims = self.claims.get(key).map_or(&[][..], Vec::as_slice);
            let Some((first, others)) = claims.split_first() else { continue };
            for other in others {
                let (file, line) = (&first.file, first.line);
                let message = format!("is ignored: {file}:{line} describes the same object, and the first file counts");
                let problem = Problem::new(Severity::Error, &other.file, Some(other.line), &message);
                problems.insert(problem.about(key.clone()));
            }
        }
        let mut problems: Vec<_> = problems.into_iter().collect();
        for (kind, (file, line, count)) in unknown {
            let message = match count {
                1 => format!("unknown kind {kind}: ignored"),
                _ => format!("unknown kind {kind}: {count} objects ignored, this is the first"),
            };
            problems.push(Problem::new(Severity::Note, &file, Some(line), &message));
        }
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        if more > 0 {
            problems.truncate(MAX_PROBLEMS);
            problems.push(Problem::new(Severity::Error, &"".into(), None, &format!("{more} more problems")));
        }
        problems
    }
}

/// Names of files come from a listing that leaves out everything else.
fn format_of(name: &str) -> Format {
    Format::of(name.rsplit('/').next().unwrap_or(name)).unwrap_or(Format::Yaml)
}

fn placed(hash: u64, file: &str, line: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    (hash, file, line).hash(&mut hasher);
    hasher.finish()
}

/// What others refer to is applied first and deleted last.
fn order(changes: &mut [Change]) {
    changes.sort_by_cached_key(|change| match change {
        Change::Applied(object) => (false, object.key()),
        Change::Deleted(key) => (true, key.clone()),
    });
    let applied = changes.partition_point(|c| matches!(c, Change::Applied(_)));
    changes[applied..].reverse();
}

#[cfg(test)]
mod tests;
